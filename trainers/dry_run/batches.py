"""How rows become steps: what a step takes, how often completions are generated, and the steps of an epoch and a run.

The arithmetic is that of TRL's samplers and transformers' `Trainer`, which drop an incomplete generation batch of
rollouts, and keep an incomplete batch of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainers.dry_run.dry_run import DryRun


@dataclass(frozen=True)
class StepPlan:
    """The steps of a run.

    `rows`: rows of the data; `batch`: rows of a generation batch (a step, for plain training); `window`: optimizer
    steps on one generation batch; `drops`: whether an incomplete batch is left out; `max_steps`: of the config, below
    1 for `epochs`.
    """

    rows: int
    batch: int
    window: int = 1
    drops: bool = True
    max_steps: int = -1
    epochs: float = 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        batches = self.rows // self.batch if self.drops else math.ceil(self.rows / self.batch)
        return batches * self.window

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.epochs * self.steps_per_epoch)

    @property
    def left_out(self) -> int:
        """Rows that an epoch leaves out; other ones in each epoch."""
        return self.rows % self.batch if self.drops else 0

    def lines(self) -> Iterator[tuple[str, str]]:
        """The steps of an epoch and of the run."""
        left = f"; {self.left_out} rows are left out (less than a batch)" if self.left_out else ""
        run = f"{self.steps} steps"
        if self.steps_per_epoch:
            run += f", {self.steps / self.steps_per_epoch:.2g} epochs"
        yield "epoch", f"{self.rows} rows are {self.steps_per_epoch} steps{left}"
        yield "run", run + (" (max_steps)" if self.max_steps > 0 else f" (num_train_epochs {self.epochs:g})")


def show_steps(run: DryRun, plan: StepPlan, factors: str) -> None:
    """Print the steps of a run. `factors`: what a step takes, in words."""
    run.section("steps")
    run.line("step", factors)
    run.figures(dict(plan.lines()))


def rollout_plan(args: Any, rows: int) -> tuple[StepPlan, str]:
    """The steps of RLKD, and what a step takes."""
    batch = args.generation_batch_size // args.num_generations
    repeats = args.num_iterations * args.steps_per_generation
    per_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    window = max(1, repeats // args.gradient_accumulation_steps)
    generated = f"{batch} prompts x {args.num_generations} completions = {batch * args.num_generations}"
    often = "each step" if window == 1 else f"every {window} steps (num_iterations {args.num_iterations})"
    factors = (
        f"{per_step} completions (per_device_train_batch_size {args.per_device_train_batch_size} x {processes(args)} "
        f"x gradient_accumulation_steps {args.gradient_accumulation_steps})\n"
        f"{generated} are generated {often}"
    )
    return StepPlan(rows, batch, window, True, args.max_steps, args.num_train_epochs), factors


def distillation_plan(args: Any, rows: int) -> tuple[StepPlan, str]:
    """The steps of a distillation, and what a step takes."""
    factors = (
        f"{args.generation_batch} rows (per_device_train_batch_size {args.per_device_train_batch_size} x "
        f"{processes(args)} x gradient_accumulation_steps {args.gradient_accumulation_steps}); "
        f"{args.lmbda:.0%} of the steps on the student's rollouts, the others on the teacher's traces"
    )
    return StepPlan(rows, args.generation_batch, 1, True, args.max_steps, args.num_train_epochs), factors


def example_plan(args: Any, rows: int) -> tuple[StepPlan, str]:
    """The steps of a fine-tuning, and what a step takes."""
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    factors = (
        f"{batch} examples (per_device_train_batch_size {args.per_device_train_batch_size} x {processes(args)} "
        f"x gradient_accumulation_steps {args.gradient_accumulation_steps})"
    )
    if args.packing:
        factors += "; packing: true puts several examples into a row, so that there are fewer steps than below"
    return StepPlan(rows, batch, 1, False, args.max_steps, args.num_train_epochs), factors


def processes(args: Any) -> str:
    """The number of processes in words."""
    return f"{args.world_size} process{'es' * (args.world_size != 1)}"
