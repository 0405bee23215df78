"""Dependency problems whose question begins with their solution, for a student that is to use what its prompt tells."""

from __future__ import annotations

from rlkd.lab.problems import dependency_rows


def context_rows(count: int, *, short_cuts: float) -> list[dict]:
    """`count` rows of the split `pretraining`, always the same: half with their solution in the question, half without.

    The first half begins with the exact solution, on lines of its own, and has it as its rationale. The second half are
    plain problems, a share `short_cuts` of whose rationales takes a short cut, so that the student keeps its habits. A
    problem may be in both halves.
    """
    told = [
        {
            **row,
            "id": f"context-{index}",
            "question": f"{row['rationales'][0]}\n{row['question']}",
            "rationales": row["rationales"][:1],
        }
        for index, row in enumerate(dependency_rows("pretraining", count // 2))
    ]
    return [*told, *dependency_rows("pretraining", count, short_cuts=short_cuts)[count // 2 :]]
