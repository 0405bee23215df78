"""Ends a run after a checkpoint once a reward has failed too often."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rewards import RewardError
from rewards.batch import Failure

if TYPE_CHECKING:
    from torch import Tensor


class TooManyFailures(RewardError):
    """A reward failed on more samples than `max_failure_rate` allows; raised after a checkpoint was written."""


class FailureWatch(TrainerCallback):
    """Watches the share of failed samples of each reward over the last generation batches.

    A share counts once the window is full, so that one bad batch at the start does not end the run.

    Args:
        names: of the rewards.
        most: the highest share allowed, in [0, 1]; None for any.
        window: generation batches in the share.
        steps: optimizer steps per generation batch; a checkpoint between two batches would not resume exactly.
    """

    def __init__(self, names: Sequence[str], most: float | None, window: int, steps: int = 1):
        self.names = list(names)
        self.most = most
        self.steps = steps
        self._batches: deque[tuple[list[int], int]] = deque(maxlen=window)
        self.error = ""
        """Why the run ends; empty while it may go on."""

    def add(self, failed_NF: Tensor) -> tuple[str, int, int] | None:
        """Count a batch (booleans); returns the worst reward above the limit with its failed and all samples."""
        self._batches.append((failed_NF.sum(dim=0).tolist(), failed_NF.shape[0]))
        if not self.names or self.most is None or self.error or len(self._batches) < (self._batches.maxlen or 1):
            return None  # without names, an environment brings the only reward
        total = sum(size for _, size in self._batches)
        failed = [sum(counts[column] for counts, _ in self._batches) for column in range(len(self.names))]
        worst = max(range(len(self.names)), key=failed.__getitem__)
        return (self.names[worst], failed[worst], total) if failed[worst] > self.most * total else None

    def end_run(self, name: str, failed: int, total: int, recent: Sequence[Failure]) -> None:
        """End the run at the next checkpoint; `recent`: the failures of the last batch on all processes."""
        own = [failure for failure in recent if failure.reward == name]
        causes = Counter(failure.cause for failure in own).most_common(1)
        cause = (
            f"{causes[0][0]} ({causes[0][1]} of the {len(own)} in the last batch)" if causes else "see the rollouts"
        )
        rows = ", ".join(list(dict.fromkeys(failure.row for failure in own))[:5])
        window = self._batches.maxlen
        batches = "generation batch" if window == 1 else f"{window} generation batches"
        self.error = (
            f"reward {name!r} failed on {failed} of {total} completions in the last {batches} ({failed / total:.0%}; "
            f"max_failure_rate is {self.most:.0%}). Cause: {cause}. Samples of rows: {rows or 'unknown'}"
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run is not ended for the failures that ended the interrupted one."""
        self.error = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop at the end of what one batch of rollouts serves."""
        if self.error and (state.global_step % self.steps == 0 or state.global_step >= state.max_steps):
            control.should_save = True
            control.should_training_stop = True
        return control
