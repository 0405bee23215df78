"""The contract of validity scorers: the interface, and how the trainer calls it; `docs/validity.md` has examples.

A scorer gets a list of questions, "how valid is this step after this prefix?", and returns a number or None for each.
It may instead read the log-probabilities that the run's teacher gives to the tokens of a step, by an optional method
(`TokenLogprobScorer`, `TokenStatisticsScorer`) that the trainer then uses in place of the call.

The error model, in full:

1. A finite number is a validity. On the scale `probability` it lies in [0, 1]; a scorer with the attribute
   `scale = "log"` returns log-probabilities in nats per token.
2. None, nan and infinities mean that the scorer failed on that question: the step gets weight 1, and is counted. Never
   return 0 for a failure: a step is not invalid because a server was down. "undecided" means that the scorer worked
   and has no evidence either way: weight 1 too, and no failure.
3. An exception, or a call beyond its deadline, is a failure on every question of the call, logged with its cause.
4. A result of the wrong length, of another type, or outside the scale is a bug in the scorer. It ends the run with a
   `ValidityError` that names the scorer.
5. A run in which too many questions fail ends after a checkpoint (`max_failure_rate`): with a weight of 1 everywhere
   it would be plain distillation.
6. Both proposals of a prefix come in one call, since some scorers (`rollout`) judge them together.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from rlkd.engines.base import Message, distinct, run
from rlkd.errors import UsageError, warn_of_failures
from rlkd.registry import build
from rlkd.validity.margins import StepValidities

if TYPE_CHECKING:
    from rlkd.divergence import TokenStatistics

logger = logging.getLogger(__name__)

Scale = Literal["probability", "log"]
Undecided = Literal["undecided"]

_LATEST_CAUSES: dict[str, str] = {}  # by scorer


class ValidityError(UsageError):
    """A scorer breaks the contract, or cannot be built; the message names the scorer and the way out."""


@dataclass(frozen=True)
class StepQuestion:
    """How valid is `step` after `prefix`?

    `prefix + step` is the completion up to and including the step, character by character: white space between the
    two belongs to one of them. White space after the step is left out for both proposals, so that they do not differ
    in how the line continues.

    Args:
        prompt: messages, or text with any chat template already applied.
        prefix: the completion before the step; empty for the first step.
        step: the proposal.
        answer: the gold answer of the problem, where the data have one.
        prefix_ids: tokens of the prompt and the completion before the step, in the student's vocabulary.
        step_ids: tokens of the step.
        columns: the other columns of the row.
    """

    prompt: str | list[Message]
    prefix: str
    step: str
    answer: str | None = None
    prefix_ids: tuple[int, ...] = ()
    step_ids: tuple[int, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Tally:
    """The number of questions that a scorer was asked, of its failures among them, and their latest cause."""

    asked: int = 0
    failed: int = 0
    cause: str = ""

    def add(self, scorer: Any, asked: int, failed: int) -> None:
        """Count a call of a scorer."""
        self.asked += asked
        self.failed += failed
        if failed:
            self.cause = _LATEST_CAUSES.get(scorer.__name__, "it returned None or nan")


class ValidityScorer(Protocol):
    """A scorer of texts."""

    __name__: str
    scale: Scale

    def __call__(
        self, questions: Sequence[StepQuestion]
    ) -> Sequence[float | Undecided | None] | Awaitable[Sequence[float | Undecided | None]]:
        """One validity per question, in order; None where the scorer failed."""


class TokenLogprobScorer(Protocol):
    """A scorer that reads the teacher's log-probabilities of steps that were written."""

    __name__: str
    scale: Scale

    def from_token_logprobs(self, logprobs: Sequence[Sequence[float]]) -> Sequence[float | None]:
        """One validity per step, in order; None where the scorer failed.

        `logprobs`: for each step the teacher's log-probability of each of its tokens given the tokens before, in nats,
        at the sampling temperature of the run (1 for a server or a cache). White space after the step is left out.
        """


class TokenStatisticsScorer(Protocol):
    """A scorer that compares a step with the other model's distribution at each token, so that none is generated."""

    __name__: str
    scale: Scale

    def from_token_statistics(
        self, statistics: TokenStatistics, spans: Sequence[tuple[int, int]], on_policy: bool
    ) -> StepValidities:
        """V_T and V_S of each step, in order; `rlkd.validity.margins.expected_margins` is the built-in one.

        Args:
            statistics: tensors [N] in nats over the N tokens of all traces, at the sampling temperature of the run.
                The student's fields and `cross_entropy` are None on the student's rollouts.
            spans: [start, stop) of each step in these tokens, without white space after it.
            on_policy: whether the traces are the student's rollouts; else they are the teacher's.
        """


