"""Which steps of a long teacher trace count: those that lead to its final result, or each calculation once.

Long traces check, restate and start again; a student that solves the problem in five steps cannot match most of that.
All of this is our choice (`docs/structure.md` compares the three).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction

from rlkd.answers import number, numbers, squeezed
from rlkd.answers.numbers import Quantity, read_quantity
from rlkd.gsrm.calculations import Calculation, calculation
from rlkd.structure import Step, Structure


def distinct_steps(structure: Structure) -> Structure:
    """The structure with each step once: the same calculation with the same result is the same step.

    Steps without a readable calculation are the same if their texts are. The first of equal steps stays.

    >>> steps = [Step("Eggs left?", "16-3", "13"), Step("Check:", "16 - 3", "13"), Step("Again:", "16-3", "12")]
    >>> [step.meta for step in distinct_steps(Structure(steps))]
    ['Eggs left?', 'Again:']
    """
    found: dict[Hashable, Step] = {}
    for step in structure:
        found.setdefault(_identity(step), step)
    return Structure(found.values())


def _identity(step: Step) -> Hashable:
    found = _calculation(step)
    if found is None:
        return step.meta, step.question, step.answer
    return found, None if step.answer is None else _value(step.answer)


def _value(answer: str) -> Fraction | str:
    value = number(answer)
    return squeezed(answer) if value is None else value


def path_steps(structure: Structure, answer: str | None = None) -> Structure:
    """The distinct steps that the final result rests on: without checks, restatements and most abandoned attempts.

    `answer`: the problem's, where known. The final result is that of the last step with a readable calculation whose
    result is this answer. Where there is none it is that of the last new calculation, or of a repetition that uses
    that one's result; then a check at the end counts. Without a readable calculation all distinct steps
    count.

    A step rests on the latest earlier steps whose results are numbers of its calculation, one that only states a
    result on the latest earlier step with that result; and so on backwards. Signs do not count, 25 % is 25 and 0.25,
    and where no result is the number itself, a rounded one with two decimals or more is.

    >>> tried = [Step("Sum?", "16+3", "19"), Step("Eggs left?", "16-3", "13"), Step("Check:", "13+3", "16")]
    >>> trace = Structure([*tried, Step("Income?", "13*2", "26"), Step("Check:", "13+3", "16")])
    >>> [step.question for step in path_steps(trace, "$26")]
    ['16-3', '13*2']
    """
    steps = structure.steps
    results = [None if step.answer is None else _result(step.answer) for step in steps]
    calculated = [i for i, step in enumerate(steps) if results[i] is not None and _calculation(step) is not None]
    if not calculated:
        return distinct_steps(structure)
    final = _final(steps, results, calculated, None if answer is None else _result(answer))
    kept, waiting = {final}, [final]
    while waiting:
        index = waiting.pop()
        for operand in _operands(steps[index]):
            source = _source(operand, results[:index])
            if source is not None and source not in kept:
                kept.add(source)
                waiting.append(source)
    return distinct_steps(Structure(steps[i] for i in sorted(kept)))


def _final(
    steps: Sequence[Step], results: Sequence[Quantity | None], calculated: Sequence[int], answer: Quantity | None
) -> int:
    if answer is not None:
        right = [i for i in calculated if _source(answer, [results[i]]) is not None]
        if right:
            return right[-1]
    first: dict[Hashable, int] = {}
    for index in calculated:
        first.setdefault(_identity(steps[index]), index)
    final = max(first.values())
    for index in calculated:
        if index > final and any(
            _source(operand, [results[final]]) is not None for operand in _operands(steps[index])
        ):
            final = index
    return final


def _source(number: Quantity, results: Sequence[Quantity | None]) -> int | None:
    """The place of the latest result that is this number, or else of the latest that is it rounded."""
    for same in (_equal, _rounded):
        for place in reversed(range(len(results))):
            result = results[place]
            if result is not None and any(same(*map(abs, pair)) for pair in result.values(number)):
                return place
    return None


def _equal(one: Fraction, other: Fraction) -> bool:
    return one == other


def _rounded(one: Fraction, other: Fraction) -> bool:
    """Whether a decimal of two digits or more is the other number, rounded or with further digits left out."""
    for short, long in ((one, other), (other, one)):
        digits = next((n for n in range(13) if (short * 10**n).denominator == 1), 0)
        if digits >= 2 and abs(short - long) * 10**digits < 1:
            return True
    return False


def _result(answer: str) -> Quantity | None:
    found = read_quantity(answer)
    return None if found is None or found.calculated else Quantity(found.value, percent=found.percent)


def _calculation(step: Step) -> Calculation | None:
    return calculation(step.question) if step.question else None


def _operands(step: Step) -> Iterable[Quantity]:
    found = _calculation(step)
    if found is None:
        return map(Quantity, numbers(f"{step.question or ''} {step.answer or ''}"))
    percentages = {Fraction(text.replace(",", "")) for text in _PERCENTAGE.findall(step.question or "")}
    return [Quantity(value, percent=value in percentages) for value in found.operands]


_PERCENTAGE = re.compile(r"(\d[\d,]*(?:\.\d+)?|\.\d+)\s*\\?%")
