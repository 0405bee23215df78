"""Which steps of an answer are true, and solutions with faults."""

import random

import pytest

from rlkd.lab.problems import DependencyProblem, Holding, chain_problem, dependency_rows
from rlkd.lab.step_labels import faulty_solutions, faulty_steps, read_dependency, true_steps

PROBLEM = DependencyProblem(
    (
        Holding("Ann", "given", 4),
        Holding("Ben", "more", 3, ("Ann",)),
        Holding("Cid", "times", 2, ("Ann",)),
        Holding("Dan", "together", None, ("Ben", "Cid")),
        Holding("Eve", "fewer", 2, ("Dan",)),
    ),
    asked="Dan",
    thing="pens",
    order=(4, 3, 2, 1, 0),
)
BEN = "Ben has 3 more than Ann: 4 + 3 = 7, so Ben has 7."
CID = "Cid has 2 times as many as Ann: 4 * 2 = 8, so Cid has 8."
DAN = "Dan has as many as Ben and Cid together: 7 + 8 = 15, so Dan has 15."
EVE = "Eve has 2 fewer than Dan: 15 - 2 = 13, so Eve has 13."


def test_each_quantity_that_is_not_given_has_a_true_step_needed_or_not() -> None:
    assert true_steps(PROBLEM) == [BEN, CID, DAN, EVE]


def test_a_question_gives_the_problem_back() -> None:
    read = read_dependency(PROBLEM.question)
    assert (read.question, read.asked, read.thing) == (PROBLEM.question, "Dan", "pens")
    assert sorted(true_steps(read)) == [BEN, CID, DAN, EVE]
    chain = chain_problem(random.Random(1), (4,))
    assert read_dependency(chain.question).trace() == chain.trace()


def test_the_steps_of_the_generators_solutions_are_true() -> None:
    for row in dependency_rows("train", 50):
        true = set(true_steps(read_dependency(row["question"])))
        for solution in row["rationales"]:
            assert set(solution.split("\n")[:-1]) <= true


def test_without_faults_a_solver_ends_with_the_quantity_asked_for_and_all_its_steps_are_true() -> None:
    for seed in range(20):
        steps = faulty_steps(PROBLEM, 0.0, random.Random(seed))
        assert set(steps) == {BEN, CID, DAN}
        assert steps[-1] == DAN


@pytest.mark.parametrize(
    "fault", ["4 + 3 = 8", "Ben has 4 more than Ann", "Ben has 3 fewer than Ann", "Ben has 3 more than Ida", "Dan has"]
)
def test_a_faulty_solver_makes_every_kind_of_fault(fault) -> None:
    solutions = [faulty_steps(PROBLEM, 0.9, random.Random(seed)) for seed in range(300)]
    found = [steps for steps in solutions if steps and any(fault in step and step != DAN for step in steps)]
    assert found
    assert max(map(len, solutions)) <= 6


def test_solutions_to_train_on_are_the_same_each_time_and_of_no_question_of_another_split() -> None:
    found = faulty_solutions(100, faults=0.3, flawless=0.2)
    assert found == faulty_solutions(100, faults=0.3, flawless=0.2)
    labels = [step in true_steps(problem) for problem, steps in found for step in steps]
    assert 0.5 < sum(labels) / len(labels) < 0.9
    others = {row["question"] for split in ("train", "test") for row in dependency_rows(split, 300)}
    assert not {problem.question for problem, _ in found} & others
