"""The share of a judge's time that `reward_prefetch` hides behind the forward passes.

    python benchmarks/reward_prefetch.py            # 6 rounds of 6 steps, about two minutes
    python benchmarks/reward_prefetch.py --quick    # 1 round of 4 steps

With beta > 0, TRL computes the log-probabilities of a reference model between generation and rewards. The judge sleeps
for 0.8 of that window. Timed is each step but the first, from the end of the generation to the end of the rewards:

    hidden_share = 1 - (time of the arm - time without a judge) / the judge's delay    (medians over all steps)

Exits with 1 if not all arms end with the same parameters, bit for bit; in the full form also if less than 0.9 is
hidden with the flag, or more than 0.1 without.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import asyncio
import sys
import tempfile
import time
from functools import partial
from statistics import median
from typing import Any

import torch

from tiny import letters, questions, training_arguments
from trainer_overhead import same, save_model
from trainers import RLKDConfig, RLKDTrainer

SHARE_OF_WINDOW = 0.8


class SlowReward:
    """An asynchronous reward that depends on the text and takes its time."""

    __name__ = "judge"

    def __init__(self, delay: float):
        self.delay = delay

    async def __call__(self, completions: Any, **columns: Any) -> list[float]:
        """Score a batch."""
        await asyncio.sleep(self.delay)
        return letters(completions)


class Timed(RLKDTrainer):
    """Records, for each step, the seconds from the end of the generation to the end of the rewards."""

    def __init__(self, *arguments: Any, **settings: Any):
        self.seconds: list[float] = []
        super().__init__(*arguments, **settings)

    def _generate(self, *arguments: Any, **settings: Any) -> Any:
        generated = super()._generate(*arguments, **settings)
        self.generated = time.perf_counter()
        return generated

    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments)
        self.seconds.append(time.perf_counter() - self.generated)
        return rewards


def main() -> int:
    parser = argparse.ArgumentParser(description="Time of a judge that reward_prefetch hides.")
    quick = harness.parse(parser, quick="1 round of 4 steps").quick
    rounds, steps = (1, 4) if quick else (6, 6)
    harness.quiet()
    equal = True
    with tempfile.TemporaryDirectory(prefix="rlkd-prefetch-") as folder:
        trained = partial(train, save_model(f"{folder}/model"), folder, steps)
        first, reference = trained(delay=0.0, prefetch=False)
        delay = SHARE_OF_WINDOW * median(first)
        arms = {
            "no judge": partial(trained, delay=0.0, prefetch=False),
            "off": partial(trained, delay=delay, prefetch=False),
            "on": partial(trained, delay=delay, prefetch=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for results in harness.in_turn(arms, rounds):
            for name, (found, parameters) in results.items():
                seconds[name] += found
                equal &= same(reference, parameters)
    window, off, on = (median(seconds[name]) for name in ("no judge", "off", "on"))
    hidden = {"off": 1 - (off - window) / delay, "on": 1 - (on - window) / delay}
    print(f"window {window:.3f} s, judge {delay:.3f} s; with the judge {off:.3f} s, with prefetch {on:.3f} s")
    print(f"hidden without the flag {hidden['off']:.1%}, with it {hidden['on']:.1%}; same parameters {equal}")
    figures = {
        "hidden_share": round(hidden["on"], 3),
        "hidden_share_off": round(hidden["off"], 3),
        "window_s": round(window, 3),
        "delay_s": round(delay, 3),
        "parameters_equal": equal,
        "rounds": rounds,
        "steps": steps,
    }
    bounds = {
        "parameters_equal": equal,
        "hidden_share >= 0.9": quick or hidden["on"] >= 0.9,
        "hidden_share_off <= 0.1": quick or abs(hidden["off"]) <= 0.1,
    }
    return harness.report(figures, bounds)


def train(
    model: str, folder: str, steps: int, *, delay: float, prefetch: bool
) -> tuple[list[float], list[torch.Tensor]]:
    sizes = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 96, "max_steps": steps}
    settings = training_arguments(tempfile.mkdtemp(dir=folder), beta=0.05, reward_prefetch=prefetch, **sizes)
    args = RLKDConfig(**settings | {"seed": 3})
    trainer = Timed(model, reward_funcs=SlowReward(delay), args=args, train_dataset=questions())
    _, parameters = harness.train(trainer)
    return trainer.seconds[1:], parameters


if __name__ == "__main__":
    sys.exit(main())
