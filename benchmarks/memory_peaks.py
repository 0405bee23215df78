"""Measured peaks of memory on a CPU: 4-bit models against full precision, and sharded weights against whole ones.

    python benchmarks/memory_peaks.py                       # all cases
    python benchmarks/memory_peaks.py --only kd sharded     # some of them
    python benchmarks/memory_peaks.py --arms "4 bit"        # some of their runs
    python benchmarks/memory_peaks.py --quick               # tiny random models

| case | run |
| --- | --- |
| `rlkd` | RLKD, LoRA on SmolLM2-135M, 4 completions of 32 tokens |
| `kd` | validity-calibrated distillation on the teacher's traces, LoRA on SmolLM2-135M, a teacher of that size |
| `gsrm` | a structure model, LoRA on SmolLM2-135M |
| `sharded` | distillation, all weights of SmolLM2-135M, in one process and in two (FSDP2, ZeRO stage 3) |

The first three run in full precision (float32) and with the student in 4 bit (bitsandbytes, nf4), `kd` with its
teacher in 4 bit, too. All runs of a case take the same steps on the same rows in the same order; in RLKD the
completions are the run's own. A run has a process of its own, whose largest resident size is its peak (VmHWM);
`loaded` is the peak before the first step. `held` are the bytes of the model's parameters, buffers and scales of 4-bit
weights, counted tensor by tensor. `text_loss` is the cross-entropy of the same solutions after training, in nats per
token. Estimates are those of `--dry_run`.

`sharded` counts, in each process at the end of its last step, the bytes of its parameters, gradients and optimizer's
states. accelerate shards on GPUs only: the two processes tell it that theirs are GPUs (`two_processes.py`). ZeRO is
left out where DeepSpeed is not installed.

Exits with 1 where an estimate is off by more than 20 %, a loss of sharded weights differs by more than 1e-5 of itself
from that of whole ones, or a process holds more than 51 % of parameters, gradients and states under FSDP2.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import importlib.util
import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memory_estimate import GIB, LIMIT, letters, lora, planned, some_prompts, student_of
from two_processes import CONFIGS, allow_cpu, environment_of

ARMS = {
    "rlkd": ("full", "4 bit"),
    "kd": ("full", "4 bit", "both 4 bit"),
    "gsrm": ("full", "4 bit"),
    "sharded": ("one process", "fsdp2", "zero3"),
}
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure peaks of memory.")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), help="run only these cases")
    every = list(dict.fromkeys(arm for arms in ARMS.values() for arm in arms))
    parser.add_argument("--arms", nargs="+", choices=every, default=every, help="run only these of each case")
    given = harness.parse(parser, quick="tiny random models, without bounds", child=work)
    if "sharded" in given.only and {"fsdp2", "zero3"} & set(given.arms) and "one process" not in given.arms:
        parser.error("--arms: sharded weights are compared with whole ones; name 'one process', too")
    figures: dict[str, dict[str, Any]] = {}
    bounds: dict[str, bool] = {}
    for case in given.only:
        figures[case] = {}
        for arm in (arm for arm in ARMS[case] if arm in given.arms):
            if arm == "zero3" and importlib.util.find_spec("deepspeed") is None:
                print(f"{case:<8} {arm:<12} left out: DeepSpeed is not installed", flush=True)
                continue
            found = figures[case][arm] = run(case, arm, given.quick)
            print(f"{case:<8} {arm:<12} " + ", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        bounds |= sharded_bounds(figures[case]) if case == "sharded" else estimate_bounds(case, figures[case])
    return harness.report(figures, {} if given.quick else bounds)


def run(case: str, arm: str, quick: bool) -> dict[str, Any]:
    """The figures of a run, measured in processes of its own."""
    task = {"case": case, "arm": arm, "quick": quick}
    if case != "sharded":
        estimate = {} if case == "gsrm" else harness.in_child({**task, "plans": True})
        return harness.in_child(task) | estimate
    if arm == "one process":
        return harness.in_child(task)
    return harness.in_child(task, processes=2, **environment_of(CONFIGS / f"{arm}.yaml"))


def estimate_bounds(case: str, arms: dict[str, Any]) -> dict[str, bool]:
    """Whether the estimate of each arm is near its peak."""
    return {
        f"the estimate of {case}, {arm}, within {LIMIT:.0%}": abs(one["estimated_gib"] / one["peak_gib"] - 1) <= LIMIT
        for arm, one in arms.items()
        if "estimated_gib" in one
    }


def sharded_bounds(arms: dict[str, Any]) -> dict[str, bool]:
    """Whether sharded weights have the losses of whole ones, and each process under FSDP2 its half of all bytes."""
    whole = arms.get("one process")
    if whole is None:
        return {}
    bounds = {
        f"{arm}: {key} within {limit:g}": all(
            math.isclose(one, two, rel_tol=limit) for one, two in zip(found[key], whole[key], strict=True)
        )
        for arm, found in arms.items()
        if arm != "one process"
        for key, limit in (("loss", 1e-5), ("grad_norm", 1e-4))
    }
    if "fsdp2" in arms:
        most = 0.51 * whole["held_mib"][0]
        bounds["fsdp2: a process holds at most 51 %"] = max(arms["fsdp2"]["held_mib"]) <= most
    return bounds


def work(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: a run, or its estimate."""
    harness.quiet()
    with tempfile.TemporaryDirectory(prefix="rlkd-peaks-") as name:
        folder, quick = Path(name), task["quick"]
        if task["case"] == "sharded":
            return sharded_run(task["arm"], folder, quick)
        made = {"rlkd": rlkd_run, "kd": kd_run, "gsrm": gsrm_run}[task["case"]]
        return made(task["arm"], folder, quick, task.get("plans", False))


