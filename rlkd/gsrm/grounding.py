"""Holding a structure against its trace: calculations and results stand as the trace has them, or not at all.

A small structure model finds the steps and says what each is for, but it copies badly: `1.5*4` becomes `15*4`,
brackets go, and now and then a step is left out. What a trace calculates can be read off it
(`rlkd.steps.calculations`, which says what it misses), so the model's steps are aligned with these calculations, in
order:

- a step that resembles a calculation gets its numbers from there;
- a calculation that no step resembles becomes a step of its own, without a sub-question, the first time that it stands
  in the trace;
- a step that resembles none stays if it is a calculation of its own whose result the trace states by itself (`half of
  the 48 are 24`); else it is a fact of the problem, or made up. So steps without arithmetic survive only in traces
  without any, where they stay if the trace has their result.

All of this is our choice. It corrects the report, never the reasoning: a calculation that is wrong in the trace stays
wrong.

    >>> model = Structure([Step("How much do the apples cost?", "15*4", "6")])
    >>> for step in grounded(model, "4 apples cost 1.5 * 4 = 6 dollars, so 10 - 6 = 4 are left."):
    ...     print(step.meta, step.question, step.answer)
    How much do the apples cost? 1.5*4 6
    None 10-6 4
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from rlkd.answers import number, numbers
from rlkd.gsrm.calculations import calculation
from rlkd.gsrm.training import canonical_calculation
from rlkd.steps import calculations, undecorated
from rlkd.structure import Step, Structure

# From this likeness on (difflib's ratio of `calculation=result`) a step means a calculation.
ALIKE = 0.7
# So many calculations and steps are looked at; more is no solution but a loop.
LONGEST = 200
_ARITHMETIC = re.compile(r"\d[^\d]*[-+*/^][^\d]*\d")
# A number on its own: no operand, and no result of a calculation.
_ALONE = r"(?<![\d.,+*/^×=≈$-])(?<![=≈+*/^×-] )\$?{}(?!\d|[.,]\d|\s*[-+*/^=])"


def grounded(structure: Structure, text: str) -> Structure:
    """The structure with its calculations and results as `text`, the trace, has them."""
    text = undecorated(text)
    found = [(place, canonical_calculation(q) or q, a) for place, q, a in calculations(text)][:LONGEST]
    model = structure.steps[:LONGEST]
    shown = set(numbers(text))
    partners = _aligned(model, [(question, answer) for _, question, answer in found])
    placed: list[tuple[int, Step]] = []
    had = set()
    place = 0
    for step, partner in zip(model, partners, strict=True):
        if partner is not None:
            place, question, answer = found[partner]
            had.add((question, answer))
            placed.append((place, replace(step, question=question, answer=answer)))
        elif not found:
            if step.answer is not None and shown.issuperset(numbers(step.answer)):
                placed.append((place, step))
        elif _is_new(step, found) and (result := _alone(step.answer).search(text, place)):
            # Worked out in words: it stands where its result does.
            place = result.start()
            placed.append((place, step))
    for there, question, answer in found:
        if (question, answer) not in had:
            had.add((question, answer))
            placed.append((there, Step(None, question, answer)))
    return Structure(step for _, step in sorted(placed, key=lambda pair: pair[0]))


def _alone(answer: str | None) -> re.Pattern[str]:
    return re.compile(_ALONE.format(re.escape(answer)) if answer else r"(?!)")


def _is_new(step: Step, found: Sequence[tuple[int, str, str]]) -> bool:
    """Whether a step is a calculation, and none of those that were found."""
    mine = canonical_calculation(step.question) or ""
    if _ARITHMETIC.search(mine) is None:
        return False
    read = calculation(mine)
    return not any(
        mine == question or (read is not None and read == calculation(question)) for _, question, _ in found
    )


def _aligned(steps: Sequence[Step], found: Sequence[tuple[str, str]]) -> list[int | None]:
    """Which calculation each step means: the alignment in order with the greatest likeness in all."""
    likeness = [_likenesses(step, found) for step in steps]
    best = [[0.0] * (len(found) + 1) for _ in range(len(steps) + 1)]
    for i in reversed(range(len(steps))):
        for j in reversed(range(len(found))):
            best[i][j] = max(likeness[i][j] + best[i + 1][j + 1], best[i + 1][j], best[i][j + 1])
    partners: list[int | None] = []
    j = 0
    for i in range(len(steps)):
        while j < len(found) and best[i][j] == best[i][j + 1] and best[i][j] > best[i + 1][j]:
            j += 1
        takes = j < len(found) and likeness[i][j] > 0 and best[i][j] == likeness[i][j] + best[i + 1][j + 1]
        partners.append(j if takes else None)
        j += takes
    return partners


def _likenesses(step: Step, found: Sequence[tuple[str, str]]) -> list[float]:
    if step.question is None or step.answer is None:
        return [0.0] * len(found)
    result = number(step.answer)
    matcher = SequenceMatcher(None, autojunk=False)
    matcher.set_seq2(f"{canonical_calculation(step.question)}={step.answer}")
    likenesses = []
    for question, answer in found:
        # The same result is worth something where the calculation is written in another way.
        enough = ALIKE - 0.25 if result is not None and result == number(answer) else ALIKE
        matcher.set_seq1(f"{question}={answer}")
        near = matcher.real_quick_ratio() >= enough and matcher.quick_ratio() >= enough
        likenesses.append(ratio if near and (ratio := matcher.ratio()) >= enough else 0.0)
    return likenesses
