"""When failing rewards should end a run, and what rewards have to do with each other: plain arithmetic.

Shape letters: N completions of the whole generation batch (all processes, groups in a row), G completions a group, F
rewards.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards import RewardError


class TooManyFailures(RewardError):
    """A reward failed on more samples than `max_failure_rate` allows; raised when a checkpoint has been written."""


class FailureWatch:
    """The share of failed samples of each reward over the last generation batches.

    A share counts once the window is full, so that one bad batch at the start ends nothing. It starts anew when a run
    resumes: what was mended is not held against it.

    Args:
        names: of the rewards.
        most: the highest share that is let pass, in [0, 1]; None for any.
        window: generation batches that are looked at together.
    """

    def __init__(self, names: Sequence[str], most: float | None, window: int):
        self.names = list(names)
        self.most = most
        self._batches: deque[tuple[list[int], int]] = deque(maxlen=window)

    def add(self, failed_NF: Tensor) -> tuple[str, int, int] | None:
        """Take in a batch (booleans); the worst reward beyond the limit with its failed and all samples, or None."""
        self._batches.append((failed_NF.sum(dim=0).tolist(), failed_NF.shape[0]))
        if self.most is None or len(self._batches) < (self._batches.maxlen or 1):
            return None
        total = sum(size for _, size in self._batches)
        failed = [sum(counts[column] for counts, _ in self._batches) for column in range(len(self.names))]
        worst = max(range(len(self.names)), key=failed.__getitem__)
        return (self.names[worst], failed[worst], total) if failed[worst] > self.most * total else None


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed sample."""

    reward: str
    cause: str
    row: str


def describe_failures(
    name: str, failed: int, total: int, most: float, window: int, recent: Sequence[Failure], checkpoint: str
) -> str:
    """The message that a run ends with: the reward, the commonest cause, five samples, and the way on."""
    own = [failure for failure in recent if failure.reward == name]
    causes = Counter(failure.cause for failure in own).most_common(1)
    cause = f"{causes[0][0]} ({causes[0][1]} of the {len(own)} in the last batch)" if causes else "see the rollouts"
    rows = ", ".join(list(dict.fromkeys(failure.row for failure in own))[:5])
    batches = "generation batch" if window == 1 else f"{window} generation batches"
    return (
        f"reward {name!r} failed on {failed} of {total} completions in the last {batches} ({failed / total:.0%}; "
        f"max_failure_rate is {most:.0%}). Cause: {cause}. Samples of rows: {rows or 'unknown'}. The run was ended "
        f"after a checkpoint, {checkpoint}: mend the cause and go on with --resume_from_checkpoint"
    )


def zero_spread(rewards_NF: Tensor, group_size: int) -> list[float]:
    """For each reward, the share of groups in which all observed entries are equal (NaN: no group has two)."""
    groups_MGF = rewards_NF.view(-1, group_size, rewards_NF.shape[1])
    seen_MGF = ~torch.isnan(groups_MGF)
    low_MF = groups_MGF.masked_fill(~seen_MGF, math.inf).amin(dim=1)
    high_MF = groups_MGF.masked_fill(~seen_MGF, -math.inf).amax(dim=1)
    counted_MF = seen_MGF.sum(dim=1) >= 2
    flat_F = ((low_MF == high_MF) & counted_MF).sum(dim=0)
    return [
        flat / counted if counted else math.nan
        for flat, counted in zip(flat_F.tolist(), counted_MF.sum(dim=0).tolist(), strict=True)
    ]


def correlations(rewards_NF: Tensor) -> dict[tuple[int, int], float]:
    """Pearson's correlation of each pair of rewards over the samples that both scored; none where it is undefined."""
    found = {}
    for first in range(rewards_NF.shape[1]):
        for second in range(first + 1, rewards_NF.shape[1]):
            pair_N2 = rewards_NF[:, [first, second]].double()
            pair_N2 = pair_N2[~torch.isnan(pair_N2).any(dim=1)]
            spread = pair_N2.std(dim=0) if len(pair_N2) > 2 else torch.zeros(2)
            if (spread > 0).all():
                value = torch.corrcoef(pair_N2.T)[0, 1].item()
                if math.isfinite(value):
                    found[first, second] = value
    return found