# 4 bit against full precision


def rlkd_run(arm: str, folder: Path, quick: bool, plans: bool) -> dict[str, Any]:
    """RLKD with completions of its own."""
    from trainers import RLKDConfig, RLKDTrainer
    from trainers.rlkd.memory import memory_plan

    sizes: dict[str, Any] = {"per_device_train_batch_size": 4, "max_completion_length": 32, "num_generations": 4}
    model, tokenizer = student_of("lora", folder, quick)
    dataset, longest = some_prompts("gsm8k-sample", tokenizer)
    sizes |= {"generation_kwargs": {"suppress_tokens": [tokenizer.eos_token_id]}, "beta": 0.0, "reward_cache": "off"}
    args = RLKDConfig(**arguments(folder, arm, reward_funcs=["structure"], **sizes))
    if plans:
        return estimate(memory_plan(args, model, lora(), prompt_tokens=longest, rewards=[letters]))
    return measured(RLKDTrainer(model, [letters], args=args, train_dataset=dataset, peft_config=lora()), dataset)


def kd_run(arm: str, folder: Path, quick: bool, plans: bool) -> dict[str, Any]:
    """Distillation on the teacher's traces."""
    from trainers import ValidityKDConfig, ValidityKDTrainer
    from trainers.validity_kd.memory import memory_plan

    model, tokenizer = student_of("kd", folder, quick)
    dataset, longest = some_prompts("gsm8k-sample", tokenizer)
    sizes: dict[str, Any] = {"per_device_train_batch_size": 2, "lmbda": 0.0}
    if arm == "both 4 bit":
        sizes["teacher_model_init_kwargs"] = FOUR_BIT
    teacher = model if quick else "embedded-expert"
    args = ValidityKDConfig(**arguments(folder, arm, teacher=teacher, max_completion_length=96, **sizes))
    if plans:
        return estimate(memory_plan(args, model, lora(), prompt_tokens=longest))
    return measured(ValidityKDTrainer(model, args=args, train_dataset=dataset, peft_config=lora()), dataset)


