"""How much of a judge's time hides behind the forward passes with `reward_prefetch`.

    python benchmarks/reward_prefetch.py            # 6 rounds of 6 steps, about two minutes
    python benchmarks/reward_prefetch.py --quick    # 1 round of 4 steps

Compared: three arms with the same model, data, seed and beta > 0, so that TRL computes the log-probabilities of a
reference model between generating and asking the rewards.

    no judge     the reward answers at once; this measures the window between generation and rewards
    off          the judge takes 0.8 of that window, asked when TRL asks
    on           the same judge, with reward_prefetch

The judge is asynchronous and sleeps, as one that waits for a server does. What counts is the wall time from the end of
the generation to the end of the rewards, a step; a first round sets the judge's delay, and the first step of each arm
and round is left out. Arms take turns, in an order that changes from round to round.

    hidden_share = 1 - (time of the arm - time without a judge) / the judge's delay    (medians over all steps)

Printed: both shares, and whether all arms end with the same parameters, bit for bit. Exits with 1 if they do not; in
the full form also if less than 0.9 is hidden with the flag, or more than 0.1 without.
"""

import os

# One thread, and no hub: before torch and huggingface_hub are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from trainer_overhead import questions, save_model
from trainers import RLKDConfig, RLKDTrainer

SHARE_OF_WINDOW = 0.8


class Judge:
    """An asynchronous reward that looks at the text and takes its time."""

    __name__ = "judge"

    def __init__(self, delay: float):
        self.delay = delay

    async def __call__(self, completions: Any, **columns: Any) -> list[float]:
        """Score a batch."""
        await asyncio.sleep(self.delay)
        return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


class Timed(RLKDTrainer):
    """Keeps, for each step, the seconds from the end of the generation to the end of the rewards."""

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
    """Run all arms; print the figures."""
    parser = argparse.ArgumentParser(description="Measure what reward_prefetch hides.")
    parser.add_argument(
        "--quick", action="store_true", help="1 round of 4 steps: a smoke test, its figures say little"
    )
    quick = parser.parse_args().quick
    rounds, steps = (1, 4) if quick else (6, 6)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    seconds: dict[str, list[float]] = {"no judge": [], "off": [], "on": []}
    equal = True
    with tempfile.TemporaryDirectory(prefix="rlkd-prefetch-") as folder:
        model = save_model(Path(folder) / "model")
        first, reference = train(model, Path(folder) / "first", steps, delay=0.0, prefetch=False)
        delay = SHARE_OF_WINDOW * median(first)
        orders = list(itertools.permutations(seconds))
        for turn in range(rounds):
            for name in orders[turn % len(orders)]:
                found, parameters = train(
                    model,
                    Path(folder) / f"{name}-{turn}",
                    steps,
                    delay=0.0 if name == "no judge" else delay,
                    prefetch=name == "on",
                )
                seconds[name] += found
                equal &= all(torch.equal(one, other) for one, other in zip(reference, parameters, strict=True))
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
    print(json.dumps(figures))
    in_bounds = quick or (hidden["on"] >= 0.9 and abs(hidden["off"]) <= 0.1)
    return 0 if equal and in_bounds else 1


def train(
    model: str, output: Path, steps: int, *, delay: float, prefetch: bool
) -> tuple[list[float], list[torch.Tensor]]:
    """Train; return the seconds from generation to rewards of all steps but the first, and the parameters."""
    args = RLKDConfig(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=96,
        max_steps=steps,
        learning_rate=1e-3,
        beta=0.05,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        reward_prefetch=prefetch,
        seed=3,
    )
    trainer = Timed(model, reward_funcs=Judge(delay), args=args, train_dataset=questions())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.seconds[1:], [parameter.detach().clone() for parameter in trainer.model.parameters()]


if __name__ == "__main__":
    sys.exit(main())
