r"""Dependency problems: named quantities in shuffled order, of which some are not needed, with their exact traces.

    >>> row = dependency_rows("test", 1)[0]
    >>> print(row["question"].replace(". ", ".\n"))
    Eve has 2 times as many as Fay.
    Pam has as many as Ida and Ben together.
    Fay has 10 coins.
    Ida has 2 times as many as Max.
    Max has 3 fewer than Zoe.
    Zoe has 5 fewer than Fay.
    Ned has 8 fewer than Fay.
    Ben has 10 coins.
    How many coins does Pam have?
    >>> print(row["rationales"][0])
    Zoe has 5 fewer than Fay: 10 - 5 = 5, so Zoe has 5.
    Max has 3 fewer than Zoe: 5 - 3 = 2, so Max has 2.
    Ida has 2 times as many as Max: 2 * 2 = 4, so Ida has 4.
    Pam has as many as Ida and Ben together: 4 + 10 = 14, so Pam has 14.
    #### 14

The choice of the next quantity is the difficulty, as in the iGSM problems of "Physics of Language Models: Part 2.1"
(arXiv 2407.20311); the calculations are small. Several orders can be right: the rationales are up to two of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlkd.errors import UsageError

NAMES = (
    "Ann",
    "Ben",
    "Cid",
    "Dan",
    "Eve",
    "Fay",
    "Gus",
    "Ida",
    "Ivy",
    "Jim",
    "Kim",
    "Lea",
    "Max",
    "Ned",
    "Pam",
    "Zoe",
)
THINGS = ("coins", "cards", "books", "nuts", "pens", "shells")
LARGEST = 30
"""The largest value of a quantity."""
LENGTHS = {"short": (3, 4), "long": (5, 6), "chain": (4, 5, 6)}
"""The numbers of calculations that the problems for reinforcement learning need."""
ALL_LENGTHS = (1, 2, 3, 4, 5, 6)
"""Those of the problems that a student is first trained on."""

Relation = Literal["given", "more", "fewer", "times", "together"]
Split = Literal["pretraining", "train", "test"]
SPLITS = ("pretraining", "train", "test")
RELATIONS: tuple[Relation, ...] = ("more", "fewer", "times")
"""Those to one other quantity."""
_SIGNS = {"more": "+", "fewer": "-", "times": "*", "together": "+"}


@dataclass(frozen=True)
class Holding:
    """How many things `name` has: `number` itself, or by `relation` to the quantities of others (`parents`)."""

    name: str
    relation: Relation
    number: int | None = None
    parents: tuple[str, ...] = ()

    def statement(self, thing: str) -> str:
        """What the question says of this quantity."""
        if self.relation == "given":
            return f"{self.name} has {self.number} {thing}"
        if self.relation == "together":
            return f"{self.name} has as many as {self.parents[0]} and {self.parents[1]} together"
        amount = (
            f"{self.number} times as many as" if self.relation == "times" else f"{self.number} {self.relation} than"
        )
        return f"{self.name} has {amount} {self.parents[0]}"

    def calculation(self, values: dict[str, int]) -> tuple[str, int]:
        """The calculation, such as `7 + 3`, and its result, from the values of the parents."""
        left = values[self.parents[0]]
        right = values[self.parents[1]] if self.number is None else self.number
        sign = _SIGNS[self.relation]
        return f"{left} {sign} {right}", {"+": left + right, "-": left - right, "*": left * right}[sign]


@dataclass(frozen=True)
class DependencyProblem:
    """Quantities in an order in which each can be calculated, the name asked for, and the order of the sentences.

    `slip`: a relation whose results come out one too large, as an unreliable teacher has them; None: all are right.
    """

    quantities: tuple[Holding, ...]
    asked: str
    thing: str
    order: tuple[int, ...]
    slip: Relation | None = None

    @property
    def question(self) -> str:
        """The text of the problem."""
        sentences = [f"{self.quantities[index].statement(self.thing)}." for index in self.order]
        return " ".join([*sentences, f"How many {self.thing} does {self.asked} have?"])

    def steps(self) -> list[tuple[Holding, str, int]]:
        """The calculations that the answer needs, as (quantity, calculation, result), each after those it uses."""
        by_name = {quantity.name: quantity for quantity in self.quantities}
        needed, ahead = set(), [self.asked]
        while ahead:
            name = ahead.pop()
            needed.add(name)
            ahead += by_name[name].parents
        values: dict[str, int] = {}
        found = []
        for quantity in self.quantities:
            if quantity.relation == "given":
                assert quantity.number is not None
                values[quantity.name] = quantity.number
            elif all(parent in values for parent in quantity.parents):
                text, values[quantity.name] = quantity.calculation(values)
                values[quantity.name] += quantity.relation == self.slip
                if quantity.name in needed:
                    found.append((quantity, text, values[quantity.name]))
        return found

    def trace(self) -> str:
        """The worked solution, one calculation per line, and the answer."""
        steps = self.steps()
        lines = [
            f"{quantity.statement(self.thing)}: {text} = {value}, so {quantity.name} has {value}."
            for quantity, text, value in steps
        ]
        return "\n".join([*lines, f"#### {steps[-1][2]}"])

    @property
    def answer(self) -> int:
        """The value asked for."""
        return self.steps()[-1][2]


def dependency_rows(
    split: str,
    count: int,
    *,
    steps: Sequence[int] = LENGTHS["short"],
    short_cuts: float = 0.0,
    slip: Relation | None = None,
    make: Callable[[random.Random, Sequence[int]], DependencyProblem] | None = None,
) -> list[dict]:
    """The first `count` problems of a split that need one of `steps` calculations, as rows; always the same.

    A hash of the question assigns the split, so no question is in two of them. `short_cuts`: probability that the
    rationale of a row takes a short cut (`short_cut`) instead of the exact steps. `slip`: see `DependencyProblem`. The
    answer is then often wrong, and the row has the one that its rationale reaches. `make`: makes a problem
    (as `chain_problem`); None: one with its sentences in any order. Raises `UsageError` for an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} of the dependency problems: expected one of {', '.join(SPLITS)}")
    # A text as seed gives the same numbers in all versions.
    draw = random.Random(f"dependency problems {split} {tuple(steps)}")
    rows: dict[str, dict] = {}
    while len(rows) < count:
        problem = replace((make or random_problem)(draw, steps), slip=slip)
        question = problem.question
        if split_of(question) != split or question in rows:
            continue
        other = _reordered(problem, draw)
        habit = short_cut(problem, draw) if draw.random() < short_cuts else None
        solutions = [habit.trace()] if habit else list(dict.fromkeys(p.trace() for p in (problem, other)))
        rows[question] = {
            "id": f"dependency-{split}-{'-'.join(map(str, steps))}-{len(rows)}",
            "question": question,
            "answer": str((habit or problem).answer),
            "rationales": solutions,
        }
    return list(rows.values())


