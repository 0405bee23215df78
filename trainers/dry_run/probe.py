"""The probe of a dry run: one real step of the run, in a folder that is removed, for an estimate of its time."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from rlkd.doctor.findings import size
from trainers.dry_run.dry_run import DryRun

# Keys of the training arguments for a step that leaves nothing behind.
_SETTINGS = {
    "max_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": [],
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "save_rollouts": False,
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class ProbeTimes:
    """Seconds of the start, of a step, and of the generation in it."""

    start: float
    step: float
    generation: float

    def per_step(self, window: int) -> float:
        """Seconds of a step on average, where one generation serves `window` steps."""
        return self.step - self.generation + self.generation / window


def show_probe(run: DryRun, args: Any, build: Callable[[], Any], *, steps: int, window: int = 1) -> None:
    """Build the trainer, run one step, discard everything, and print the times. `steps`: of the run."""
    run.section("probe")
    times = measure(args, build)
    generated = f", {times.generation:.1f} s of it generation" if times.generation else ""
    run.line("start", f"{times.start:.1f} s to load and build")
    run.line("step", f"{times.step:.1f} s{generated} (the first step of a process; later ones are often faster)")
    total = steps * times.per_step(window)
    run.line("run", f"{steps} steps take about {duration(total)}, without evaluations and checkpoints")
    run.line("memory", peak_memory())


def measure(args: Any, build: Callable[[], Any]) -> ProbeTimes:
    """One step of the trainer that `build` makes of the training arguments `args`, which are changed."""
    from transformers import PrinterCallback

    with TemporaryDirectory(prefix="rlkd-probe-") as folder:
        args.output_dir = folder
        args.resume_from_checkpoint = None
        for name, value in _SETTINGS.items():
            if hasattr(args, name):
                kept = getattr(args, name)
                setattr(args, name, type(kept)(value) if hasattr(kept, "value") else value)
        began = time.perf_counter()
        trainer = build()
        built = time.perf_counter()
        if hasattr(trainer, "remove_callback"):  # without a progress bar, transformers prints all metrics
            trainer.remove_callback(PrinterCallback)
        spent = _timed(trainer, "_generate")
        trainer.train()
        ended = time.perf_counter()
    return ProbeTimes(built - began, ended - built, sum(spent))


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(40), duration(600), duration(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def peak_memory() -> str:
    """The most memory that this process has held."""
    import torch

    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)} at most in this process"
    if torch.cuda.is_available():
        text += f", {size(torch.cuda.max_memory_allocated())} on its GPU"
    return text


def _timed(trainer: Any, name: str) -> list[float]:
    """The seconds of each call of a method, in a list that grows; empty where the trainer has no such method."""
    spent: list[float] = []
    method = getattr(trainer, name, None)
    if method is None:
        return spent

    def call(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **keywords)
        finally:
            spent.append(time.perf_counter() - began)

    setattr(trainer, name, call)
    return spent
