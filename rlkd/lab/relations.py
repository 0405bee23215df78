"""Dependency problems of two kinds, with `more than` or `fewer than`, for two teachers that err on one kind each."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlkd.lab.problems import DependencyProblem, dependency_rows, random_problem

KINDS = {"more", "fewer"}


def relation_rows(split: str, count: int) -> list[dict]:
    """`count` problems of a split with 3 or 4 calculations, of which some are of the kind in the column `relation`.

    None is of the other kind, which may occur in sentences that the solution does not need. Both are as likely.
    """
    rows = dependency_rows(split, count, make=_problem)
    for index, row in enumerate(rows):
        row["id"] = f"relation-{split}-{index}"
        row["relation"] = "more" if "more than" in row["rationales"][0] else "fewer"
    return rows


def _problem(draw: random.Random, steps: Sequence[int]) -> DependencyProblem:
    wanted = {draw.choice(sorted(KINDS))}
    while True:
        problem = random_problem(draw, steps)
        if {quantity.relation for quantity, _, _ in problem.steps()} & KINDS == wanted:
            return problem
