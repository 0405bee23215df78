"""Ends a run after a checkpoint once a reward or a validity scorer has failed too often."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from rlkd.errors import UsageError


def check_failure_limits(most: float | None, window: int) -> None:
    """Check `max_failure_rate` and `failure_window`; raises `UsageError`."""
    if most is not None and not 0 <= most <= 1:
        raise UsageError(f"max_failure_rate {most}: expected a share from 0 to 1, or null")
    if window < 1:
        raise UsageError(f"failure_window {window}: expected at least 1 generation batch")


class FailureWatch(TrainerCallback):
    """Watches the share of failures of each reward or scorer over the last generation batches.

    A share counts once the window is full, so that one bad batch at the start does not end the run.

    Args:
        names: of the rewards or the scorer.
        most: the highest share allowed, in [0, 1]; None for any.
        window: generation batches in the share.
    """

    def __init__(self, names: Sequence[str], most: float | None, window: int):
        self.names = list(names)
        self.most = most
        self._batches: deque[tuple[list[int], int]] = deque(maxlen=window)
        self.error = ""
        """Why the run ends; empty while it may go on."""

    def add(self, failed: Sequence[int], total: int) -> tuple[str, int, int] | None:
        """Count a batch: failures of each name among `total`. Returns the worst above the limit, failed and all."""
        self._batches.append((list(failed), total))
        if not self.names or self.most is None or self.error or len(self._batches) < (self._batches.maxlen or 1):
            return None  # without names, an environment brings the only reward
        total = sum(size for _, size in self._batches)
        counts = [sum(counts[column] for counts, _ in self._batches) for column in range(len(self.names))]
        worst = max(range(len(self.names)), key=counts.__getitem__)
        return (self.names[worst], counts[worst], total) if counts[worst] > self.most * total else None

    def end_run(self, what: str, failed: int, total: int, unit: str, cause: str) -> None:
        """End the run at the next checkpoint; `what` failed on so many of all `unit`s (plural)."""
        window = self._batches.maxlen
        batches = "generation batch" if window == 1 else f"{window} generation batches"
        self.error = (
            f"{what} failed on {failed} of {total} {unit} in the last {batches} ({failed / total:.0%}; "
            f"max_failure_rate is {self.most:.0%}). Cause: {cause}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The batches of the window; none after failures that end the run: they do not end the resumed one."""
        return {"batches": [] if self.error else [[failed, total] for failed, total in self._batches]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.error = ""
        self._batches.clear()
        self._batches.extend((list(failed), total) for failed, total in state["batches"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop."""
        if self.error:
            control.should_save = True
            control.should_training_stop = True
        return control

    def explain(self, checkpoint: Any) -> str:
        """The message of the error that the trainer raises once the run has ended."""
        return (
            f"{self.error}. The run ended after a checkpoint, {checkpoint}: fix the cause and continue with "
            f"--resume_from_checkpoint"
        )


class ScorerWatch(FailureWatch):
    """The watch over a validity scorer beside that over rewards: transformers warns of two callbacks of one class."""
