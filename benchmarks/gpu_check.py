"""Does training work on this GPU, how fast is it, and how much memory does it take? One command, no network.

    python benchmarks/gpu_check.py                 # under eight minutes, on the first visible GPU
    python benchmarks/gpu_check.py --quick         # under 50 seconds: 64 tokens a completion, the small model only
    python benchmarks/gpu_check.py --only vllm     # one section (or several)
    python benchmarks/gpu_check.py --cpu-smoke     # the same code at toy size on the CPU, to test this script

The models are random, made on the spot, with the shapes of Qwen2.5-0.5B and 1.5B, so nothing is downloaded and the
speeds are those of the real ones. `docs/gpu.md` describes the sections.

Every section is a process of its own with a time limit, so that a crash or a hang ends that section only. A section
whose package is not installed is skipped by name. Exits with 1 if a section failed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rlkd.files import read_records
from rlkd.process import kill_group
from tiny import byte_tokenizer, letters, questions, training_arguments

# torch, transformers, trl and our trainers are imported in the sections' processes only.

BUDGET_S = 450.0
QUICK_BUDGET_S = 48.0
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "rlkd")
OPTIONAL = ("vllm", "bitsandbytes", "flash_attn", "kernels", "liger_kernel")


@dataclass(frozen=True)
class Shape:
    """A Qwen2 configuration: the numbers that set the cost of a step."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 2
    vocab_size: int = 151_936


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, vocab_size=1024),
    "0.5b": Shape(896, 4864, 24, 14),
    "1.5b": Shape(1536, 8960, 28, 12),
}


@dataclass(frozen=True)
class CheckSize:
    """How large the sections are: full on a GPU, quick on a GPU, or toy on the CPU (`smoke`)."""

    smoke: bool = False
    completion_tokens: int = 256
    steps: int = 4  # the first one warms up and is not measured
    attention_tokens: int = 512
    repeats: int = 5

    @classmethod
    def of(cls, name: str) -> CheckSize:
        """The size of that name."""
        return {"full": cls(), "quick": cls(completion_tokens=64, steps=3), "smoke": cls(True, 12, 2, 32, 2)}[name]

    def shape(self, name: str) -> Shape:
        """The shape of that name, or the toy that stands in for it."""
        return SHAPES["tiny" if self.smoke else name]


# --- sections: each runs in its own process and returns its figures -------------------------------------------------


