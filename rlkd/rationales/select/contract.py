"""The contract of selectors: what one returns, how a config names it, and how it is applied.

A selector gets questions with their candidates and returns a verdict on each candidate: keep, or drop for a reason.
`docs/selection.md` has an example. In a config it is `path/to/file.py:brief`, a dotted path or a registered name
(`@register("selector", "brief")`), with parameters next to it. A class is instantiated with the parameters, and its
instances are called. Both may be `async`.

The contract, in full:

1. One list per question with one `SelectorVerdict` per candidate, in order. Anything else ends the run with a
   `SelectorError` that names the selector.
2. A reason is a short phrase, the same for equal causes: reasons are counted. Figures belong in `scores`, under names
   of the selector's own; the candidate keeps them, kept or dropped.
3. The verdicts on a question depend on that question alone, unless the selector has `whole_set = True`: so questions
   may come in any order and in any shards. Within a question, ties are broken by the candidates' ids.
4. A candidate that could not be measured (a server was down) is dropped as `NOT_MEASURED`, with a warning that gives
   the cause. A selector does not end the run for it: the caller does if not one candidate of a whole run could be
   measured (`rlkd.rationales.pipeline`).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from rlkd.engines.base import EngineError
from rlkd.errors import UsageError, warn_of_failures
from rlkd.rationales.records import DroppedCandidate, Question
from rlkd.registry import build

logger = logging.getLogger(__name__)

NOT_MEASURED = "could not be measured"

T = TypeVar("T")


class SelectorError(UsageError):
    """A selector breaks the contract, cannot be built, or measured nothing in a whole run; the message names it."""


@dataclass(frozen=True, slots=True)
class SelectorVerdict:
    """A selector's verdict on one candidate. `reason`: None to keep it, else why it is dropped."""

    reason: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


class Selector(Protocol):
    """Judges candidates. See the top of this module for the values it may return."""

    __name__: str

    def __call__(
        self, questions: Sequence[Question]
    ) -> Sequence[Sequence[SelectorVerdict]] | Awaitable[Sequence[Sequence[SelectorVerdict]]]:
        """One list per question, one verdict per candidate."""


def load_selector(
    spec: str, parameters: Mapping[str, Any] | None = None, *, defaults: Mapping[str, Any] | None = None
) -> Selector:
    """The selector that a spec names (`rlkd.registry`), with parameters from the config.

    The spec may name a selector function (one with a parameter `questions`), a class of selectors, or a function that
    makes a selector. `defaults` are values for parameters that it may or may not have, such as the student of a run.
    Loads no model and contacts no server. The result has `__name__`: the alias, if there is one. Raises
    `SelectorError` naming the spec, the parameter and the alternatives.
    """
    built = build("selector", spec, parameters, defaults=defaults, error=SelectorError)
    selector = built.target
    if not callable(selector):
        raise SelectorError(f"{built.label} is not a function or class of callables, but {selector!r}")
    if built.parameters is not None:
        whole_set = judges_whole_set(selector)
        selector = partial(selector, **built.parameters)
        selector.whole_set = whole_set  # type: ignore[attr-defined]
    with contextlib.suppress(AttributeError):
        selector.__name__ = built.name
    return selector


def judges_whole_set(selector: Any) -> bool:
    """Whether the selector must see all questions in one call (its `whole_set`)."""
    return bool(getattr(selector, "whole_set", False))


async def apply(selector: Selector, questions: Sequence[Question]) -> tuple[list[Question], list[DroppedCandidate]]:
    """The questions with the candidates that a selector keeps, and the candidates that it drops, each in order.

    Questions without a remaining candidate are left out. Raises `SelectorError` for a result outside the contract.
    """
    result = selector(questions)
    if inspect.isawaitable(result):
        result = await result
    return divide(questions, _checked(result, selector, questions), selector.__name__)


def divide(
    questions: Sequence[Question], verdicts: Sequence[Sequence[SelectorVerdict]], name: str
) -> tuple[list[Question], list[DroppedCandidate]]:
    """The result of `apply` for the verdicts of the selector `name`."""
    kept, dropped = [], []
    for question, own in zip(questions, verdicts, strict=True):
        remaining = []
        for each, verdict in zip(question.candidates, own, strict=True):
            judged = each.with_scores(verdict.scores)
            if verdict.reason is None:
                remaining.append(judged)
            else:
                dropped.append(DroppedCandidate(question.id, name, verdict.reason, judged))
        if remaining:
            kept.append(replace(question, candidates=tuple(remaining)))
    return kept, dropped


def by_question(values: Iterable[T], questions: Sequence[Question]) -> list[list[T]]:
    """Values of all candidates, in order, as one list per question."""
    iterator = iter(values)
    return [list(islice(iterator, len(question.candidates))) for question in questions]


def keep_lowest(
    question: Question,
    keys: Sequence[float | None],
    keep: int,
    reason: str,
    scores: Sequence[Mapping[str, float]] = (),
) -> list[SelectorVerdict]:
    """Verdicts that keep the `keep` candidates with the lowest keys; ties are broken by id. `reason`: of the others.

    None as a key: not measured, and never kept. `scores`: of each candidate.
    """
    pairs = zip(question.candidates, keys, strict=True)
    known = sorted((key, each.id, index) for index, (each, key) in enumerate(pairs) if key is not None)
    first = {index for *_, index in known[:keep]}
    reasons = [NOT_MEASURED if key is None else None if n in first else reason for n, key in enumerate(keys)]
    return list(map(SelectorVerdict, reasons, scores or [{}] * len(keys)))


def check_keep(keep: int) -> None:
    """Raise ValueError unless `keep` is a number of candidates."""
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep={keep!r}: expected a whole number of at least 1, candidates per question")


def report_failures(name: str, results: Sequence[object]) -> None:
    """Log how many of a selector's results, one per candidate, are an `EngineError`, and why."""
    causes = [str(each) for each in results if isinstance(each, EngineError)]
    what = "candidates could not be measured and are dropped"
    warn_of_failures(logger, f"selector {name!r}", what, causes, len(results))


def _checked(result: Any, selector: Selector, questions: Sequence[Question]) -> Sequence[Sequence[SelectorVerdict]]:
    what = f"selector {selector.__name__!r}"
    if not isinstance(result, (list, tuple)):
        raise SelectorError(f"{what} returned a {type(result).__name__}: expected a list of {len(questions)} lists")
    if len(result) != len(questions):
        raise SelectorError(f"{what} returned {len(result)} lists for {len(questions)} questions; expected one each")
    for question, verdicts in zip(questions, result, strict=True):
        where = f"{what}, question {question.id!r}"
        if not isinstance(verdicts, (list, tuple)) or len(verdicts) != len(question.candidates):
            raise SelectorError(
                f"{where}: found {str(verdicts)[:80]}, expected a list of {len(question.candidates)} verdicts"
            )
        for each, verdict in zip(question.candidates, verdicts, strict=True):
            if not isinstance(verdict, SelectorVerdict):
                raise SelectorError(
                    f"{where}, candidate {each.id}: found {verdict!r}, expected a "
                    f"rlkd.rationales.select.SelectorVerdict: SelectorVerdict() keeps, SelectorVerdict('why') drops"
                )
            for name, value in verdict.scores.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise SelectorError(f"{where}, candidate {each.id}: score {name}={value!r}, expected a number")
    return result
