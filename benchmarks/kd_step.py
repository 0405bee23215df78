"""Overhead of ValidityKDTrainer over TRL's DistillationTrainer, at weight 1 and with weights.

    python benchmarks/kd_step.py            # 18 rounds of 4 steps, about five minutes
    python benchmarks/kd_step.py --quick    # 1 round of 2 steps

The arms of `ARMS` train with the same model, teacher, data and seed (`harness.StockComparison`); the vocabulary of
8,192 gives the divergence its share of a step. Exits with 1 if the parameters of `ours` are further from TRL's than
1e-3 of what was learnt.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer

from tiny import byte_tokenizer, questions, save_llama, training_arguments
from trainers import ValidityKDConfig, ValidityKDTrainer

ARMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "stock A": (DistillationTrainer, DistillationConfig, {}),
    "stock B": (DistillationTrainer, DistillationConfig, {}),
    "ours": (ValidityKDTrainer, ValidityKDConfig, {"lmbda": 1.0, "control": "uniform", "fast_path": "never"}),
    "weighting": (ValidityKDTrainer, ValidityKDConfig, {"lmbda": 1.0, "fast_path": "never"}),
}
VOCABULARY = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure ValidityKDTrainer against DistillationTrainer.")
    rounds, steps, quick = harness.stock_size(parser)
    harness.quiet()
    tokenizer = byte_tokenizer(VOCABULARY)
    common = {"num_attention_heads": 4, "max_position_embeddings": 1024}
    distance = 0.0
    with tempfile.TemporaryDirectory(prefix="rlkd-kd-step-") as folder:
        student = save_llama(f"{folder}/student", tokenizer, hidden_size=256, num_hidden_layers=4, **common)
        teacher = save_llama(f"{folder}/teacher", tokenizer, hidden_size=384, num_hidden_layers=6, seed=1, **common)
        before = [p.detach() for p in AutoModelForCausalLM.from_pretrained(student).parameters()]
        arms = {name: partial(train, *arm, student, teacher, Path(folder), steps) for name, arm in ARMS.items()}
        comparison = harness.StockComparison(arms, rounds, steps)
        for ends in comparison.run():
            learnt = gap(before, ends["stock A"])
            distance = max(distance, gap(ends["stock A"], ends["ours"]) / learnt)
    figures = comparison.figures(quick)
    print(f"parameters         differ from TRL's by {distance:.2g} of what {steps} steps changed")
    figures["parameter_gap"] = float(f"{distance:.2g}")
    return harness.report(figures, {"parameter_gap < 1e-3": distance < 1e-3})


def train(
    trainer_class: Any,
    config_class: Any,
    settings: dict[str, Any],
    student: str,
    teacher: str,
    folder: Path,
    steps: int,
) -> tuple[float, list[torch.Tensor]]:
    args = config_class(
        **training_arguments(
            tempfile.mkdtemp(dir=folder),
            per_device_train_batch_size=4,
            max_completion_length=48,
            max_steps=steps,
            beta=0.5,
            # Adam's first steps have the size of the learning rate whatever the gradient: rounding would show.
            optim="sgd",
            **settings,
        )
    )
    rows = questions().map(lambda row: {"prompt": row["prompt"][0]["content"]})  # without a chat template
    return harness.train(trainer_class(student, teacher, args=args, train_dataset=rows))


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
