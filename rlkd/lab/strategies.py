"""Word problems of four kinds, each of which four strategies solve; numbers small enough for the laboratory's student.

    >>> question = "Ann buys 4 bags with 6 pens and 3 cards in each bag. How many things does Ann buy?"
    >>> read_problem(question)
    StrategyProblem(kind='packs', number=4, parts=(6, 3))

`rlkd.lab.solutions` has the strategies.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from rlkd.errors import UsageError
from rlkd.lab.problems import NAMES, SPLITS, THINGS
from rlkd.lab.solutions import LARGEST_VALUE, STEP_NAMES, STRATEGIES, StrategyProblem, solve

KINDS = ("packs", "gifts", "shares", "gap")
# A word that only this kind of question has.
_MARKS = {"packs": "bags", "gifts": "gives", "shares": "times", "gap": "boxes"}


def read_problem(question: str) -> StrategyProblem:
    """The problem of a question. Raises ValueError for another text."""
    kind = next((kind for kind, mark in _MARKS.items() if re.search(rf"\b{mark}\b", question)), None)
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if kind is None or len(numbers) < 3:
        raise ValueError(f"no problem of the laboratory's strategies: {question[:200]!r}")
    first, *parts = numbers
    return StrategyProblem(kind, first, tuple(parts[::2] if kind == "gap" else parts))


def strategy_rows(split: str, count: int) -> list[dict]:
    """The first `count` problems of a split as rows, with a right solution by each strategy; always the same.

    A hash of the question assigns the split, so no question is in two of them. Each row has the column `kind`. Raises
    `UsageError` for an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} of the strategy problems: expected one of {', '.join(SPLITS)}")
    draw = random.Random(f"strategy problems {split}")  # a text as seed gives the same numbers in all versions
    rows: dict[str, dict] = {}
    while len(rows) < count:
        problem = _problem(draw)
        question = _question(problem, draw)
        if _split(question) == split and question not in rows:
            solutions = [solve(problem, strategy) for strategy in STRATEGIES]
            rows[question] = {
                "id": f"strategies-{split}-{len(rows)}",
                "question": question,
                "answer": str(solutions[0].answer),
                "rationales": [solution.text() for solution in solutions],
                "kind": problem.kind,
            }
    return list(rows.values())


def pretraining_rows(count: int) -> list[dict]:
    """Problems with one right solution each, by any strategy, its steps named in half of the rows."""
    draw = random.Random("strategy pretraining")
    rows = strategy_rows("pretraining", count)
    for row in rows:
        solution = solve(read_problem(row["question"]), draw.choice(STRATEGIES))
        names = [draw.choice(STEP_NAMES[name]) for name, _ in solution.steps]
        row["rationales"] = [solution.text(names if draw.random() < 0.5 else ())]
    return rows


def _problem(draw: random.Random) -> StrategyProblem:
    """A random problem whose values all stay within `LARGEST_VALUE`."""
    while True:
        kind = draw.choice(KINDS)
        if kind == "gap":
            less = draw.randint(2, 7)
            problem = StrategyProblem(kind, draw.randint(3, 9), (draw.randint(less + 2, 9), less))
        elif kind == "shares":
            problem = StrategyProblem(kind, draw.randint(3, 12), tuple(draw.randint(2, 4) for _ in range(2)))
        else:
            parts = tuple(draw.randint(2, 9) for _ in range(draw.choice((2, 3))))
            number = draw.randint(3, 6) if kind == "packs" else sum(parts) + draw.randint(11, 40)
            problem = StrategyProblem(kind, number, parts)
        values = [value for strategy in STRATEGIES for value in solve(problem, strategy).values]
        if min(values) > 0 and max(values) <= LARGEST_VALUE:
            return problem


def _question(problem: StrategyProblem, draw: random.Random) -> str:
    names = draw.sample(NAMES, 4)
    things = draw.sample(THINGS, 3)
    first, thing = names[0], things[0]
    if problem.kind == "packs":
        content = _listed([f"{size} {each}" for size, each in zip(problem.parts, things, strict=False)])
        told = f"{first} buys {problem.number} bags with {content} in each bag. How many things does {first} buy?"
    elif problem.kind == "gifts":
        gifts = _listed([f"{gift} to {name}" for gift, name in zip(problem.parts, names[1:], strict=False)])
        told = f"{first} has {problem.number} {thing}. {first} gives {gifts}. How many {thing} are left?"
    elif problem.kind == "shares":
        others = zip(names[1:], problem.parts, strict=False)
        told = " ".join(
            [f"{first} has {problem.number} {thing}."]
            + [f"{name} has {multiple} times as many as {first}." for name, multiple in others]
            + [f"How many {thing} have they together?"]
        )
    else:
        fills = zip(names, problem.parts, strict=False)
        told = " ".join(
            [f"{name} fills {problem.number} boxes with {size} {thing} in each box." for name, size in fills]
            + [f"How many more {thing} does {first} have?"]
        )
    return told


def _listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _split(question: str) -> str:
    digest = hashlib.sha256(f"strategies {question}".encode()).digest()[0]
    return "test" if digest < 32 else "train" if digest < 64 else "pretraining"