def device(size: CheckSize) -> dict[str, Any]:
    """What PyTorch sees; `gpu` is None without a CUDA or ROCm device."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None, "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "torch": torch.__version__,
    }


def attention(size: CheckSize) -> dict[str, Any]:
    """Milliseconds of forward + backward by attention implementation, and how far its output is from eager's."""
    import torch

    shape, place = size.shape("0.5b"), "cpu" if size.smoke else "cuda"
    model = build_model(shape, place).model
    rows, length = 8, size.attention_tokens
    ids = torch.randint(300, shape.vocab_size, (rows, length), device=place)
    mask = torch.ones_like(ids)
    mask[: rows // 2, : length // 8] = 0  # left padding, as prompts of different lengths have it

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden[mask.bool()].float().square().mean().backward()
        return hidden[mask.bool()].detach().float()

    packages = {"flash_attention_2": "flash_attn", "kernels-community/flash-attn2": "kernels"}
    figures: dict[str, Any] = {}
    reference = None
    for name in ("eager", "sdpa", *packages):
        if name in packages and find_spec(packages[name]) is None:
            figures[name] = {"skipped": f"not installed: {packages[name]}"}
            continue
        try:
            model.set_attn_implementation(name)
            output = step()
            reference = output if reference is None else reference
            times = []
            for _ in range(size.repeats):
                start = now()
                step()
                times.append(now() - start)
            figures[name] = {
                "ms": round(median(times) * 1000, 2),
                "mean_difference": round((output - reference).abs().mean().item(), 6),
            }
        except Exception as error:  # the others are worth measuring all the same
            figures[name] = {"failed": describe(error)}
    return figures | {"peak_gb": peak_gb()}


def equality(size: CheckSize) -> dict[str, Any]:
    """Whether RLKDTrainer ends where GRPOTrainer ends, and whether failing rewards and gates work on this device.

    GPU kernels that add in no fixed order are switched off where PyTorch can. Where GRPOTrainer still differs from
    itself, ours is held to ten times that. Raises `AssertionError` where it is further off.
    """
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from rewards import Failed
    from trainers import RLKDConfig, RLKDTrainer

    torch.use_deterministic_algorithms(True, warn_only=True)

    def flaky(completions: list[Any], **columns: Any) -> list[Any]:
        return [Failed("every third fails") if i % 3 == 0 else float(i % 2) for i in range(len(completions))]

    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        model = save_model(SHAPES["tiny"], Path(folder) / "model", "cpu", "float32")
        changes = {"max_completion_length": 12, "max_steps": 2, "num_generations": 4, "learning_rate": 1e-3}

        def trained(trainer_class: Any, config_class: Any, name: str) -> list[torch.Tensor]:
            args = config_class(**settings(size, Path(folder) / name, **changes))
            args.fast_path = "never"  # with --cpu-smoke, too
            trainer = trainer_class(model, reward_funcs=letters, args=args, train_dataset=sums())
            trainer.train()
            return [parameter.detach().cpu().clone() for parameter in trainer.model.parameters()]

        def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
            return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))

        stock = trained(GRPOTrainer, GRPOConfig, "a")
        noise = distance(stock, trained(GRPOTrainer, GRPOConfig, "b"))
        ours = distance(stock, trained(RLKDTrainer, RLKDConfig, "c"))

        args = RLKDConfig(**settings(size, Path(folder) / "d", **changes), reward_gates={"letters": "flaky"})
        trainer = RLKDTrainer(model, reward_funcs=[letters, flaky], args=args, train_dataset=sums())
        trainer.train()
        records = list(read_records(trainer.rollouts_path))
        failed = sum(record["rewards"]["flaky"]["status"] == "failed" for record in records)
    figures = {"stock_max_difference": noise, "ours_max_difference": ours, "rollouts": len(records), "failed": failed}
    if ours > 10 * noise:
        raise AssertionError(f"RLKDTrainer differs from GRPOTrainer: {figures}")
    if not 0 < failed < len(records):
        raise AssertionError(f"expected some of the rollouts to carry a failed reward: {figures}")
    return figures


def grpo(size: CheckSize, shape_name: str) -> dict[str, Any]:
    """GRPO steps with LoRA on a model that is built in memory."""
    shape = size.shape(shape_name)
    model = build_model(shape, "cpu" if size.smoke else "cuda")
    return measure(size, model=model, processing_class=byte_tokenizer(shape.vocab_size))


def kd(size: CheckSize) -> dict[str, Any]:
    """Distillation steps with LoRA, on traces and on rollouts, with our divergence and with TRL's kernel.

    Both start from the same student and traces, so their first losses should agree up to rounding. Raises
    `AssertionError` where they do not, or where a loss or a gradient is no number.
    """
    import torch

    from trainers.validity_kd.trainer import writes_itself

    # Two steps on traces, then two on rollouts: the first one of each warms up.
    coins = [False, False, True, True]
    seed = next(seed for seed in range(1000) if [writes_itself(0.5, seed, step) for step in range(4)] == coins)
    place = "cpu" if size.smoke else "cuda"
    shape = size.shape("0.5b")
    teacher = build_model(size.shape("1.5b"), place, seed=1)
    figures: dict[str, Any] = {}
    for kernel in ("chunked", "trl"):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        # A random teacher trusts no step: without v_0 = 0 all weights would be close to none.
        changes = {"kernel": kernel, "seed": seed, "v_0": 0.0}
        figures[kernel] = distil(size, build_model(shape, place), teacher, changes)
    losses = [figures[kernel]["first_loss"] for kernel in ("chunked", "trl")]
    figures["loss_difference"] = abs(losses[0] - losses[1]) / abs(losses[1])
    if not figures["loss_difference"] < 0.01:
        raise AssertionError(f"the losses of the two kernels differ: {figures}")
    return figures


