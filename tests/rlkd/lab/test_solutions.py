"""Solutions by several strategies: they differ, their steps have names for a bank, and wrong ones are wrong."""

import random

from rlkd.lab.solutions import LARGEST_VALUE, STEP_NAMES, STRATEGIES, StrategyProblem, solve, with_slip
from rlkd.lab.strategies import read_problem, strategy_rows
from rlkd.rationales.bank.entries import path_violations


def test_the_strategies_differ_in_their_steps_and_calculations() -> None:
    problem = StrategyProblem("packs", 4, (6, 3, 2))
    steps = {strategy: [name for name, _ in solve(problem, strategy).steps] for strategy in STRATEGIES}
    assert steps["joint"] == ["AddSizes", "MultiplySum"]
    assert len(set(map(tuple, steps.values()))) == 4
    assert [len(solve(problem, strategy).values) for strategy in STRATEGIES] == [5, 3, 5, 1]


def test_a_text_has_the_names_that_a_teacher_gives_its_steps() -> None:
    solution = solve(StrategyProblem("gap", 3, (7, 5)), "joint")
    assert solution.text(["FindGap", "ScaleGap"]) == "FindGap: 7 - 5 = 2\nScaleGap: 3 * 2 = 6\n#### 6"


def test_every_name_of_a_step_may_stand_in_a_bank_and_means_one_step() -> None:
    names = [name for same in STEP_NAMES.values() for name in same]
    assert len(set(names)) == len(names)
    assert [each for name in names for each in path_violations((name,))] == []


def test_a_wrong_solution_ends_in_a_wrong_answer_and_stays_among_the_known_numbers() -> None:
    draw = random.Random(3)
    for row in strategy_rows("train", 60):
        problem = read_problem(row["question"])
        for strategy in STRATEGIES:
            wrong = with_slip(problem, strategy, draw)
            assert str(wrong.answer) != row["answer"]
            assert all(0 <= value <= LARGEST_VALUE for value in wrong.values)
