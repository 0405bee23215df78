"""What a reward may return, and what becomes of it.

The error model of rewards, in full:

1. A number is a score. Booleans and NumPy or torch scalars count as numbers.
2. `None` means not applicable.
3. `Failed(cause)` for a sample, or an exception for the whole batch, means that the reward broke down. It is counted
   with its cause and reaches the trainer as missing.
4. A result of the wrong length, a score that is not finite, a value of another type, or a column that the data lacks
   is a mistake in the reward or the config. It ends the run at once as a `RewardError` that names the reward.
5. KeyboardInterrupt and cancellation are nobody's failure and pass through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlkd.errors import UsageError


class RewardError(UsageError):
    """A reward breaks the contract, or cannot be built; the message names the reward and the way out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Returned in a score's place: the reward broke down on this sample."""

    cause: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Returned in a score's place: a score with the facts it rests on, which go into the rollout log."""

    value: float
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward said of one sample. `value` is set for a score, `cause` for a failure."""

    status: Literal["score", "not_applicable", "failed"]
    value: float | None = None
    cause: str | None = None
    detail: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, returned: Any, reward: str, position: int) -> Outcome:
        """Read one returned value; raise `RewardError` for one that the contract does not know."""
        if returned is None:
            return cls("not_applicable")
        if isinstance(returned, Failed):
            return cls("failed", cause=returned.cause)
        detail = returned.detail if isinstance(returned, Scored) else None
        value = returned.value if isinstance(returned, Scored) else returned
        try:
            score = float(value) if not isinstance(value, str) else None
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a torch tensor of several numbers
            score = None
        if score is None:
            raise RewardError(
                f"reward {reward!r} returned {value!r} ({type(value).__name__}) for sample {position}; "
                f"expected a number, None (not applicable) or Failed('why')"
            )
        if not math.isfinite(score):
            raise RewardError(
                f"reward {reward!r} returned {score} for sample {position}; a score must be finite. "
                f"Return None where there is nothing to judge, Failed('why') where judging broke down."
            )
        return cls("score", value=score, detail=detail)