def distil(size: CheckSize, student: Any, teacher: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Four steps; return seconds per step on traces and on rollouts, peak memory (the teacher's too) and losses."""
    from trainers import ValidityKDConfig, ValidityKDTrainer

    marks = step_marks()
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        values = settings(size, Path(folder), per_device_train_batch_size=4, max_steps=4, lmbda=0.5, **changes)
        del values["num_generations"]
        trainer = ValidityKDTrainer(
            student,
            teacher,
            ValidityKDConfig(**values),
            train_dataset=traces(),
            processing_class=byte_tokenizer(student.config.vocab_size),
            peft_config=lora(),
            callbacks=[marks],
        )
        trainer.train()
        steps = list(read_records(trainer.metrics_path))
        records = list(read_records(trainer.rollouts_path))
    for step in steps:
        if not (math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) and step["grad_norm"] > 0):
            raise AssertionError(f"loss {step['loss']} and gradient norm {step['grad_norm']} in step {step['step']}")
    # Of each kind the later step.
    seconds = dict(zip([step["kd/on_policy"] for step in steps], marks.seconds(), strict=True))
    return {
        "traces_step_s": round(seconds[0.0], 3),
        "rollouts_step_s": round(seconds[1.0], 3),
        "peak_gb": peak_gb(),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "weighted_steps": sum(len(record["steps"]) for record in records),
    }


def bitsandbytes(size: CheckSize) -> dict[str, Any]:
    """GRPO steps with LoRA on 4-bit weights."""
    import torch
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        model = save_model(size.shape("0.5b"), Path(folder) / "model", "cuda", "bfloat16")
        changes = {"model_init_kwargs": {"dtype": "bfloat16", "device_map": {"": 0}}}
        return measure(size, model=model, quantization_config=quantization, changes=changes)


def vllm(size: CheckSize) -> dict[str, Any]:
    """GRPO steps with generation by vLLM, and how far its log-probabilities are from the trainer's."""
    changes = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.35,
        "vllm_max_model_length": 1024,
        "model_init_kwargs": {"dtype": "bfloat16"},
    }
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        model = save_model(size.shape("0.5b"), Path(folder) / "model", "cuda", "bfloat16")
        return measure(size, model=model, changes=changes)


@dataclass(frozen=True)
class Section:
    """What to run, for how long at most, what it needs, and whether the CPU can do it."""

    run: Callable[[CheckSize], dict[str, Any]]
    limit_s: float
    package: str | None = None
    on_cpu: bool = True
    in_quick: bool = False


SECTIONS = {
    "device": Section(device, 60, in_quick=True),
    "attention": Section(attention, 60, in_quick=True),
    "equality": Section(equality, 90),
    "grpo_0.5b": Section(lambda size: grpo(size, "0.5b"), 120, in_quick=True),
    "grpo_1.5b": Section(lambda size: grpo(size, "1.5b"), 150),
    "kd": Section(kd, 120),
    "bitsandbytes": Section(bitsandbytes, 120, "bitsandbytes", on_cpu=False),
    "vllm": Section(vllm, 210, "vllm", on_cpu=False),
}


# --- what the sections share ----------------------------------------------------------------------------------------


class Stopwatch:
    """A reward that depends on the text only, and notes when generation was over and how many tokens it gave."""

    __name__ = "stopwatch"

    def __init__(self) -> None:
        self.called_at: list[float] = []
        self.tokens: list[int] = []

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """Score as `letters` does."""
        self.called_at.append(now())
        self.tokens.append(sum(map(len, completion_ids)))
        return letters(completions)


