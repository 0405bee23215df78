"""The rule `answers`: the share of equal step answers, whatever their order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rlkd.answers import number, squeezed
from rlkd.gsrm.alignment.contract import Alignment, BranchScore, Explanation, Pair, Verdict
from rlkd.structure import Structure


@dataclass(frozen=True)
class Answers(Alignment):
    """F1 of the multisets of step answers, in [0, 1].

    A step without an answer counts on neither side; a repeated answer counts as often as both sides have it. Each pair
    of `matches` scores 1, and the divisor is the mean number of answers.

    Our choice: no judge, and no order. Padding and wrong results cost, as answers too many.
    """

    name = "answers"
    source = "our choice, not the paper's rule"

    def pairs(self, student: Structure, branch: Structure) -> list[Pair]:
        """See `Alignment`: none, as answers are compared without a judge."""
        return []

    def score(
        self, student: Structure, branch: Structure, verdicts: Sequence[Sequence[Verdict]], n_longest: int
    ) -> BranchScore:
        """See `Alignment`."""
        matches = equal_answers(_answers(student), _answers(branch))
        divisor = max(1.0, (_count(student) + _count(branch)) / 2)
        return BranchScore(student, branch, self.name, (1.0,) * len(matches), divisor, matches=matches)

    def comparable(self, branch: Structure) -> bool:
        """See `Alignment`: whether it has an answer."""
        return _count(branch) > 0

    def explain(self, score: BranchScore) -> Explanation:
        """See `Alignment`."""
        return Explanation(
            ("the same answer",) * len(score.steps),
            ("the same answer -> 1",) * len(score.steps),
            f"mean number of answers of {_count(score.student)} and {_count(score.teacher)}",
        )


def equal_answers(
    student: Sequence[Hashable | None], teacher: Sequence[Hashable | None]
) -> tuple[tuple[int, int], ...]:
    """The pairs of indices with equal answers, each index once, the student's ascending; None equals nothing."""
    free: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(teacher):
        if answer is not None:
            free.setdefault(answer, []).append(index)
    return tuple(
        (index, free[answer].pop(0)) for index, answer in enumerate(student) if answer is not None and free.get(answer)
    )


def _answers(structure: Structure) -> list[Hashable | None]:
    """The answers in a form that is equal exactly where `rlkd.gsrm.judges.same_answer` holds."""
    answers: list[Hashable | None] = []
    for step in structure:
        value = None if step.answer is None else number(step.answer)
        answers.append(squeezed(step.answer) if value is None and step.answer is not None else value)
    return answers


def _count(structure: Structure) -> int:
    return sum(step.answer is not None for step in structure)
