"""Controls for teacher signals: the teacher of another row, or the row's own steps in another order."""

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


def shuffled_steps(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, the steps of each rationale and structure in another order.

    The control for "does the order of the steps matter, or would a bag of them do?" (our choice). Steps of a rationale
    are its lines; a line with the final answer (`####`) stays last. A rationale and its structure get the same order
    if they have as many steps. Equal seeds give equal results, whatever the order of the rows.

    Traces of one step stay as they are. Raises `UsageError` if no trace has two.
    """
    found, shuffled_any = [], False
    for row in rows:
        rationales, structures = [], []
        for branch in range(max(len(row["rationales"]), len(row["structures"]))):
            lines = row["rationales"][branch].split("\n") if row["rationales"] else []
            steps = list(row["structures"][branch]) if row["structures"] else []
            body = [line for line in lines if not line.startswith("####")]
            rest = [line for line in lines if line.startswith("####")]
            for sequence in (body, steps):
                order = _other_order(len(sequence), f"{seed} {row['id']} {branch}")
                shuffled_any = shuffled_any or len(order) > 1
                sequence[:] = [sequence[index] for index in order]
            rationales.append("\n".join([*body, *rest]))
            structures.append(steps)
        changed = {"rationales": rationales} if row["rationales"] else {}
        found.append(row | changed | ({"structures": structures} if row["structures"] else {}))
    if not shuffled_any:
        raise UsageError(f"steps cannot be shuffled: none of the {len(rows)} rows has a teacher trace of two steps")
    return found


def _other_order(count: int, seed: str) -> list[int]:
    """A random order of `count` things that is not the given one; of fewer than two, the given one."""
    order = list(range(count))
    draw = random.Random(seed)
    while count > 1 and order == sorted(order):
        draw.shuffle(order)
    return order


def _teacher_steps(row: Row) -> int:
    """The number of steps in a row's first structure, or of lines in its first rationale; 0 without a teacher."""
    if row["structures"]:
        return max(1, len(row["structures"][0]))
    return max(1, len(list(filter(str.strip, row["rationales"][0].split("\n"))))) if row["rationales"] else 0