def measure(size: CheckSize, *, changes: dict[str, Any] | None = None, **trainer_arguments: Any) -> dict[str, Any]:
    """Train with LoRA; return seconds per step, tokens per second and peak memory, each without the first step."""
    from trainers import RLKDConfig, RLKDTrainer

    watch, marks = Stopwatch(), step_marks()
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        trainer = RLKDTrainer(
            reward_funcs=watch,
            args=RLKDConfig(**settings(size, Path(folder), **(changes or {}))),
            train_dataset=sums(),
            peft_config=lora(),
            callbacks=[marks],
            **trainer_arguments,
        )
        trainer.train()
        *_, last = read_records(trainer.metrics_path)
    if not last["grad_norm"] or last["grad_norm"] != last["grad_norm"]:
        raise AssertionError(f"the gradient norm of the last step is {last['grad_norm']}")
    steps = marks.seconds()[1:]
    generation = [called - begin for begin, called in zip(marks.begun, watch.called_at, strict=True)][1:]
    tokens = median(watch.tokens[1:])
    figures = {
        "step_s": round(median(steps), 3),
        "generation_s": round(median(generation), 3),
        "first_step_s": round(marks.ended[0] - marks.begun[0], 3),
        "tokens_per_step": int(tokens),
        "tokens_per_s": round(tokens / median(steps), 1),
        "generation_tokens_per_s": round(tokens / median(generation), 1),
        "peak_gb": peak_gb(),
        "grad_norm": last["grad_norm"],
    }
    return figures | {key: value for key, value in last.items() if key.startswith("sampling/")}


def lora() -> Any:
    """LoRA r16 on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def step_marks() -> Any:
    """A callback that notes when steps begin and end."""
    from transformers import TrainerCallback

    class Marks(TrainerCallback):
        def __init__(self) -> None:
            self.begun: list[float] = []
            self.ended: list[float] = []

        def on_step_begin(self, *arguments: Any, **rest: Any) -> None:
            self.begun.append(now())

        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            self.ended.append(now())

        def seconds(self) -> list[float]:
            return [end - begin for begin, end in zip(self.begun, self.ended, strict=True)]

    return Marks()


def settings(size: CheckSize, output: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of a config: one group of eight completions per step."""
    values = {
        "use_cpu": size.smoke,
        "bf16": not size.smoke,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "max_completion_length": size.completion_tokens,
        "max_steps": size.steps,
        "learning_rate": 1e-5,
    }
    return training_arguments(output, **values | changes)


def sums() -> Any:
    """Sixteen sums as chats of some hundred tokens, with an answer column."""
    return questions("Ann has {a} shells and finds {b} more on the beach, then counts them twice. How many are there?")


def traces() -> Any:
    """The sums with a trace of the teacher each: two sentences, over and over, some 250 tokens long."""
    text = "There are {c} shells on the beach. Twice that is {d} shells.\n"
    rationales = [[text.format(c=22 * i + 14, d=44 * i + 28) * 4] for i in range(16)]
    return sums().add_column("rationales", rationales)


def build_model(shape: Shape, place: str, dtype: str | None = None, seed: int = 0) -> Any:
    """A random Qwen2 on a device; bf16 on a GPU and fp32 on a CPU unless `dtype` says otherwise."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**vars(shape), tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    torch.manual_seed(seed)
    with torch.device(place):
        dtype = dtype or ("float32" if place == "cpu" else "bfloat16")
        return Qwen2ForCausalLM._from_config(config, dtype=getattr(torch, dtype))


def save_model(shape: Shape, folder: Path, place: str, dtype: str) -> str:
    """Save a random model with its tokenizer; returns the folder."""
    build_model(shape, place, dtype).save_pretrained(folder)
    byte_tokenizer(shape.vocab_size).save_pretrained(folder)
    return str(folder)


def now() -> float:
    """Seconds, after the GPU has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gb() -> float | None:
    """The most GPU memory that tensors of this process have held, in GB (vLLM's cache counts, too)."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def describe(error: BaseException) -> str:
    """An error in one line of at most 400 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


