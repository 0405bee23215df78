"""The error that ends a run whose reward fails too often, and the cause that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewards import RewardError
from rewards.batch import Failure


class TooManyFailures(RewardError):
    """A reward failed on more samples than `max_failure_rate` allows; raised after a checkpoint was written."""


def cause_and_rows(name: str, recent: Sequence[Failure]) -> str:
    """The most frequent cause of a reward's failures in the last batch, with the ids of up to five rows."""
    own = [failure for failure in recent if failure.reward == name]
    causes = Counter(failure.cause for failure in own).most_common(1)
    cause = f"{causes[0][0]} ({causes[0][1]} of the {len(own)} in the last batch)" if causes else "see the rollouts"
    rows = ", ".join(list(dict.fromkeys(failure.row for failure in own))[:5])
    return f"{cause}. Samples of rows: {rows or 'unknown'}"
