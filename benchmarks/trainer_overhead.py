"""The overhead of RLKDTrainer, with its defaults, over TRL's GRPOTrainer for the same work.

    python benchmarks/trainer_overhead.py            # 18 rounds of 4 steps, about three minutes
    python benchmarks/trainer_overhead.py --quick    # 1 round of 2 steps

The arms of `ARMS` have the same model, data, seed and deterministic reward (`harness.StockComparison`). The model is
small, so that a fixed cost per step is more visible than with a useful one. Exits with 1 if not all arms end with the
same parameters, bit for bit.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tiny import letters, questions, save_llama, training_arguments
from trainers import RLKDConfig, RLKDTrainer

ARMS = {"stock A": (GRPOTrainer, GRPOConfig), "stock B": (GRPOTrainer, GRPOConfig), "ours": (RLKDTrainer, RLKDConfig)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure RLKDTrainer against GRPOTrainer.")
    rounds, steps, quick = harness.stock_size(parser)
    harness.quiet()
    with tempfile.TemporaryDirectory(prefix="rlkd-overhead-") as folder:
        model = save_model(f"{folder}/model")
        before = [p.detach() for p in AutoModelForCausalLM.from_pretrained(model).parameters()]
        arms = {name: partial(train, *arm, model, Path(folder), steps) for name, arm in ARMS.items()}
        comparison = harness.StockComparison(arms, rounds, steps)
        reference: list[torch.Tensor] = []
        equal = True
        for ends in comparison.run():
            reference = reference or ends["stock A"]
            equal &= all(same(reference, parameters) for parameters in ends.values())
    moved = not same(before, reference)
    figures = comparison.figures(quick)
    pairs = zip(comparison.seconds["ours"], comparison.stock, strict=True)
    extra_ms = median((ours - stock) / steps * 1000 for ours, stock in pairs)
    print(f"extra per step     {extra_ms:.1f} ms of CPU time")
    print(f"same parameters    {equal}, after {steps} steps that {'changed' if moved else 'did NOT change'} them")
    figures |= {"extra_ms_per_step": round(extra_ms, 2), "parameters_equal": equal and moved}
    return harness.report(figures, {"parameters_equal": equal and moved})


def save_model(folder: str) -> str:
    """A random Llama of 4 layers over single bytes (3 million parameters)."""
    layers = {"num_hidden_layers": 4, "num_attention_heads": 4}
    return save_llama(folder, hidden_size=256, intermediate_size=688, max_position_embeddings=1024, **layers)


def train(
    trainer_class: Any, config_class: Any, model: str, folder: Path, steps: int
) -> tuple[float, list[torch.Tensor]]:
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 64, "max_steps": steps}
    args = config_class(**training_arguments(tempfile.mkdtemp(dir=folder), **sizes))
    args.fast_path = "never"  # TRL's own computation
    return harness.train(trainer_class(model, reward_funcs=letters, args=args, train_dataset=questions()))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