def recall_rows(count: int) -> list[dict]:
    """Exercises in reading, for pretraining: the sentences of some names of a problem are to be given back.

    Our choice: of a worked solution, few tokens depend on finding a name in the question, and a small model learns
    that late; here nearly all do.
    """
    draw = random.Random("recall")
    rows = []
    for index in range(count):
        problem = random_problem(draw, ALL_LENGTHS)
        told = draw.sample(problem.quantities, len(problem.quantities))
        names = ", ".join(quantity.name for quantity in told)
        sentences = [f"{problem.quantities[place].statement(problem.thing)}." for place in problem.order]
        rows.append(
            {
                "id": f"recall-{index}",
                "question": " ".join([*sentences, f"What is said of {names}?"]),
                "answer": None,
                "rationales": ["\n".join(f"{quantity.statement(problem.thing)}." for quantity in told)],
            }
        )
    return rows


def short_cut(problem: DependencyProblem, draw: random.Random) -> DependencyProblem | None:
    """The problem as a hasty reader takes it, or None: a number in the sentence of a quantity counts as its value.

    For `Ben has 3 more than Ann`, Ben has 3. The steps before it are then left out, and the answer is another one.
    """
    *before, (_, _, answer) = problem.steps()
    candidates = [quantity for quantity, _, _ in before if quantity.number is not None]
    draw.shuffle(candidates)
    for hasty in candidates:
        taken = replace(hasty, relation="given", parents=())
        misread = replace(problem, quantities=tuple(taken if q is hasty else q for q in problem.quantities))
        values = [value for _, _, value in misread.steps()]
        if min(values) > 0 and max(values) <= LARGEST and values[-1] != answer:
            return misread
    return None


