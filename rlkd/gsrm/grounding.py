"""Holding a structure against its trace: calculations and results stand as the trace has them, or not at all.

A small structure model finds the steps and says what each is for, but it copies badly: `1.5*4` becomes `15*4`,
brackets go, and now and then a step is left out. What a trace calculates can be read off it exactly
(`rlkd.steps.calculations`), so the model's steps are aligned with these calculations, in order:

- a step that resembles a calculation gets its numbers from there;
- a calculation that no step resembles becomes a step of its own, without a sub-question;
- a step that resembles none goes if the trace does not have its result (the model has made it up), and, where the
  trace calculates at all, if it is no calculation (a fact of the problem, stated again) or one that has been had.

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
from collections.abc import Container, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from fractions import Fraction

from rlkd.answers import number
from rlkd.gsrm.training import canonical_calculation
from rlkd.steps import calculations
from rlkd.structure import Step, Structure

# From this likeness on (difflib's ratio of `calculation=result`) a step means a calculation.
ALIKE = 0.7
_ARITHMETIC = re.compile(r"\d[^\d]*[-+*/^][^\d]*\d")
_NUMBER = re.compile(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+")


def grounded(structure: Structure, text: str) -> Structure:
    """The structure with its calculations and results as `text`, the trace, has them."""
    found = []
    for question, answer in calculations(text):
        known = (canonical_calculation(question) or question, answer)
        if known not in found:
            found.append(known)
    shown = {number(written) for written in _NUMBER.findall(text)}
    steps: list[Step] = []
    partners = _aligned(structure.steps, found)
    position = 0
    for step, partner in zip(structure, partners, strict=True):
        if partner is not None:
            steps += [Step(None, question, answer) for question, answer in found[position:partner]]
            position = partner + 1
            question, answer = found[partner]
            steps.append(replace(step, question=question, answer=answer))
        elif _stays(step, found, shown):
            steps.append(step)
    steps += [Step(None, question, answer) for question, answer in found[position:]]
    return Structure(steps)


def _stays(step: Step, found: Sequence[tuple[str, str]], shown: Container[Fraction | None]) -> bool:
    """Whether a step that means none of the calculations `found` is one in its own right; `shown`: the numbers."""
    if step.answer is None or not all(number(written) in shown for written in _NUMBER.findall(step.answer)):
        return False
    if not found:
        return True
    question = canonical_calculation(step.question) or ""
    return _ARITHMETIC.search(question) is not None and all(answer != step.answer for _, answer in found)


def _aligned(steps: Sequence[Step], found: Sequence[tuple[str, str]]) -> list[int | None]:
    """Which calculation each step means: the alignment in order with the greatest likeness in all."""
    likeness = [[_likeness(step, calculation) for calculation in found] for step in steps]
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


def _likeness(step: Step, calculation: tuple[str, str]) -> float:
    if step.question is None or step.answer is None:
        return 0.0
    question, answer = calculation
    mine = f"{canonical_calculation(step.question)}={step.answer}"
    ratio = SequenceMatcher(None, mine, f"{question}={answer}", autojunk=False).ratio()
    # The same result is worth something where the calculation is written in another way.
    same = number(step.answer) is not None and number(step.answer) == number(answer)
    return ratio if ratio >= ALIKE or (same and ratio >= ALIKE - 0.25) else 0.0
