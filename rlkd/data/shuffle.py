"""Shuffled teachers, the control for teacher signals: every row gets the teacher of another row."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlkd.data.rows import Row
from rlkd.errors import UsageError


def shuffled_teachers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with its own question and answer and the `rationales` and `structures` of another row.

    The control for "does the teacher's reasoning help, or would any text of that form?" (our choice). No row keeps its
    own teacher, and no teacher is used twice. A teacher comes from a row with the same number of steps, so that length
    does not differ between the runs; if a number of steps occurs only once, from a row with a similar number. Equal
    seeds give equal results, whatever the order of the rows.

    Rows without a teacher stay unchanged. Raises `UsageError` if fewer than two rows have one.
    """
    teaching = sorted((row for row in rows if _teacher_steps(row)), key=lambda row: row["id"])
    if len(teaching) < 2:
        raise UsageError(
            f"teachers cannot be shuffled: {len(teaching)} of {len(rows)} rows have rationales or structures; "
            f"expected at least two"
        )
    random.Random(seed).shuffle(teaching)
    teaching.sort(key=_teacher_steps)
    groups: list[list[Row]] = []
    for row in teaching:
        if groups and (_teacher_steps(row) == _teacher_steps(groups[-1][-1]) or len(groups[-1]) == 1):
            groups[-1].append(row)
        else:
            groups.append([row])
    if len(groups[-1]) == 1:
        last = groups.pop()
        groups[-1] += last
    giver = {row["id"]: group[i - 1] for group in groups for i, row in enumerate(group)}
    return [
        row | {name: giver[row["id"]][name] for name in ("rationales", "structures")} if row["id"] in giver else row
        for row in rows
    ]


def _teacher_steps(row: Row) -> int:
    """The number of steps in a row's first structure, or of lines in its first rationale; 0 without a teacher."""
    if row["structures"]:
        return max(1, len(row["structures"][0]))
    return max(1, len(list(filter(str.strip, row["rationales"][0].split("\n"))))) if row["rationales"] else 0
