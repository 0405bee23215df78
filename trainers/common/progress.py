"""The progress bar of a training run, with one readable line per step, and lines for what takes minutes within one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import ProgressCallback

Line = Callable[[int, int, Mapping[str, Any]], str | None]


class StepLine(ProgressCallback):
    """The progress bar with a line per step, made of (step, last step, metrics); None for logs of no step."""

    def __init__(self, line: Line):
        super().__init__()
        self.line = line

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line."""
        text = self.line(state.global_step, state.max_steps, logs) if logs else None
        if text is not None and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(text)


class Tenths:
    """Says how far a long job is: calls `write` whenever another tenth of `total` items is done, but the last."""

    def __init__(self, what: str, total: int, write: Callable[[str], object]):
        self.what, self.total, self.write = what, total, write
        self.done = 0

    def __call__(self, count: int) -> None:
        """Another `count` items are done."""
        before, self.done = self.done, self.done + count
        if 10 * self.done // self.total > 10 * before // self.total and self.done < self.total:
            self.write(f"{self.what}: {self.done / self.total:.0%} done")
