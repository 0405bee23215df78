"""The progress bar of a training run, with one readable line per step."""

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
