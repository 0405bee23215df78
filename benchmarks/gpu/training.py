"""Training steps at the shapes of Qwen2.5-0.5B and 1.5B: seconds, tokens per second, memory and its estimate."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from gpu.day import GpuDay, now, peak_gb, reset_peak
from gpu.models import SHAPES, build_model, longest_prompt, lora, save_model, sums, traces
from rlkd.files import read_records
from tiny import byte_tokenizer, letters, training_arguments


def rlkd_small(day: GpuDay) -> Iterator[dict[str, Any]]:
    """RLKD steps with LoRA at 0.5B."""
    return rlkd(day, "0.5b")


def rlkd_large(day: GpuDay) -> Iterator[dict[str, Any]]:
    """RLKD steps with LoRA at 1.5B."""
    return rlkd(day, "1.5b")


def rlkd(day: GpuDay, name: str) -> Iterator[dict[str, Any]]:
    """RLKD steps with LoRA on a model that is built in memory."""
    shape = SHAPES[day.pick(name, "tiny")]
    model = build_model(shape, day.device)
    yield from measure(day, model=model, processing_class=byte_tokenizer(shape.vocab_size))


def bitsandbytes(day: GpuDay) -> Iterator[dict[str, Any]]:
    """RLKD steps with LoRA on 4-bit weights at 0.5B."""
    import torch
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        model = save_model(SHAPES["0.5b"], Path(folder), "cuda", "bfloat16")
        reset_peak()
        changes = {"model_init_kwargs": {"dtype": "bfloat16", "device_map": {"": 0}}}
        yield from measure(day, model=model, quantization_config=four_bits, changes=changes)


def vllm(day: GpuDay) -> Iterator[dict[str, Any]]:
    """RLKD steps with generation by vLLM in this process, and how far its log-probabilities are from the trainer's."""
    changes = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.35,
        "vllm_max_model_length": 1024,
        "model_init_kwargs": {"dtype": "bfloat16"},
    }
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        model = save_model(SHAPES["0.5b"], Path(folder), "cuda", "bfloat16")
        yield from measure(day, model=model, changes=changes)


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


def measure(
    day: GpuDay, *, changes: dict[str, Any] | None = None, **trainer_arguments: Any
) -> Iterator[dict[str, Any]]:
    """Four groups of eight completions a step, with LoRA; the first step warms up and counts for the peak only."""
    from trainers import RLKDConfig, RLKDTrainer
    from trainers.rlkd.memory import memory_plan

    watch, marks = Stopwatch(), step_marks()
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        values = settings(day, Path(folder), num_generations=8, gradient_accumulation_steps=day.pick(4, 1))
        args = RLKDConfig(**values | (changes or {}))
        model = trainer_arguments["model"]
        if not isinstance(model, str):
            prompt = longest_prompt(trainer_arguments["processing_class"], sums())
            plan = memory_plan(args, model, lora(), prompt_tokens=prompt, rewards=[watch], device="cuda")
            yield estimated(plan)
        trainer = RLKDTrainer(
            reward_funcs=watch,
            args=args,
            train_dataset=sums(),
            peft_config=lora(),
            callbacks=[marks],
            **trainer_arguments,
        )
        trainer.train()
        *_, last = read_records(trainer.metrics_path)
    steps = marks.seconds()[1:]
    generation = [called - begin for begin, called in zip(marks.begun, watch.called_at, strict=True)][1:]
    tokens = median(watch.tokens[1:])
    yield {
        "step_s": round(median(steps), 3),
        "generation_s": round(median(generation), 3),
        "first_step_s": round(marks.ended[0] - marks.begun[0], 3),
        "completions_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "tokens_per_step": int(tokens),
        "tokens_per_s": round(tokens / median(steps), 1),
        "generation_tokens_per_s": round(tokens / median(generation), 1),
        "peak_gb": peak_gb(),
        "grad_norm": last["grad_norm"],
        **{key: value for key, value in last.items() if key.startswith("sampling/")},
    }
    if not (math.isfinite(last["grad_norm"]) and last["grad_norm"] > 0):
        raise AssertionError(f"the gradient norm of the last step is {last['grad_norm']}")


def kd(day: GpuDay) -> Iterator[dict[str, Any]]:
    """Distillation steps with LoRA at 0.5B from 1.5B, on traces and on rollouts, by our divergence and TRL's kernel.

    Both start from the same student and traces, so their first losses should agree up to rounding. Raises
    `AssertionError` where they do not, or where a loss or a gradient is no number.
    """
    from trainers.validity_kd.draws import writes_itself

    # Two steps on traces, then two on rollouts: the first one of each warms up.
    coins = [False, False, True, True]
    seed = next(seed for seed in range(1000) if [writes_itself(0.5, seed, step) for step in range(4)] == coins)
    teacher = build_model(SHAPES[day.pick("1.5b", "tiny")], day.device, seed=1)
    losses = []
    for kernel in ("chunked", "trl"):
        reset_peak()
        student = build_model(SHAPES[day.pick("0.5b", "tiny")], day.device)
        # A random teacher trusts no step: without v_0 = 0 all weights would be close to none.
        figures = distil(day, student, teacher, {"kernel": kernel, "seed": seed, "v_0": 0.0})
        losses.append(figures["first_loss"])
        yield {kernel: figures}
        del student
    difference = abs(losses[0] - losses[1]) / abs(losses[1])
    yield {"loss_difference": difference}
    if not difference < 0.01:
        raise AssertionError(f"the first losses of the two kernels differ: {losses}")


def distil(day: GpuDay, student: Any, teacher: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Four steps: seconds on traces and on rollouts, peak memory (the teacher's too) and its estimate, losses."""
    from trainers import ValidityKDConfig, ValidityKDTrainer
    from trainers.validity_kd.memory import memory_plan

    marks = step_marks()
    tokenizer = byte_tokenizer(student.config.vocab_size)
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as folder:
        args = ValidityKDConfig(**settings(day, Path(folder), max_steps=4, lmbda=0.5, **changes))
        prompt = longest_prompt(tokenizer, sums())
        plan = memory_plan(args, student, lora(), prompt_tokens=prompt, teacher=teacher, device="cuda")
        trainer = ValidityKDTrainer(
            student,
            teacher,
            args,
            train_dataset=traces(),
            processing_class=tokenizer,
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
    return estimated(plan) | {
        "traces_step_s": round(seconds[0.0], 3),
        "rollouts_step_s": round(seconds[1.0], 3),
        "completions_per_step": args.per_device_train_batch_size,
        "rollouts_tokens_per_s": round(
            args.per_device_train_batch_size * args.max_completion_length / seconds[1.0], 1
        ),
        "peak_gb": peak_gb(),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "weighted_steps": sum(len(record["steps"]) for record in records),
    }


def estimated(plan: Any) -> dict[str, Any]:
    """The figures of an estimate of memory, which is `--dry_run`'s."""
    return {"estimated_gb": round(plan.peak.total / 1e9, 2), "estimated_phase": plan.peak.name}


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


def settings(day: GpuDay, output: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of a config: bf16 on a GPU, micro-batches of eight completions of 256 tokens."""
    values = {
        "use_cpu": day.smoke,
        "bf16": not day.smoke,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 8,
        "max_completion_length": day.pick(256, 12),
        "max_steps": day.pick(4, 2),
        "learning_rate": 1e-5,
    }
    return training_arguments(output, **values | changes)