# --- the process that starts the sections ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check training on this machine's GPU.")
    parser.add_argument("--quick", action="store_true", help="a reduced size, under 50 seconds")
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="toy size on the CPU: tests this script, no GPU needed"
    )
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--section", nargs=3, metavar=("NAME", "SIZE", "RESULT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.section:
        return run_section(*given.section)

    started = time.monotonic()
    size = "smoke" if given.cpu_smoke else "quick" if given.quick else "full"
    budget = QUICK_BUDGET_S if given.quick else BUDGET_S
    versions, missing = installed_versions()
    seen = start_section("device", size, budget)
    if seen["status"] != "ok":
        print(f"device: {seen['error']}")
        print(json.dumps({"gpu": None, "error": seen["error"]}))
        return 1
    if seen["gpu"] is None and not given.cpu_smoke:
        print(
            f"No GPU: PyTorch {seen['torch']} sees no CUDA or ROCm device, so nothing was checked. "
            f"(--cpu-smoke tests this script.)"
        )
        print(json.dumps({"gpu": None}))
        return 0

    print(f"{seen['gpu'] or 'CPU, toy size'}; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    print(f"not installed: {', '.join(missing) or 'nothing'}\n")
    sections: dict[str, dict[str, Any]] = {"device": seen}
    report("device", seen)
    for name, section in SECTIONS.items():
        if name == "device" or (given.only and name not in given.only):
            continue
        left = budget - (time.monotonic() - started)
        why = None
        if given.quick and not section.in_quick and not given.only:
            why = "not part of --quick"
        elif section.package and find_spec(section.package) is None:
            why = f"not installed: {section.package}"
        elif given.cpu_smoke and not section.on_cpu:
            why = "needs a GPU"
        elif left < 10:
            why = f"no time left of {budget:.0f} s; run it alone: --only {name}"
        sections[name] = {"status": "skipped", "why": why} if why else start_section(name, size, left)
        report(name, sections[name])
    total = round(time.monotonic() - started, 1)
    print(f"\n{total:.0f} s in all")
    result = {"gpu": seen["gpu"], "size": size, "versions": versions, "missing": missing, "total_s": total}
    print(json.dumps(result | {"sections": sections}))
    return int(any(figures["status"] == "failed" for figures in sections.values()))


def installed_versions() -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that matter, and the optional ones that are not there."""
    versions, missing = {}, []
    for package in (*PACKAGES, *OPTIONAL):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    return {"python": sys.version.split()[0], **versions}, missing


def start_section(name: str, size: str, left_s: float) -> dict[str, Any]:
    """Run a section in a process of its own; return its figures with `status` and `seconds`. Never raises."""
    limit = min(SECTIONS[name].limit_s, left_s)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with a fixed workspace
    # With several visible GPUs the Trainer would use them all (torch.nn.DataParallel).
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if size == "smoke":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-check-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name, size, str(result)]
        with log.open("wb") as sink:
            # A process group of its own, so that what it started ends with it.
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                process.wait(limit)
                ending = f"the process ended with code {process.returncode}"
            except subprocess.TimeoutExpired:
                ending = f"not finished after {limit:.0f} s"
            finally:
                kill_group(process.pid)
                process.wait()
        try:
            figures = json.loads(result.read_text())
        except (OSError, ValueError):
            figures = {"status": "failed", "error": ending}
        if figures["status"] == "failed":
            print(
                f"--- {name}: the last lines of its output",
                *log.read_text(errors="replace").splitlines()[-15:],
                "---",
                sep="\n",
            )
    return figures | {"seconds": round(time.monotonic() - started, 1)}


def run_section(name: str, size: str, result: str) -> int:
    """The section's own process: run it and write its figures, or its error, to the file `result`."""
    import traceback
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        figures = {"status": "ok", **SECTIONS[name].run(CheckSize.of(size))}
    except Exception as error:
        traceback.print_exc()
        figures = {"status": "failed", "error": describe(error)}
    Path(result).write_text(json.dumps(figures))
    return 0


def report(name: str, figures: dict[str, Any]) -> None:
    """Print a section's figures for a reader."""
    seconds = f" in {figures['seconds']:.0f} s" if "seconds" in figures else ""
    print(f"{name}: {figures['status']}{seconds}", flush=True)
    for key, value in figures.items():
        if key not in ("status", "seconds"):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"    {key:<24} {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
