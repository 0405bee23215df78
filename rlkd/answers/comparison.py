"""Compare answers: exact arithmetic where both are plain numbers, Math-Verify (symbolic) otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from rlkd.answers.announcements import Fallback, answer_and_gold
from rlkd.answers.numbers import number, squeezed
from rlkd.workers.pool import Fault, WorkerPool, inside_worker

VERIFY_SECONDS = 5.0
"""Default time limit of one comparison: answers to exercises take milliseconds."""


class VerificationError(RuntimeError):
    """Two answers could not be compared, which does not mean that they differ."""


def is_correct(
    text: str,
    gold: str,
    fallback: Fallback = "none",
    *,
    prefilled: bool = False,
    seconds: float = VERIFY_SECONDS,
) -> bool | None:
    """Whether the answer announced in `text` equals `gold`; None if the gold answer is unreadable.

    A text without an announced answer is wrong. Raises `VerificationError` if the comparison fails (see `equal`).
    """
    return _raised(are_correct([text], [gold], fallback, prefilled=prefilled, seconds=seconds)[0])


def are_correct(
    texts: Sequence[str],
    golds: Sequence[str],
    fallback: Fallback = "none",
    *,
    prefilled: bool = False,
    seconds: float = VERIFY_SECONDS,
) -> list[bool | VerificationError | None]:
    """`is_correct` for many texts, compared in parallel; a failed comparison gives its error as the result."""
    pairs = [
        answer_and_gold(text, gold, fallback, prefilled=prefilled) for text, gold in zip(texts, golds, strict=True)
    ]
    return equal_pairs(pairs, seconds=seconds)


def accuracy(row: Mapping[str, Any], text: str, *, prefilled: bool = False) -> float | None:
    """1 if the answer announced in `text` equals that of the row, else 0; None for a row without a readable answer.

    The metric of evaluations; `prefilled` as in `after_thought`. An answer that cannot be compared in time is wrong.
    """
    if row.get("answer") is None:
        return None
    try:
        correct = is_correct(text, row["answer"], prefilled=prefilled)
    except VerificationError:
        return 0.0
    return None if correct is None else float(correct)


def equal(answer: str, gold: str, *, seconds: float = VERIFY_SECONDS) -> bool | None:
    """Whether two answers have the same value; None if `gold` is not a readable mathematical value.

    Anything but plain numbers is compared by `math-verify`, in a worker process that is killed after `seconds`,
    whichever thread calls. Raises `VerificationError` then, and if the comparison breaks down.
    """
    return _raised(equal_pairs([(answer, gold)], seconds=seconds)[0])


def _raised(result: bool | VerificationError | None) -> bool | None:
    if isinstance(result, VerificationError):
        raise result
    return result


def equal_pairs(
    pairs: Sequence[tuple[str, str]], *, seconds: float = VERIFY_SECONDS
) -> list[bool | VerificationError | None]:
    """`equal` for many pairs of answer and gold; a failed comparison gives its error as the result.

    Each distinct pair is compared once, several in parallel. An empty answer equals nothing.
    """
    known: dict[tuple[str, str], bool | VerificationError | None] = {}
    hard: list[tuple[str, str]] = []
    for pair in dict.fromkeys(pairs):
        answer, gold = pair
        left, right = number(answer), number(gold)
        if right is not None and (left is not None or not answer.strip()):
            known[pair] = left == right
        elif not gold.strip():
            known[pair] = None
        elif squeezed(answer) == squeezed(gold):
            known[pair] = True
        else:
            hard.append(pair)
    for pair, result in zip(hard, compare_in_workers(_compared, hard, seconds), strict=True):
        if isinstance(result, Fault):
            result = VerificationError(f"comparing {pair[0][:80]!r} with {pair[1][:80]!r}: {result.message}")
        known[pair] = result
    return [known[pair] for pair in pairs]


def compare_in_workers(compare: Callable[..., Any], calls: Sequence[tuple[Any, ...]], seconds: float) -> list[Any]:
    """The results of `compare(*call)` in worker processes, a `Fault` for a call that takes over `seconds` or dies.

    `compare` is a module-level function that uses math-verify. Inside a worker, which has a limit already, it is
    called directly.
    """
    if not calls:
        return []
    if inside_worker():
        return [compare(*call) for call in calls]
    return comparison_pool(compare).map(calls, limit=seconds)


@cache
def comparison_pool(compare: Callable[..., Any]) -> WorkerPool:
    """The worker processes of `compare_in_workers`."""
    # Preloaded, so that a killed worker is replaced in milliseconds. Some comparisons use up memory instead of time.
    preload = ["math_verify", "latex2sympy2_extended", "sympy", compare.__module__]
    return WorkerPool(compare, preload=preload, memory=4 * 2**30)


@cache
def math_verify() -> Any:
    """The module math_verify, without its warnings that time limits are off: workers have their own."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.math_normalization"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


def read_by_math_verify(text: str, **options: Any) -> list[Any]:
    """The expressions that math-verify parses from a text; none if it cannot be read."""
    try:
        return list(math_verify().parse(text, parsing_timeout=None, raise_on_error=True, **options))
    except MemoryError:  # math-verify would treat this as unreadable
        raise
    except Exception:
        return []


def _compared(answer: str, gold: str) -> bool | None:
    """Whether math-verify finds two texts equal; None if it cannot read `gold`."""
    parsed_gold = _parse(gold)
    if not parsed_gold:
        return None
    return bool(math_verify().verify(parsed_gold, _parse(answer), timeout_seconds=None, raise_on_error=True))


def _parse(text: str) -> list[Any]:
    library = math_verify()
    expressions = [library.LatexExtractionConfig(), library.ExprExtractionConfig()]
    # With a fallback, any text would count as read.
    return read_by_math_verify(f"${text}$", extraction_config=expressions, fallback_mode="no_fallback")
