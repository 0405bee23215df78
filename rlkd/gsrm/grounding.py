"""Grounding: corrects the calculations and results of a structure by those in its trace.

The calculations of a trace can be parsed (`rlkd.steps.calculations`), and the model's steps are aligned with them in
order:

- a step that resembles a calculation gets its numbers;
- a calculation that no step resembles becomes a step without a sub-question, at its first occurrence in the trace;
- a step that resembles none stays if it is a calculation of its own whose result the trace states by itself (`half of
  the 48 are 24`), or if the trace has no calculations but has its result.

All of this is our choice. It corrects the report, never the reasoning: a wrong calculation in the trace stays wrong.

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
from rlkd.gsrm.alignment.ordered import best_sums
from rlkd.gsrm.calculations import calculation, canonical_calculation
from rlkd.steps import calculations, undecorated
from rlkd.structure import Step, Structure

# Least likeness (difflib's ratio of `calculation=result`) of a step and the calculation that it means.
ALIKE = 0.7
# Most calculations and steps that are read; more is no solution but a loop.
LONGEST = 200
_ARITHMETIC = re.compile(r"\d[^\d]*[-+*/^][^\d]*\d")
# A number on its own: no operand, and no result of a calculation.
_ALONE = r"(?<![\d.,+*/^×=≈$-])(?<![=≈+*/^×-] )\$?{}(?!\d|[.,]\d|\s*[-+*/^=])"


def grounded(structure: Structure, text: str) -> Structure:
    """The structure with the calculations and results of `text`, the trace."""
    text = undecorated(text)
    found = [(start, canonical_calculation(q) or q, a) for start, q, a in calculations(text)][:LONGEST]
    steps = structure.steps[:LONGEST]
    shown = set(numbers(text))
    partners = _aligned(steps, [(question, answer) for _, question, answer in found])
    placed: list[tuple[int, Step]] = []
    used = set()
    position = 0
    for step, partner in zip(steps, partners, strict=True):
        if partner is not None:
            position, question, answer = found[partner]
            used.add((question, answer))
            placed.append((position, replace(step, question=question, answer=answer)))
        elif not found:
            if step.answer is not None and shown.issuperset(numbers(step.answer)):
                placed.append((position, step))
        elif _is_new(step, found) and (result := _alone(step.answer).search(text, position)):
            # Worked out in words: its position is that of its result.
            position = result.start()
            placed.append((position, step))
    for start, question, answer in found:
        if (question, answer) not in used:
            used.add((question, answer))
            placed.append((start, Step(None, question, answer)))
    return Structure(step for _, step in sorted(placed, key=lambda pair: pair[0]))


def _alone(answer: str | None) -> re.Pattern[str]:
    return re.compile(_ALONE.format(re.escape(answer)) if answer else r"(?!)")


def _is_new(step: Step, found: Sequence[tuple[int, str, str]]) -> bool:
    """Whether a step is a calculation other than those that were found."""
    own = canonical_calculation(step.question) or ""
    if _ARITHMETIC.search(own) is None:
        return False
    read = calculation(own)
    return not any(own == question or (read is not None and read == calculation(question)) for _, question, _ in found)


def _aligned(steps: Sequence[Step], found: Sequence[tuple[str, str]]) -> list[int | None]:
    """The calculation that each step means: the alignment in order with the greatest total likeness."""
    likeness = [_likenesses(step, found) for step in steps]
    best = best_sums(likeness)
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
        # Less is enough where the result is the same and the calculation has another notation.
        enough = ALIKE - 0.25 if result is not None and result == number(answer) else ALIKE
        matcher.set_seq1(f"{question}={answer}")
        near = matcher.real_quick_ratio() >= enough and matcher.quick_ratio() >= enough
        likenesses.append(ratio if near and (ratio := matcher.ratio()) >= enough else 0.0)
    return likenesses
