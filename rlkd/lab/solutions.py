r"""Solutions of the laboratory's strategy problems (`rlkd.lab.strategies`): four strategies for each kind.

    >>> for strategy in STRATEGIES:
    ...     print(solve(StrategyProblem("packs", 4, (6, 3)), strategy).text(), end="\n\n")
    4 * 6 = 24, 4 * 3 = 12
    24 + 12 = 36
    #### 36
    <BLANKLINE>
    6 + 3 = 9
    4 * 9 = 36
    #### 36
    <BLANKLINE>
    6 + 3 = 9
    9 + 9 = 18, 18 + 9 = 27, 27 + 9 = 36
    #### 36
    <BLANKLINE>
    4 * 6 + 4 * 3 = 36
    #### 36
    <BLANKLINE>

The strategies differ in number and kind of their calculations: `parts` works out each part, `joint` puts the parts
together first, `counting` adds instead of multiplying, and `formula` does it all in one line, which a small student
gets wrong. A solution has at most two steps, each with a name that a bank can keep.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlkd.lab.problems import LARGEST

STRATEGIES = ("parts", "joint", "counting", "formula")
LARGEST_VALUE = 3 * LARGEST
"""The largest number in a problem or a solution."""
STEP_NAMES = {
    "MultiplyEach": ("MultiplyEach", "FindProducts", "TakeEachTimes"),
    "AddProducts": ("AddProducts", "SumProducts", "JoinProducts"),
    "AddSizes": ("AddSizes", "SumSizes", "JoinSizes"),
    "MultiplySum": ("MultiplySum", "ScaleSum", "TakeSumTimes"),
    "RepeatSum": ("RepeatSum", "CountBags", "AddAgain"),
    "WriteSum": ("WriteSum", "UseSumFormula", "PutTogether"),
    "SubtractEach": ("SubtractEach", "TakeAwayEach", "GiveEach"),
    "AddGifts": ("AddGifts", "SumGifts", "JoinGifts"),
    "SubtractSum": ("SubtractSum", "TakeAwaySum", "RemoveSum"),
    "CountUp": ("CountUp", "ClimbUp", "FillGap"),
    "WriteRest": ("WriteRest", "UseRestFormula", "RemoveTogether"),
    "FindEach": ("FindEach", "WorkOutEach", "ScaleEach"),
    "AddAll": ("AddAll", "SumAll", "JoinAll"),
    "AddShares": ("AddShares", "SumShares", "JoinShares"),
    "MultiplyShares": ("MultiplyShares", "ScaleShares", "TakeShareTimes"),
    "RepeatShare": ("RepeatShare", "CountShares", "AddShareAgain"),
    "WriteShares": ("WriteShares", "UseShareFormula", "PutSharesTogether"),
    "SubtractProducts": ("SubtractProducts", "CompareProducts", "TakeAwayProduct"),
    "CompareSizes": ("CompareSizes", "SubtractSizes", "FindGap"),
    "MultiplyGap": ("MultiplyGap", "ScaleGap", "TakeGapTimes"),
    "RepeatGap": ("RepeatGap", "CountGaps", "AddGapAgain"),
    "WriteGap": ("WriteGap", "UseGapFormula", "SubtractTogether"),
}
"""The names that a teacher uses for the same step; the first is the common one."""


@dataclass(frozen=True)
class StrategyProblem:
    """The numbers of a problem: bags or boxes, things to begin with, or the share that others have multiples of.

    `number` is that of all parts: how many bags (`packs`) or boxes (`gap`), the amount before the gifts, or one share.
    """

    kind: str
    number: int
    parts: tuple[int, ...]


@dataclass
class Solution:
    """The steps of a solution, each a name with its calculations; `slip`: where a result is how much too large."""

    slip: tuple[int, int] = (-1, 0)
    steps: list[tuple[str, list[str]]] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    @property
    def answer(self) -> int:
        """The last result."""
        return self.values[-1]

    def text(self, names: Sequence[str] = ()) -> str:
        """One line per step, with its name where `names` are given, and the answer."""
        lines = [", ".join(calculations) for _, calculations in self.steps]
        if names:
            lines = [f"{name}: {line}" for name, line in zip(names, lines, strict=True)]
        return "\n".join([*lines, f"#### {self.answer}"])

    def step(self, name: str) -> None:
        """Begin a step."""
        self.steps.append((name, []))

    def calculate(self, expression: str, value: int) -> int:
        """Write a calculation down and return its result, or a wrong one at the place of the slip."""
        place, error = self.slip
        value += error if len(self.values) == place else 0
        self.steps[-1][1].append(f"{expression} = {value}")
        self.values.append(value)
        return value

    def add(self, numbers: Sequence[int]) -> int:
        """Add numbers one after another."""
        total = numbers[0]
        for number in numbers[1:]:
            total = self.calculate(f"{total} + {number}", total + number)
        return total

    def subtract(self, start: int, numbers: Sequence[int]) -> int:
        """Take numbers away one after another."""
        for number in numbers:
            start = self.calculate(f"{start} - {number}", start - number)
        return start

    def multiply(self, number: int, other: int) -> int:
        """Multiply two numbers."""
        return self.calculate(f"{number} * {other}", number * other)


def solve(problem: StrategyProblem, strategy: str, slip: tuple[int, int] = (-1, 0)) -> Solution:
    """The solution of a problem by one of `STRATEGIES`. `slip`: (index of a calculation, error of its result)."""
    solution = Solution(slip)
    _SOLVERS[problem.kind](solution, strategy, problem.number, list(problem.parts))
    return solution


def _solve_packs(solution: Solution, strategy: str, bags: int, sizes: list[int]) -> None:
    if strategy == "formula":
        solution.step("WriteSum")
        solution.calculate(" + ".join(f"{bags} * {size}" for size in sizes), bags * sum(sizes))
    elif strategy == "parts":
        solution.step("MultiplyEach")
        products = [solution.multiply(bags, size) for size in sizes]
        solution.step("AddProducts")
        solution.add(products)
    else:
        solution.step("AddSizes")
        _take_times(solution, strategy, bags, solution.add(sizes), ("MultiplySum", "RepeatSum"))


def _solve_gifts(solution: Solution, strategy: str, start: int, gifts: list[int]) -> None:
    if strategy == "formula":
        solution.step("WriteRest")
        solution.calculate(" - ".join(map(str, [start, *gifts])), start - sum(gifts))
    elif strategy == "parts":
        solution.step("SubtractEach")
        solution.subtract(start, gifts)
    else:
        solution.step("AddGifts")
        given = solution.add(gifts)
        if strategy == "joint":
            solution.step("SubtractSum")
            solution.subtract(start, [given])
        else:
            solution.step("CountUp")
            _count_up(solution, given, start)


def _solve_shares(solution: Solution, strategy: str, share: int, multiples: list[int]) -> None:
    if strategy == "formula":
        solution.step("WriteShares")
        expression = " + ".join([str(share), *(f"{multiple} * {share}" for multiple in multiples)])
        solution.calculate(expression, share * (1 + sum(multiples)))
    elif strategy == "parts":
        solution.step("FindEach")
        products = [solution.multiply(multiple, share) for multiple in multiples]
        solution.step("AddAll")
        solution.add([share, *products])
    else:
        solution.step("AddShares")
        _take_times(solution, strategy, solution.add([1, *multiples]), share, ("MultiplyShares", "RepeatShare"))


def _solve_gap(solution: Solution, strategy: str, boxes: int, sizes: list[int]) -> None:
    more, less = sizes
    if strategy == "formula":
        solution.step("WriteGap")
        solution.calculate(f"{boxes} * {more} - {boxes} * {less}", boxes * (more - less))
    elif strategy == "parts":
        solution.step("MultiplyEach")
        products = [solution.multiply(boxes, size) for size in sizes]
        solution.step("SubtractProducts")
        solution.subtract(products[0], products[1:])
    else:
        solution.step("CompareSizes")
        _take_times(solution, strategy, boxes, solution.subtract(more, [less]), ("MultiplyGap", "RepeatGap"))


def _take_times(solution: Solution, strategy: str, times: int, number: int, names: tuple[str, str]) -> None:
    """The step that takes a number several times: by a product, or for `counting` by adding it again and again."""
    solution.step(names[strategy == "counting"])
    if strategy == "counting":
        solution.add([number] * times)
    else:
        solution.multiply(times, number)


def _count_up(solution: Solution, start: int, end: int) -> None:
    """From one number up to another by tens, then what was added in all."""
    added = []
    while start < end:
        added.append(min(10, end - start))
        start = solution.calculate(f"{start} + {added[-1]}", start + added[-1])
        if solution.slip[0] >= 0 and len(added) > 8:  # a slip may lead past the end or keep away from it
            break
    solution.add(added if len(added) > 1 else [0, *added])


_SOLVERS = {"packs": _solve_packs, "gifts": _solve_gifts, "shares": _solve_shares, "gap": _solve_gap}


def with_slip(problem: StrategyProblem, strategy: str, draw: random.Random) -> Solution:
    """A wrong solution: the last of three parts left out, or one result wrong by 1 to 3, with what follows from it."""
    right = solve(problem, strategy)
    while True:
        if len(problem.parts) > 2 and draw.random() < 0.5:
            return solve(replace(problem, parts=problem.parts[:-1]), strategy)
        slip = (draw.randrange(len(right.values)), draw.choice((-3, -2, -1, 1, 2, 3)))
        wrong = solve(problem, strategy, slip)
        if wrong.answer != right.answer and all(0 <= value <= LARGEST_VALUE for value in wrong.values):
            return wrong
