"""The control for teacher signals: every row gets the teacher of another row."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlkd.data.rows import Row
from rlkd.errors import UsageError


def shuffled_teachers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with the `rationales` and `structures` of another row; question and answer stay.

    The control for "does the teacher's reasoning help, or would any text of that form?" (our choice). No row keeps its
    own teacher, and no teacher is used twice. A teacher comes from a row with equally many steps, so that length is
    no difference between the runs; where a number of steps occurs once, from a row with nearly as many. Equal seeds
    give equal results, whatever the order of the rows.

    Rows without a teacher stay as they are. Raises `UsageError` where fewer than two rows have one.
    """
    teaching = sorted((row for row in rows if _teacher_steps(row)), key=lambda row: row["id"])
    if len(teaching) < 2:
        raise UsageError(
            f"teachers cannot be shuffled: {len(teaching)} of {len(rows)} rows have rationales or structures, and two "
            f"are the least"
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
    """Steps of a row's first teacher trace: those of its structure, else its lines. 0: it has none."""
    if row["structures"]:
        return max(1, len(row["structures"][0]))
    return max(1, len(list(filter(str.strip, row["rationales"][0].split("\n"))))) if row["rationales"] else 0
