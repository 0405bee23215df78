"""A validity that needs no model: is the arithmetic of a step right?"""

from __future__ import annotations

from collections.abc import Sequence

from rlkd.answers.calculations import calculated
from rlkd.steps import calculations
from rlkd.validity.contract import StepQuestion, Undecided


def arithmetic(questions: Sequence[StepQuestion]) -> list[float | Undecided]:
    """The share of right calculations in each step, such as `16 - 5 = 11`; "undecided" for a step without one.

    Our choice. It knows nothing of what a step should calculate. A result that is rounded counts as wrong, so the
    scorer is for whole numbers and exact decimals.
    """
    return [_share(question.step) for question in questions]


def _share(step: str) -> float | Undecided:
    right = [
        calculated(result) == value
        for _, expression, result in calculations(step)
        if (value := calculated(expression)) is not None
    ]
    return sum(right) / len(right) if right else "undecided"
