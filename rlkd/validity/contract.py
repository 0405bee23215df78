"""What a validity scorer is, how one is named in a config, and how it is asked.

A scorer gets a list of questions, "how valid is this step after this prefix?", and answers each with a number or None:

    def brevity(questions, limit=200):
        return [max(0.0, 1 - len(question.step) / limit) for question in questions]

In a config it is `path/to/file.py:brevity`, a dotted path or a registered name (`@register("validity", "brevity")`),
with parameters beside it. A class is made with the parameters, and its instances are called. Both may be `async`.

The error model, in full:

1. A finite number is a validity. On the scale `probability` it lies in [0, 1]; a function or object says
   `scale = "log"` (an attribute) if its numbers are log-probabilities in nats a token.
2. None, nan and infinities mean that the scorer failed on that question: the step gets weight 1, and is counted. Never
   a 0: a step is not to be called invalid because a server was down.
3. An exception, or a call beyond its deadline, is a failure on every question of the call, logged with its cause.
4. A result of the wrong length, of another type, or outside the scale is a mistake in the scorer. It ends the run as a
   `ValidityError` that names the scorer.
5. Both proposals of a prefix come in one call, since some scorers (`rollout`) judge them together.
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
from typing import Any, Literal, Protocol, cast, get_args

from rlkd.engines.base import Message, distinct, run
from rlkd.errors import UsageError
from rlkd.registry import build

logger = logging.getLogger(__name__)

Scale = Literal["probability", "log"]


class ValidityError(UsageError):
    """A scorer breaks the contract, or cannot be built; the message names the scorer and the way out."""


@dataclass(frozen=True)
class StepQuestion:
    """How valid is `step` after `prefix`?

    `prefix + step` is the completion up to and including the step, character by character: white space between the
    two belongs to one of them. White space behind the step is left out, on both sides: two proposals must not differ
    in how the line went on.

    Args:
        prompt: messages, or text with any chat template already applied.
        prefix: the completion before the step; empty for the first step.
        step: the proposal.
        answer: the right answer of the problem, where the data have one.
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


class ValidityScorer(Protocol):
    """Anything that says how valid steps are. See the head of this module for what it may answer."""

    __name__: str
    scale: Scale

    def __call__(
        self, questions: Sequence[StepQuestion]
    ) -> Sequence[float | None] | Awaitable[Sequence[float | None]]:
        """One validity a question, in order; None where there is none."""


def load_scorer(spec: str, parameters: Mapping[str, Any] | None = None) -> ValidityScorer:
    """The scorer that a spec names (`rlkd.registry`), with parameters from the config.

    The spec may name a scorer function (one with a parameter `questions`), a class of scorers, or a function that
    makes a scorer. Reads no model and asks no server. What comes back has `__name__` (the alias, where there is one)
    and `scale`. Raises `ValidityError` naming the spec, the parameter and what there is.
    """
    made = build("validity", spec, parameters, error=ValidityError)
    scale = _scale_of(made.target, made.label)
    if made.parameters is not None:
        return _checked(_Function(made.target, made.name, scale, made.parameters), made.label)
    with contextlib.suppress(AttributeError):
        made.target.__name__, made.target.scale = made.name, scale
    return _checked(made.target, made.label)


def score_pairs(
    scorer: ValidityScorer,
    teacher: Sequence[StepQuestion],
    student: Sequence[StepQuestion],
    *,
    deadline: float | None = None,
) -> tuple[list[float | None], list[float | None]]:
    """Ask for the teacher's and the student's proposals in one call: (V_T, V_S), None where the scorer failed.

    Equal questions are asked once. Works from synchronous code, for synchronous and asynchronous scorers.

    Args:
        scorer: of `load_scorer`.
        teacher, student: the proposals under the same prefixes, in the same order.
        deadline: seconds for the call of an asynchronous scorer; None for none beyond its own.

    Raises ValueError for lists of different length, and `ValidityError` for what the contract does not allow.
    """
    if len(teacher) != len(student):
        raise ValueError(f"{len(teacher)} proposals of the teacher and {len(student)} of the student: one each")
    questions, where = distinct([*teacher, *student])
    if not questions:
        return [], []
    try:
        answered = scorer(questions)
        if inspect.isawaitable(answered):
            answered = run(_awaited(answered, deadline))
    except UsageError:
        raise
    except Exception as error:
        report_failures(scorer.__name__, [str(error) or type(error).__name__] * len(questions), len(questions))
        answered = [None] * len(questions)
    values = _read(answered, scorer, len(questions))
    return [values[place] for place in where[: len(teacher)]], [values[place] for place in where[len(teacher) :]]


def report_failures(name: str, causes: Sequence[str], asked: int) -> None:
    """Say in the log on how many of the questions a scorer failed, and why; nothing where it failed on none."""
    if causes:
        most, times = Counter(causes).most_common(1)[0]
        logger.warning(
            "validity scorer %r: no validity for %d of %d steps, which get weight 1; %d times because: %s",
            name,
            len(causes),
            asked,
            times,
            most,
        )


class _Function:
    """A scorer function with its parameters, as a `ValidityScorer`."""

    def __init__(self, function: Callable[..., Any], name: str, scale: Scale, parameters: Mapping[str, Any]) -> None:
        self.function = function
        self.__name__ = name
        self.scale = scale
        self.parameters = parameters

    def __call__(self, questions: Sequence[StepQuestion]) -> Any:
        return self.function(questions=questions, **self.parameters)


async def _awaited(answer: Awaitable[Any], deadline: float | None) -> Any:
    try:
        return await asyncio.wait_for(answer, deadline)
    except TimeoutError:
        raise TimeoutError("no answer within its time" + f" of {deadline:g} s" * (deadline is not None)) from None


def _read(answered: Any, scorer: ValidityScorer, expected: int) -> list[float | None]:
    """The answers as numbers or None; `ValidityError` for what the contract does not know."""
    what = f"validity scorer {scorer.__name__!r}"
    if not isinstance(answered, (list, tuple)) and not hasattr(answered, "tolist"):
        raise ValidityError(f"{what} returned a {type(answered).__name__}: expected a list of {expected} numbers")
    listed = list(answered.tolist() if hasattr(answered, "tolist") else answered)
    if len(listed) != expected:
        raise ValidityError(f"{what} returned {len(listed)} values for {expected} questions; expected one each")
    values: list[float | None] = []
    for place, value in enumerate(listed):
        try:
            number = None if value is None else float(value) if not isinstance(value, str) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None and value is not None:
            raise ValidityError(f"{what} returned {value!r} for question {place}; expected a number or None")
        if number is not None and not math.isfinite(number):
            number = None
        if number is not None and scorer.scale == "probability" and not 0 <= number <= 1:
            raise ValidityError(
                f"{what} returned {number} for question {place}; on the scale 'probability' a validity is 0 to 1. "
                f"Log-probabilities in nats a token need the attribute scale = 'log' on the scorer."
            )
        values.append(number)
    return values


def _scale_of(scorer: Any, what: str) -> Scale:
    scale: Any = getattr(scorer, "scale", "probability")
    if scale not in get_args(Scale):
        raise ValidityError(f"{what} has scale = {scale!r}; expected {' or '.join(map(repr, get_args(Scale)))}")
    return cast(Scale, scale)


def _checked(scorer: Any, what: str) -> ValidityScorer:
    if not callable(scorer):
        raise ValidityError(f"{what} is no function or class of callables, but {scorer!r}")
    return scorer
