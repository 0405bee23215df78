"""Text measures of an evaluation: layouts of a solution, agreement with gold steps, origins of numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlkd.answers import numbers
from rlkd.gsrm.alignment import Pair, Verdict
from rlkd.gsrm.judges import JudgeError, same_answer
from rlkd.statistics import Interval, bootstrap_mean, percentile_interval
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Structure

LAYOUTS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "lines": "\n".join,
    "paragraph": lambda lines: " ".join(" ".join(lines).split()),
    "numbered": lambda lines: "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1)),
    "bold": lambda lines: "\n".join(f"**Step {i}:** {line}" for i, line in enumerate(lines, start=1)),
}
"""Layouts of the same solution."""


def solution_lines(solution: str) -> list[str]:
    """The lines of a solution without calculator marks, empty lines and a closing `#### 72`."""
    lines = [strip_calculator_marks(line).strip() for line in solution.splitlines()]
    return [line for line in lines if line and not line.startswith("####")]


def multiset_f1(left: Sequence[Any], right: Sequence[Any]) -> float:
    """2 * shared / (all of both sides); 0 where both are empty."""
    total = len(left) + len(right)
    return 2 * sum((Counter(left) & Counter(right)).values()) / total if total else 0.0


def agreement(
    found: Sequence[str | None], gold: Sequence[str | None], same: Callable[[str, str], bool], *, in_order: bool
) -> float:
    """F1 of one field of the steps found against the gold ones, in [0, 1]; NaN where no gold step has the field.

    In order: the i-th is compared with the i-th. Else each matches the first of the free gold ones that is the same.
    """
    total = sum(text is not None for side in (found, gold) for text in side)
    if all(text is None for text in gold):
        return math.nan
    if in_order:
        shared = sum(bool(f and g and same(f, g)) for f, g in zip(found, gold, strict=False))
        return 2 * shared / total
    free = [text for text in gold if text is not None]
    shared = 0
    for text in found:
        index = next((i for i, other in enumerate(free) if text is not None and same(text, other)), None)
        if index is not None:
            del free[index]
            shared += 1
    return 2 * shared / total


def same_answers(left: Any, right: Any) -> bool:
    """Whether two decompositions succeeded and have the same list of answers."""
    if not isinstance(left, Structure) or not isinstance(right, Structure) or len(left) != len(right):
        return False
    pairs = [(one.answer, other.answer) for one, other in zip(left, right, strict=True)]
    return all(a == b or (a is not None and b is not None and same_answer(a, b)) for a, b in pairs)


def number_origins(found: Any, trace: str, own: str) -> tuple[float, float, float]:
    """Shares of the numbers in questions and answers that come from the trace, from the `own` text only, from neither.

    NaN where there is no number.
    """
    written: Sequence[Any] = ()
    if isinstance(found, Structure):
        written = numbers(" ".join(f"{step.question or ''} {step.answer or ''}" for step in found))
    if not written:
        return math.nan, math.nan, math.nan
    there, here = set(numbers(trace)), set(numbers(own))
    from_trace = sum(value in there for value in written)
    from_own = sum(value in here and value not in there for value in written)
    n = len(written)
    return from_trace / n, from_own / n, (n - from_trace - from_own) / n


def same_last_answer(student: Any, teacher: Any) -> float:
    """1 or 0 for whether the last steps have the same answer; NaN where that cannot be compared."""
    if not isinstance(student, Structure) or not isinstance(teacher, Structure) or not len(teacher):
        return math.nan
    last, gold = (structure[-1].answer if len(structure) else None for structure in (student, teacher))
    return float(last is not None and gold is not None and same_answer(last, gold))


def group_spread(
    scores_C: np.ndarray, right_C: np.ndarray, question_C: np.ndarray, counts_DQ: np.ndarray
) -> dict[str, Interval]:
    """How often a score says nothing within a question, as a group of GRPO needs it: by name, over C solutions.

    Solutions that earn 0, and questions all of whose (wrong) solutions earn the same. NaN scores are left out.
    """

    def share(of_C: np.ndarray, marked_C: np.ndarray) -> Interval:
        """The share of marked ones among solutions, bootstrapped over questions (D draws of Q)."""
        sums_Q2 = np.stack([np.bincount(question_C[c], minlength=counts_DQ.shape[1]) for c in (of_C & marked_C, of_C)])
        marked_D, all_D = sums_Q2 @ counts_DQ.T
        with np.errstate(invalid="ignore"):
            value = sums_Q2[0].sum() / sums_Q2[1].sum() if of_C.any() else math.nan
            return percentile_interval(value, marked_D / all_D, int(of_C.sum()))

    def same(of_C: np.ndarray) -> Interval:
        """The share of questions, among those with two such solutions or more, whose scores are all equal."""
        values_Q = np.full(counts_DQ.shape[1], math.nan)
        for question in np.unique(question_C[of_C]):
            found = scores_C[of_C & (question_C == question)]
            if len(found) > 1:
                values_Q[question] = float(found.min() == found.max())
        return bootstrap_mean(values_Q, counts_DQ)

    known_C, zero_C = ~np.isnan(scores_C), scores_C == 0
    return {
        "right solutions that earn 0": share(known_C & right_C, zero_C),
        "wrong solutions that earn 0": share(known_C & ~right_C, zero_C),
        "questions whose wrong solutions all earn the same": same(known_C & ~right_C),
        "questions whose solutions all earn the same": same(known_C),
    }


class TokenOverlapJudge:
    """The crude judge of the AUROC table: two texts are the same if half of their tokens are (Jaccard index)."""

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `rlkd.gsrm.judges.Judge`."""
        return [
            [
                Verdict(
                    _overlap(own.purpose, other.purpose),
                    _overlap(own.question or "", other.question or ""),
                    _overlap(own.answer or "", other.answer or ""),
                )
                for own, other in zip(student, teacher, strict=False)
            ]
            for student, teacher in pairs
        ]


def _overlap(first: str, second: str) -> bool:
    left, right = (set(re.findall(r"\w+|[^\w\s]", text.lower())) for text in (first, second))
    return len(left & right) >= 0.5 * len(left | right)
