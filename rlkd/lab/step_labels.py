"""Solutions of dependency problems with faults, and which of their steps are true: data for a process reward model.

A step is true if its sentence is the question's and all of its numbers are right: the values that it calculates with,
and the result. A fault is carried on: what uses a wrong value is wrong, until a true step takes its place. Whether the
answer needs a step is no part of it.

    >>> question = "Ann has 3 more than Ben. Ben has 4 pens. How many pens does Ann have?"
    >>> true_steps(read_dependency(question))
    ['Ann has 3 more than Ben: 4 + 3 = 7, so Ann has 7.']
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from rlkd.lab.problems import (
    ALL_LENGTHS,
    NAMES,
    RELATIONS,
    DependencyProblem,
    Holding,
    Relation,
    random_problem,
    split_of,
)

FAULTS = ("jump", "sentence", "value", "result")
"""Of a step: it uses what is not known yet; its sentence, a value or its result is wrong."""
_LONGEST = 6
_LARGEST_WRITTEN = 90
_STATEMENT = re.compile(
    r"(\w+) has (?:(?P<given>\d+) (?P<thing>\w+)|(?P<number>\d+) (?P<relation>more|fewer|times)[a-z ]* (?P<parent>\w+)"
    r"|as many as (?P<first>\w+) and (?P<second>\w+) together)\."
)


def true_steps(problem: DependencyProblem) -> list[str]:
    """The true step of each quantity that is not given, whether the answer needs it or not."""
    values: dict[str, int] = {}
    lines, waiting = [], list(problem.quantities)
    while waiting:
        quantity = next(q for q in waiting if all(parent in values for parent in q.parents))
        waiting.remove(quantity)
        if quantity.number is not None and not quantity.parents:
            values[quantity.name] = quantity.number
        else:
            text, value = quantity.calculation(values)
            values[quantity.name] = value
            lines.append(_step(problem, quantity, text, value))
    return lines


def read_dependency(question: str) -> DependencyProblem:
    """The problem of a question that the generator has written, its quantities in the order of the text."""
    quantities = []
    for found in _STATEMENT.finditer(question):
        name, given = found[1], found["given"]
        if given:
            quantities.append(Holding(name, "given", int(given)))
        elif found["first"]:
            quantities.append(Holding(name, "together", None, (found["first"], found["second"])))
        else:
            relation: Relation = found["relation"]  # type: ignore[assignment]  # of the pattern
            quantities.append(Holding(name, relation, int(found["number"]), (found["parent"],)))
    words = question.split()
    return DependencyProblem(tuple(quantities), words[-2], words[-4], tuple(range(len(quantities))))


def faulty_solutions(count: int, *, faults: float, flawless: float) -> list[tuple[DependencyProblem, list[str]]]:
    """Problems of the split `pretraining` with the steps of an unreliable solver; always the same.

    A share `flawless` has no fault; in the others each step has one with probability `faults`.
    """
    draw = random.Random("faulty solutions")
    found: list[tuple[DependencyProblem, list[str]]] = []
    while len(found) < count:
        problem = random_problem(draw, ALL_LENGTHS)
        if split_of(problem.question) == "pretraining":
            found.append((problem, faulty_steps(problem, 0.0 if draw.random() < flawless else faults, draw)))
    return found


def faulty_steps(problem: DependencyProblem, faults: float, draw: random.Random) -> list[str]:
    """The steps of a solver who carries faults on; it ends with the quantity asked for, or gives up.

    It takes a quantity that is not needed, too, where one can be calculated.
    """
    known = {q.name: q.number for q in problem.quantities if q.relation == "given" and q.number is not None}
    steps = list[str]()
    while problem.asked not in known and len(steps) < _LONGEST:
        fault = draw.choice(FAULTS) if draw.random() < faults else None
        open_ones = [quantity for quantity in problem.quantities if quantity.name not in known]
        ready = [quantity for quantity in open_ones if set(quantity.parents) <= known.keys()]
        later = [quantity for quantity in open_ones if quantity not in ready]
        quantity = draw.choice(later if fault == "jump" and later else ready)
        guessed = {name: _guess(problem, name, known, draw) for name in quantity.parents if name not in known}
        line, known[quantity.name] = _faulty(problem, quantity, known | guessed, fault, draw)
        steps.append(line)
    return steps


def _faulty(
    problem: DependencyProblem, quantity: Holding, values: dict[str, int], fault: str | None, draw: random.Random
) -> tuple[str, int]:
    """The line of a step, with a fault in its sentence, a value or the result; and the value that it states."""
    read = _misread(quantity, draw) if fault == "sentence" else quantity
    values = values | {name: draw.randint(1, 20) for name in read.parents if name not in values}
    if fault == "value":
        values[draw.choice(read.parents)] = draw.choice([*values.values(), draw.randint(1, 20)])
    text, result = read.calculation(values)
    if fault == "result" or not 0 <= result <= _LARGEST_WRITTEN:
        result = max(0, min(_LARGEST_WRITTEN, result) + draw.choice((-3, -2, -1, 1, 1, 2, 3)))
    return _step(problem, read, text, result), result


def _step(problem: DependencyProblem, quantity: Holding, calculation: str, result: int) -> str:
    return f"{quantity.statement(problem.thing)}: {calculation} = {result}, so {quantity.name} has {result}."


def _misread(quantity: Holding, draw: random.Random) -> Holding:
    """The quantity with another parent, relation or number."""
    part = draw.choice(("parent", "relation", "number"))
    if part == "parent" or quantity.number is None:
        others = [name for name in NAMES if name not in (quantity.name, *quantity.parents)]
        place, other = draw.randrange(len(quantity.parents)), draw.choice(others)
        return replace(quantity, parents=(*quantity.parents[:place], other, *quantity.parents[place + 1 :]))
    if part == "relation":
        return replace(quantity, relation=draw.choice([one for one in RELATIONS if one != quantity.relation]))
    return replace(quantity, number=draw.choice([number for number in range(2, 10) if number != quantity.number]))


def _guess(problem: DependencyProblem, name: str, known: dict[str, int], draw: random.Random) -> int:
    """A value for a quantity that is not known yet: the number in its sentence, as a hasty reader takes it, or any."""
    number = next(quantity.number for quantity in problem.quantities if quantity.name == name)
    return number if number is not None and draw.random() < 0.7 else draw.choice([*known.values(), 5])
