"""What a selector is, how one is named in a config, and how it is asked.

A selector gets questions with their candidates and judges every candidate: kept, or dropped for a reason.

    def brief(questions, limit=400):
        return [
            [Judgement(None if len(each.text) <= limit else "too long") for each in question.candidates]
            for question in questions
        ]

In a config it is `path/to/file.py:brief`, a dotted path or a registered name (`@register("selector", "brief")`), with
parameters beside it. A class is made with the parameters, and its instances are called. Both may be `async`.

The contract, in full:

1. One list a question, and in it one `Judgement` a candidate, in order. Anything else ends the run as a
   `SelectorError` that names the selector.
2. A reason is a short phrase, and equal causes have equal phrases: they are counted by it. Figures belong in `scores`,
   under names of the selector's own; the candidate carries them on, kept or dropped.
3. The judgements of a question depend on that question alone, unless the selector says `whole_set = True`: so
   questions may come in any order and in any shards. Within a question, ties are broken by the candidates' ids.
4. A candidate that could not be measured (a server was down) is dropped as `NOT_MEASURED`, with a warning that has
   the cause; it is no fault of the candidate, and a later run may find better. A selector does not end the run for
   it: a call may hold a single candidate, one that is too long for the student. If of a whole run none at all could
   be measured, whoever runs it ends it (`rlkd.rationales.pipeline` does).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, Question
from rlkd.registry import build

logger = logging.getLogger(__name__)

NOT_MEASURED = "could not be measured"


class SelectorError(UsageError):
    """A selector breaks the contract, cannot be built, or measured nothing in a whole run; the message names it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a selector says of one candidate. `reason`: None where it is kept, else why not."""

    reason: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that a selector has taken out, with all its scores."""

    question_id: str
    selector: str
    reason: str
    candidate: Candidate

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "question_id": self.question_id,
            "selector": self.selector,
            "reason": self.reason,
            "candidate": self.candidate.to_json(),
        }


class Selector(Protocol):
    """Anything that judges candidates. See the head of this module for what it may answer."""

    __name__: str

    def __call__(
        self, questions: Sequence[Question]
    ) -> Sequence[Sequence[Judgement]] | Awaitable[Sequence[Sequence[Judgement]]]:
        """One list a question, one judgement a candidate."""


def load_selector(
    spec: str, parameters: Mapping[str, Any] | None = None, *, defaults: Mapping[str, Any] | None = None
) -> Selector:
    """The selector that a spec names (`rlkd.registry`), with parameters from the config.

    The spec may name a selector function (one with a parameter `questions`), a class of selectors, or a function that
    makes a selector. Reads no model and asks no server. What comes back has `__name__`: the alias, where there is one.

    Args:
        spec: name, dotted path or `path/to/file.py:name`.
        parameters: of this selector.
        defaults: values for parameters that the selector may or may not have, such as the student of a whole run:
            those that it has, and that `parameters` does not name, are filled in.

    Raises `SelectorError` naming the spec, the parameter and what there is.
    """
    made = build("selector", spec, parameters, defaults=defaults, error=SelectorError)
    if made.parameters is not None:
        return _Function(made.target, made.name, made.parameters)
    if not callable(made.target):
        raise SelectorError(f"{made.label} is no function or class of callables, but {made.target!r}")
    with contextlib.suppress(AttributeError):
        made.target.__name__ = made.name
    return made.target


def judges_whole_set(selector: Selector) -> bool:
    """Whether the selector must see all questions in one call (its `whole_set`)."""
    return bool(getattr(selector, "whole_set", False))


async def apply(selector: Selector, questions: Sequence[Question]) -> tuple[list[Question], list[Dropped]]:
    """The questions with the candidates that a selector keeps, and the candidates that it drops, each in order.

    A question of which nothing is left is not among the former, nor is one that came without candidates. Raises
    `SelectorError` for what the contract does not allow.
    """
    answered = selector(questions)
    if inspect.isawaitable(answered):
        answered = await answered
    kept, dropped = [], []
    for question, judgements in zip(questions, _read(answered, selector, questions), strict=True):
        remaining = []
        for each, judgement in zip(question.candidates, judgements, strict=True):
            judged = each.with_scores(judgement.scores)
            if judgement.reason is None:
                remaining.append(judged)
            else:
                dropped.append(Dropped(question.id, selector.__name__, judgement.reason, judged))
        if remaining:
            kept.append(replace(question, candidates=tuple(remaining)))
    return kept, dropped


def keep_first(
    candidates: Sequence[Candidate], keys: Sequence[float | None], most: int, reason: str
) -> list[str | None]:
    """For each candidate None where it is among the `most` with the lowest keys, else `reason`; ties go by id.

    None as a key: not measured, and never kept.
    """
    known = [
        (key, each.id, place)
        for place, (each, key) in enumerate(zip(candidates, keys, strict=True))
        if key is not None
    ]
    first = {place for _, _, place in sorted(known)[:most]}
    return [NOT_MEASURED if key is None else None if place in first else reason for place, key in enumerate(keys)]


def check_keep(keep: int) -> None:
    """Raise ValueError for a number of candidates to keep that is none."""
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep={keep!r}: expected a whole number of at least 1, candidates of a question")


def report_failures(name: str, causes: Sequence[str], asked: int) -> None:
    """Say in the log on how many of the candidates of one call a selector failed, and why."""
    if not causes:
        return
    most, times = Counter(causes).most_common(1)[0]
    logger.warning(
        "selector %r: %d of %d candidates could not be measured and are dropped; %d times because: %s",
        name,
        len(causes),
        asked,
        times,
        most,
    )


class _Function:
    """A selector function with its parameters, as a `Selector`."""

    def __init__(self, function: Callable[..., Any], name: str, parameters: Mapping[str, Any]) -> None:
        self.function = function
        self.__name__ = name
        self.whole_set = bool(getattr(function, "whole_set", False))
        self.parameters = parameters

    def __call__(self, questions: Sequence[Question]) -> Any:
        return self.function(questions=questions, **self.parameters)


def _read(answered: Any, selector: Selector, questions: Sequence[Question]) -> list[list[Judgement]]:
    what = f"selector {selector.__name__!r}"
    if not isinstance(answered, (list, tuple)):
        raise SelectorError(f"{what} returned a {type(answered).__name__}: expected a list of {len(questions)} lists")
    if len(answered) != len(questions):
        raise SelectorError(f"{what} returned {len(answered)} lists for {len(questions)} questions; expected one each")
    for question, judgements in zip(questions, answered, strict=True):
        where = f"{what}, question {question.id!r}"
        if not isinstance(judgements, (list, tuple)) or len(judgements) != len(question.candidates):
            raise SelectorError(
                f"{where}: found {str(judgements)[:80]}, expected a list of {len(question.candidates)} judgements"
            )
        for each, judgement in zip(question.candidates, judgements, strict=True):
            if not isinstance(judgement, Judgement):
                raise SelectorError(
                    f"{where}, candidate {each.id}: found {judgement!r}, expected a "
                    f"rlkd.rationales.select.Judgement: Judgement() keeps, Judgement('why') drops"
                )
            for name, value in judgement.scores.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise SelectorError(f"{where}, candidate {each.id}: score {name}={value!r}, expected a number")
    return [list(judgements) for judgements in answered]