def chain_problem(draw: random.Random, steps: Sequence[int]) -> DependencyProblem:
    """A chain of calculations: every quantity follows from the one before, and all are needed, in the order told."""
    while True:
        names = draw.sample(NAMES, len(NAMES))
        quantities = [Holding(names.pop(), "given", draw.randint(2, 12))]
        values = {quantities[0].name: quantities[0].number or 0}
        for _ in range(draw.choice(steps)):
            quantities.append(_related(names.pop(), [quantities[-1].name], values, draw))
        if all(0 < value <= LARGEST for value in values.values()):
            order = tuple(range(len(quantities)))
            return DependencyProblem(tuple(quantities), quantities[-1].name, draw.choice(THINGS), order)


def random_problem(draw: random.Random, steps: Sequence[int]) -> DependencyProblem:
    """A random problem that needs one of `steps` calculations, with one or two quantities that are not needed."""
    while True:
        names = draw.sample(NAMES, len(NAMES))
        quantities = [Holding(names.pop(), "given", draw.randint(2, 12)) for _ in range(draw.choice((1, 2, 2)))]
        values = {quantity.name: quantity.number or 0 for quantity in quantities}
        unused = [quantity.name for quantity in quantities]
        n_steps = draw.choice(steps)
        for left in range(n_steps, 0, -1):
            # Every quantity is used once, so the last one needs them all.
            joins = len(unused) == 2 and (left == 1 or draw.random() < 0.25)
            parents = draw.sample(unused, 2) if joins else [draw.choice(unused)]
            unused = [name for name in unused if name not in parents]
            quantities.append(_related(names.pop(), parents, values, draw))
            unused.append(quantities[-1].name)
        asked = unused[0]
        for _ in range(draw.choice((1, 2))):
            quantities.append(_related(names.pop(), [draw.choice(list(values))], values, draw))
        if len(unused) == 1 and all(0 < value <= LARGEST for value in values.values()):
            order = draw.sample(range(len(quantities)), len(quantities))
            return DependencyProblem(tuple(quantities), asked, draw.choice(THINGS), tuple(order))


def _related(name: str, parents: list[str], values: dict[str, int], draw: random.Random) -> Holding:
    """A quantity that follows from one or two others; its value is entered in `values`."""
    if len(parents) == 2:
        quantity = Holding(name, "together", None, tuple(parents))
    else:
        relation = draw.choice(RELATIONS)
        largest = {"more": 9, "fewer": max(2, min(9, values[parents[0]] - 1)), "times": 3}[relation]
        quantity = Holding(name, relation, draw.randint(2, largest), tuple(parents))
    _, values[name] = quantity.calculation(values)
    return quantity


def _reordered(problem: DependencyProblem, draw: random.Random) -> DependencyProblem:
    """The same problem, its quantities in another order in which each can be calculated, if there is one."""
    waiting = draw.sample(problem.quantities, len(problem.quantities))
    done: list[Holding] = []
    while waiting:
        ready = next(q for q in waiting if set(q.parents) <= {other.name for other in done})
        waiting.remove(ready)
        done.append(ready)
    return replace(problem, quantities=tuple(done), order=())


def split_of(question: str) -> Split:
    """The split of a question, by its hash."""
    digest = hashlib.sha256(f"dependency {question}".encode()).digest()[0]
    return "test" if digest < 32 else "train" if digest < 64 else "pretraining"