def load_scorer(spec: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The scorer that a spec names (`rlkd.registry`), with parameters from the config.

    The spec may name a scorer function (one with a parameter `questions`), a class of scorers, or a function that
    makes a scorer. Loads no model and sends no request. The result has `__name__` (the alias, if there is one),
    `scale`, and at least one of the three methods of a scorer. Raises `ValidityError` naming the spec, the parameter
    and the alternatives.
    """
    built = build("validity", spec, parameters, error=ValidityError)
    scorer, scale = built.target, getattr(built.target, "scale", "probability")
    if scale not in get_args(Scale):
        raise ValidityError(f"{built.label} has scale = {scale!r}; expected {' or '.join(map(repr, get_args(Scale)))}")
    if not (callable(scorer) or reads_logprobs(scorer) or reads_statistics(scorer)):
        raise ValidityError(
            f"{built.label} is not a function or class of scorers, but {scorer!r}: it is not callable and has neither "
            f"from_token_logprobs nor from_token_statistics"
        )
    if built.parameters is not None:
        scorer = partial(scorer, **built.parameters)
    with contextlib.suppress(AttributeError):
        scorer.__name__, scorer.scale = built.name, scale
    return scorer


def reads_logprobs(scorer: Any) -> bool:
    """Whether a scorer is a `TokenLogprobScorer`."""
    return callable(getattr(scorer, "from_token_logprobs", None))


def reads_statistics(scorer: Any) -> bool:
    """Whether a scorer is a `TokenStatisticsScorer`."""
    return callable(getattr(scorer, "from_token_statistics", None))


def score_pairs(
    scorer: ValidityScorer,
    teacher: Sequence[StepQuestion],
    student: Sequence[StepQuestion],
    *,
    deadline: float | None = None,
    tally: Tally | None = None,
) -> tuple[list[float | None], list[float | None]]:
    """Score the teacher's and the student's proposals in one call: (V_T, V_S), None where the scorer failed.

    The proposals are under the same prefixes, in the same order; equal questions are scored once. Works from
    synchronous code. `deadline`: seconds for the call of an asynchronous scorer; None for none beyond its own.
    `tally` counts the call. Raises ValueError for lists of different length, and `ValidityError` for a breach of the
    contract.
    """
    if len(teacher) != len(student):
        raise ValueError(f"{len(teacher)} proposals of the teacher and {len(student)} of the student: expected pairs")
    questions, where = distinct([*teacher, *student])
    if not callable(scorer):
        raise ValidityError(
            f"validity scorer {scorer.__name__!r} reads the teacher's log-probabilities during training and cannot "
            f"score texts; try it with score_logprobs or score_statistics"
        )

    def call() -> Any:
        result = scorer(questions)
        return run(_awaited(result, deadline)) if inspect.isawaitable(result) else result

    values = _checked_call(scorer, call, len(questions), tally)
    return [values[index] for index in where[: len(teacher)]], [values[index] for index in where[len(teacher) :]]


def score_logprobs(
    scorer: TokenLogprobScorer, logprobs: Sequence[Sequence[float]], *, tally: Tally | None = None
) -> list[float | None]:
    """The validities that `from_token_logprobs` returns, under the same error model as `score_pairs`."""
    return _checked_call(scorer, lambda: scorer.from_token_logprobs(logprobs), len(logprobs), tally)


def score_statistics(
    scorer: TokenStatisticsScorer,
    statistics: TokenStatistics,
    spans: Sequence[tuple[int, int]],
    on_policy: bool,
    *,
    tally: Tally | None = None,
) -> StepValidities:
    """The validities that `from_token_statistics` returns, under the same error model as `score_pairs`."""

    def call() -> list[float | None]:
        result = scorer.from_token_statistics(statistics, spans, on_policy)
        if not isinstance(result, StepValidities):
            raise ValidityError(
                f"validity scorer {scorer.__name__!r} returned a {type(result).__name__} from from_token_statistics: "
                f"expected rlkd.validity.StepValidities(teacher, student)"
            )
        return [*result.teacher, *result.student]

    values = _checked_call(scorer, call, 2 * len(spans), tally)
    return StepValidities(values[: len(spans)], values[len(spans) :])


def warn_of_failed_steps(
    name: str, causes: Sequence[str], total: int, consequence: str = "steps have no validity and get weight 1"
) -> None:
    """Log on how many of the questions a scorer failed, and why; nothing where it failed on none."""
    if causes:
        _LATEST_CAUSES[name] = Counter(causes).most_common(1)[0][0]
    warn_of_failures(logger, f"validity scorer {name!r}", consequence, causes, total)


def _checked_call(
    scorer: Any, call: Callable[[], Any], expected: int, tally: Tally | None = None
) -> list[float | None]:
    if not expected:
        return []
    tally = tally or Tally()
    try:
        result = call()
    except UsageError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        warn_of_failed_steps(scorer.__name__, [cause] * expected, expected)
        tally.add(scorer, expected, expected)
        return [None] * expected
    values = _checked_values(result, scorer, expected)
    tally.add(scorer, expected, values.count(None))
    return [None if value == "undecided" else value for value in values]


async def _awaited(result: Awaitable[Any], deadline: float | None) -> Any:
    try:
        return await asyncio.wait_for(result, deadline)
    except TimeoutError:
        raise TimeoutError("no result within its time" + f" of {deadline:g} s" * (deadline is not None)) from None


def _checked_values(result: Any, scorer: Any, expected: int) -> list[float | Undecided | None]:
    what = f"validity scorer {scorer.__name__!r}"
    if not isinstance(result, (list, tuple)) and not hasattr(result, "tolist"):
        raise ValidityError(f"{what} returned a {type(result).__name__}: expected a list of {expected} numbers")
    listed = list(result.tolist() if hasattr(result, "tolist") else result)
    if len(listed) != expected:
        raise ValidityError(f"{what} returned {len(listed)} values for {expected} questions; expected one each")
    values: list[float | Undecided | None] = []
    for index, value in enumerate(listed):
        if isinstance(value, str) and value == "undecided":
            values.append("undecided")
            continue
        try:
            number = None if value is None or isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None and value is not None:
            raise ValidityError(f"{what} returned {value!r} for question {index}; expected a number or None")
        if number is not None and not math.isfinite(number):
            number = None
        if number is not None and scorer.scale == "probability" and not 0 <= number <= 1:
            raise ValidityError(
                f"{what} returned {number} for question {index}; on the scale 'probability' a validity is 0 to 1. "
                f"For log-probabilities in nats per token, set scale = 'log' on the scorer."
            )
        values.append(number)
    return values