def gsrm_run(arm: str, folder: Path, quick: bool, plans: bool) -> dict[str, Any]:
    """Fine-tuning of a structure model with the fine-grained loss."""
    from trl import ModelConfig, SFTConfig

    from recipes.gsrm import GSRMScriptArguments, build, prepare
    from rlkd.data.loading import load_rows

    model, tokenizer = student_of("kd", folder, quick)
    dataset, _ = some_prompts("gsm8k-sample", tokenizer)
    script = GSRMScriptArguments(fine_grained=True, copies=1)
    args = SFTConfig(**arguments(folder, "full", per_device_train_batch_size=2, max_length=1024))
    adapter = {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
    bits = FOUR_BIT if arm == "4 bit" else {}
    settings = ModelConfig(model_name_or_path=model, lora_target_modules=["all-linear"], **adapter, **bits)
    pairs = prepare(script, args, settings, load_rows("gsm8k-sample")[:16])
    return measured(build(script, args, settings, pairs), dataset)


def measured(trainer: Any, texts: Any) -> dict[str, Any]:
    """Train for the steps of a run; its figures."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    loaded = harness.peak_mib()
    held = model_bytes(trainer.model) + model_bytes(getattr(trainer, "teacher_model", None))
    trainer.train()
    peak = harness.peak_mib()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "peak_gib": round(peak / 1024, 3),
        "loaded_gib": round(loaded / 1024, 3),
        "held_mib": round(held / 2**20, 1),
        "loss": [round(entry["loss"], 5) for entry in steps],
        "grad_norm": [round(entry["grad_norm"], 4) for entry in steps],
        "text_loss": round(text_loss(trainer, texts), 4),
    }


def estimate(plan: Any) -> dict[str, Any]:
    """The estimate of a run."""
    found = planned(plan)
    return {"estimated_gib": round(found["bytes"] / GIB, 3), "phase": found["phase"]}


def model_bytes(model: Any) -> int:
    """Bytes of a model's parameters and buffers, with the scales of weights in 4 bit; tied ones once."""
    if model is None:
        return 0
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        tensors += [] if state is None else [state.absmax]
    return bytes_of(tensors)


def text_loss(trainer: Any, texts: Any) -> float:
    """The mean cross-entropy of the first four rationales after their prompts, in nats per token."""
    import torch

    model, tokenizer = trainer.model.eval(), trainer.processing_class
    total, count = 0.0, 0
    with torch.no_grad():
        for row in texts.select(range(4)):
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = tokenizer(prompt + row["rationales"][0], add_special_tokens=False)["input_ids"]
            labels = [-100] * len(given) + ids[len(given) :]
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            total += float(loss) * (len(ids) - len(given))
            count += len(ids) - len(given)
    return total / count


# Sharded weights against whole ones


def sharded_run(arm: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Distillation of all weights from a small teacher: parameters, gradients and states are nearly all memory."""
    processes = 1 if arm == "one process" else 2
    if processes == 2:
        allow_cpu()
    import torch
    from transformers import PrinterCallback, TrainerCallback

    from tiny import save_llama
    from trainers import ValidityKDConfig, ValidityKDTrainer

    model, tokenizer = student_of("kd", folder, quick)
    dataset, _ = some_prompts("gsm8k-sample", tokenizer)
    teacher = save_llama(folder / "teacher", tokenizer, seed=1, initializer_range=0.2, tie_word_embeddings=True)
    sizes: dict[str, Any] = {"per_device_train_batch_size": 4 // processes, "max_completion_length": 48, "lmbda": 0.0}
    sizes |= {"tau": "adapt", "v_0": 0.0, "use_cpu": processes == 1, "optim": "adamw_torch", "learning_rate": 1e-5}
    args = ValidityKDConfig(**arguments(folder, arm, **sizes))
    trainer = ValidityKDTrainer(model, teacher, args, dataset)
    trainer.remove_callback(PrinterCallback)
    counted: dict[str, int] = {}

    class Counting(TrainerCallback):
        """Counts after an optimizer step, before its gradients go."""

        loaded = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.loaded:
                self.loaded = harness.peak_mib()
                harness.reset_peak()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            counted.update(held_bytes(trainer))

    counting = Counting()
    trainer.add_callback(counting)
    trainer.train()
    own = [harness.peak_mib(), counting.loaded, *(value / 2**20 for value in counted.values())]
    every = trainer.accelerator.gather(torch.tensor([own])).reshape(processes, -1).T.tolist()
    rounded = [[round(value, 1) for value in values] for values in every]
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    trainer.accelerator.wait_for_everyone()
    return {
        "peak_gib": [round(max(pair) / 1024, 3) for pair in zip(*every[:2], strict=True)],
        "loaded_gib": [round(peak / 1024, 3) for peak in every[1]],
        "steps_gib": [round(peak / 1024, 3) for peak in every[0]],
        "held_mib": [round(sum(values), 1) for values in zip(*every[2:], strict=True)],
        **{f"{name}_mib": values for name, values in zip(counted, rounded[2:], strict=True)},
        "loss": [entry["loss"] for entry in steps],
        "grad_norm": [float(entry["grad_norm"]) for entry in steps],
    }


def held_bytes(trainer: Any) -> dict[str, int]:
    """Bytes of the student's parameters and gradients and of the optimizer's states that are in this process."""
    import torch

    parameters = list(trainer.model.parameters())
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        inner = optimizer.optimizer
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO's, which has a copy of its parameters, too
            states = [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
            return {
                "parameters": bytes_of(parameter.ds_tensor for parameter in parameters),
                "gradients": bytes_of([optimizer.grad_partitions_flat_buffer]),
                "optimizer": bytes_of([*optimizer.fp32_partitioned_groups_flat, *states]),
            }
        optimizer = inner
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "parameters": bytes_of(parameters),
        "gradients": bytes_of(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer": bytes_of(states),
    }


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors that are in this process, each once; of sharded ones, this process's piece."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(one): one for one in local}.values())


def arguments(folder: Path, arm: str, **changes: Any) -> dict[str, Any]:
    """Arguments of a config: three steps, and the student in 4 bit where the arm has it."""
    from tiny import training_arguments

    values: dict[str, Any] = {"max_steps": 3, "learning_rate": 2e-4}
    if arm.endswith("4 bit"):
        values["model_init_kwargs"] = FOUR_BIT
    return training_arguments(folder / "run", **values | changes)


if __name__ == "__main__":
    sys.exit(main())
