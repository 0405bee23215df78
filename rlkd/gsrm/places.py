"""The place of each step in the trace that it was read from, whatever decomposer has read it.

A step's place is its sentence. A sentence with several steps is divided before each calculation but the first:

    >>> text = "4 apples cost 1.5 * 4 = 6 dollars, so 10 - 6 = 4 are left. That is all."
    >>> steps = Structure([Step("What do they cost?", "1.5*4", "6"), Step(None, "10-6", "4")])
    >>> [text[slice(*place)] for place in step_places(steps, text)]
    ['4 apples cost 1.5 * 4 = 6 dollars, so ', '10 - 6 = 4 are left.']

The place of a step that its author has tagged is the text from `<step>` to `</step>`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rlkd.answers import number, numbers
from rlkd.gsrm.alignment.ordered import best_matches
from rlkd.gsrm.calculations import canonical_calculation
from rlkd.gsrm.traces import reasoning_part
from rlkd.steps import calculations, sentence_spans, strip_calculator_marks, undecorated
from rlkd.structure import Step, Structure, parse

# Most parts and steps that are compared; more is no solution but a loop.
LONGEST = 200
_START, _END = (re.compile(rf"<\s*+{slash}\s*+step\s*+>", re.IGNORECASE) for slash in ("", "/"))

Place = tuple[int, int]
"""The characters [start, stop) of a text."""


def step_places(structure: Structure, text: str) -> list[Place | None]:
    """The place of each step of a structure in `text`, the completion; None for a step that is not found.

    Places do not overlap and are in order. A step is found by its sentence (the rules decomposer), else by its
    calculation, else by its result: the best matching of steps and sentences that keeps the order of both.
    """
    steps = structure.steps[:LONGEST]
    places = _tagged(steps, text.partition("</think>")[0])
    if places is None:
        places = _matched(steps, _parts(text))
    return places + [None] * (len(structure) - len(steps))


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a step or a part of the text says, in forms that can be compared."""

    sentence: str | None
    question: str | None
    answer: str | None
    result: Fraction | None

    @classmethod
    def of(cls, sentence: str | None, question: str | None, answer: str | None) -> _Fact:
        return cls(sentence, canonical_calculation(question), answer, None if answer is None else number(answer))


@dataclass(frozen=True, slots=True)
class _Part:
    """A sentence at `sentence`, or the part [start, stop) of it that one of its calculations has."""

    start: int
    stop: int
    sentence: Place
    fact: _Fact
    numbers: frozenset[Fraction]


def _tagged(steps: Sequence[Step], text: str) -> list[Place | None] | None:
    """The places of tagged steps; None where these are not the steps of the structure."""
    starts = [start.start() for start in _START.finditer(text)]
    found: list[Step] = []
    places: list[Place | None] = []
    for start, stop in pairwise([*starts, len(text)]):
        is_last = stop == len(text)
        own = parse(text[start:stop] + ("" if is_last else "</step>")).structure
        end = _END.search(text, start, stop)
        found += own
        places += [(start, end.end() if end else stop)] * len(own)
    return places if found and found == list(steps) else None


def _parts(text: str) -> list[_Part]:
    """The sentences of the reasoning, each divided among its calculations, in order."""
    reasoning = reasoning_part(text)
    offset = text.index(reasoning)
    parts: list[_Part] = []
    for start, stop in sentence_spans(reasoning):
        sentence = reasoning[start:stop]
        place = offset + start, offset + stop
        plain = undecorated(sentence)
        found = calculations(sentence)
        # The next calculation begins behind the equals sign of the one before it.
        cuts = [
            max(before, plain.rfind(question, before, equals))
            for (before, *_), (equals, question, _) in pairwise(found)
        ]
        origins = _origins(plain, sentence)
        edges = [place[0], *(place[0] + origins[cut] for cut in cuts), place[1]]
        shown = strip_calculator_marks(sentence).strip()
        stated = frozenset(numbers(shown))
        said: list[tuple[str | None, str | None]] = [(question, answer) for _, question, answer in found]
        for (own, end), (question, answer) in zip(pairwise(edges), said or [(None, None)], strict=True):
            # A step that is the whole sentence has its last calculation.
            whole = shown if end == place[1] else None
            parts.append(_Part(own, end, place, _Fact.of(whole, question, answer), stated))
    return parts[:LONGEST]


def _origins(plain: str, text: str) -> list[int]:
    """The position in `text` of each character of `plain`, which is `text` with some characters left out."""
    origins = []
    position = 0
    for character in plain:
        position = text.index(character, position)
        origins.append(position)
        position += 1
    return origins


def _matched(steps: Sequence[Step], parts: Sequence[_Part]) -> list[Place | None]:
    places: list[Place | None] = [None] * len(steps)
    facts = [_Fact.of(step.meta, step.question, step.answer) for step in steps]
    matches = best_matches([[_likeness(fact, part) for part in parts] for fact in facts])
    taken = [parts[own] for _, own in matches]
    for (index, _), part, before, after in zip(matches, taken, [None, *taken], [*taken[1:], None], strict=False):
        start = part.start if before and before.sentence == part.sentence else part.sentence[0]
        stop = after.start if after and after.sentence == part.sentence else part.sentence[1]
        places[index] = start, stop
    return places


def _likeness(step: _Fact, part: _Part) -> float:
    """How surely a part of the text is that of a step: 1, 1/2, 1/4, or 0 for not at all."""
    own = part.fact
    if step.sentence is not None and step.sentence == own.sentence:
        return 1.0
    if own.answer is None:
        return 0.25 if step.result in part.numbers else 0.0
    if step.answer != own.answer and (step.result is None or step.result != own.result):
        return 0.0
    return 1.0 if step.question is not None and step.question == own.question else 0.5
