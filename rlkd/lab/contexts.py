"""Dependency problems that begin with their solution, for a student that is to use the context in its prompt."""

from __future__ import annotations

from rlkd.lab.problems import dependency_rows


def context_rows(count: int, *, short_cuts: float) -> list[dict]:
    """`count` rows of the split `pretraining`, always the same: half of the questions begin with their solution.

    These come first; the exact solution, on lines of its own, is their rationale as well. The others are plain
    problems; a share `short_cuts` of their rationales takes a short cut, so that the student keeps its habits. A
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
