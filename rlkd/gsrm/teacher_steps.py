"""Which steps of a long teacher trace count: those that lead to its final result, or each calculation once.

Long traces check, restate and start again; a student that solves the problem in five steps cannot match most of that.
All of this is our choice (`docs/structure.md` compares the three).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from fractions import Fraction

from rlkd.answers import number, numbers, squeezed
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


def path_steps(structure: Structure) -> Structure:
    """The distinct steps that the final result rests on: without checks, restatements and most abandoned attempts.

    The final result is that of the last step with a readable calculation; a structure without one stays as it is. A
    step rests on the latest earlier steps whose results are numbers of its calculation, one that only states a result
    on the latest earlier step with that result; and so on backwards.

    >>> tried = [Step("Sum?", "16+3", "19"), Step("Eggs left?", "16-3", "13"), Step("Check:", "13+3", "16")]
    >>> [step.question for step in path_steps(Structure([*tried, Step("Income?", "13*2", "26")]))]
    ['16-3', '13*2']
    """
    structure = distinct_steps(structure)
    results = [None if step.answer is None else number(step.answer) for step in structure]
    calculated = [i for i, step in enumerate(structure) if results[i] is not None and _calculation(step) is not None]
    if not calculated:
        return structure
    kept, waiting = {calculated[-1]}, [calculated[-1]]
    while waiting:
        index = waiting.pop()
        for operand in _operands(structure[index]):
            source = next((i for i in reversed(range(index)) if results[i] == operand), None)
            if source is not None and source not in kept:
                kept.add(source)
                waiting.append(source)
    return Structure(structure[i] for i in sorted(kept))


def _calculation(step: Step) -> Calculation | None:
    return calculation(step.question) if step.question else None


def _operands(step: Step) -> Iterable[Fraction]:
    found = _calculation(step)
    return found.operands if found else numbers(f"{step.question or ''} {step.answer or ''}")
