"""What a reward may return, and the outcome of each sample.

The error model of rewards, in full:

1. A number is a score. Booleans and NumPy or torch scalars count as numbers. A `Provisional` number is never cached.
2. `None` means not applicable.
3. `Failed(cause)` for a sample, or an exception for the whole batch, means that the reward failed; so does a score
   that is not finite, a call that takes longer than its limit, and a worker process that dies. It is counted with its
   cause and reaches the trainer as missing.
4. A result of the wrong length, a value of another type, or a column that the data lacks is a mistake in the reward or
   the config. It ends the run at once as a `RewardError` that names the reward.
5. KeyboardInterrupt and cancellation are not failures and pass through.

A reward that knows which steps of a completion earned its score may define a method

    def step_scores(self, completion: str, detail: Mapping[str, Any]) -> Sequence[StepScore]: ...

on the text of a completion and the `detail` of its `Scored`. It is called only where a trainer gives credit to steps.
A method `batch_metrics(outcomes)` returns metrics of a batch by name; NAME is logged as `rewards/REWARD/NAME`.
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
    """Returned instead of a score: the reward failed on this sample."""

    cause: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Returned instead of a number: a score with the facts behind it, which go into the rollouts file."""

    value: float
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepScore:
    """What one step of a completion earned, in the units of the reward, whose sum over steps is the score.

    `place`: the characters [start, stop) of the completion that the step consists of; None where they are unknown.
    """

    value: float
    place: tuple[int, int] | None = None


class Provisional(float):
    """Returned instead of a number: a score that may differ next time, such as after a time limit; never cached."""


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """How the runner treats a reward: declared by the reward, overridden in the config (`reward_options`).

    Args:
        per_sample: the score of a sample depends on that sample alone, and is always the same. Then equal samples are
            scored once, scores are cached, samples are spread over worker processes, and the limit is per sample. Not
            for a reward that compares the completions of a batch or draws random numbers. Such a reward gets
            `completion_ids` only if it names them: they would tell samples of equal text apart.
        isolate: run in worker processes, where a hang can be killed. None: yes for a reward that is named by a spec,
            no for a function that comes as an object (it may hold what no other process can have). Asynchronous
            rewards always run in this process.
        timeout: seconds per call, which is one sample for `per_sample` rewards and a batch for others. None for no
            limit. A synchronous reward that is not isolated cannot be stopped; the log has a warning.
        workers: processes of a `per_sample` reward, concurrent calls of an asynchronous one; others have one.
            Default: `rlkd.workers.pool.default_workers()`, and 64 asynchronous calls.
        cache: cache the scores of a `per_sample` reward across steps and runs.
        version: part of the cache key, for changes that neither the reward's source nor its parameters show.
    """

    per_sample: bool = False
    isolate: bool | None = None
    timeout: float | None = 300.0
    workers: int | None = None
    cache: bool = True
    version: str = "1"

    def __post_init__(self) -> None:
        for option in ("per_sample", "isolate", "cache"):
            value = getattr(self, option)
            if not isinstance(value, bool) and not (option == "isolate" and value is None):
                raise ValueError(f"{option} {value!r}: expected true or false")
        if self.timeout is not None and not (isinstance(self.timeout, (int, float)) and self.timeout > 0):
            raise ValueError(f"timeout {self.timeout!r}: expected seconds above 0, or null for no limit")
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers >= 1):
            raise ValueError(f"workers {self.workers!r}: expected at least 1")


CHEAP = RewardOptions(per_sample=True, isolate=False, timeout=None, cache=False)
"""Options of a pure function of a sample that is too cheap for workers or the cache."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one sample. `value` is set for a score, `cause` for a failure.

    `seconds`: duration of the call that scored this sample. `reused`: where the outcome of an equal sample was found,
    in the same `batch` or in the `cache`. `provisional`: the score is not to be cached.
    """

    status: Literal["score", "not_applicable", "failed"]
    value: float | None = None
    cause: str | None = None
    detail: Mapping[str, Any] | None = None
    seconds: float | None = None
    reused: Literal["batch", "cache"] | None = None
    provisional: bool = False

    def record(self) -> dict[str, Any]:
        """The fields that are set, as the rollouts file has them."""
        values = {name: getattr(self, name) for name in ("status", "value", "cause", "seconds", "reused")}
        detail = {"detail": dict(self.detail)} if self.detail else {}
        return {name: value for name, value in values.items() if value is not None} | detail

    @classmethod
    def of(cls, returned: Any, reward: str, position: int) -> Outcome:
        """Read one returned value; raise `RewardError` for one that the contract does not know."""
        if returned is None:
            return cls("not_applicable")
        if isinstance(returned, Failed):
            return cls("failed", cause=str(returned.cause))
        detail = returned.detail if isinstance(returned, Scored) else None
        if detail is not None:
            detail = {str(k): v for k, v in detail.items()} if isinstance(detail, Mapping) else {"detail": detail}
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
            return cls("failed", cause=f"returned {score}, which is no score")
        return cls("score", value=score, detail=detail, provisional=isinstance(value, Provisional))
