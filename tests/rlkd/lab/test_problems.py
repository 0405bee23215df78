"""Dependency problems: exact traces, other orders, short cuts, and splits without a common question."""

import random

import pytest

from rlkd.answers import extract_answer
from rlkd.errors import UsageError
from rlkd.lab.problems import (
    ALL_LENGTHS,
    LARGEST,
    LENGTHS,
    SPLITS,
    chain_problem,
    dependency_rows,
    random_problem,
    recall_rows,
    short_cut,
)
from rlkd.steps import calculations


@pytest.mark.parametrize("steps", [*LENGTHS.values(), ALL_LENGTHS])
@pytest.mark.parametrize("split", SPLITS)
def test_every_trace_follows_from_the_question_and_reaches_the_answer(split, steps) -> None:
    rows = dependency_rows(split, 60, steps=steps)
    for row in rows:
        known = {}
        for sentence in row["question"].split(". "):
            words = sentence.split()
            if len(words) == 4 and words[1] == "has":
                known[words[0]] = int(words[2])
        for trace in row["rationales"]:
            values = dict(known)
            *lines, last = trace.split("\n")
            assert len(lines) in steps
            for line in lines:
                statement, _, calculation = line.partition(": ")
                assert f"{statement}." in row["question"]
                expression, _, rest = calculation.partition(" = ")
                result = int(rest.split(",")[0])
                assert eval(expression) == result
                assert 0 < result <= LARGEST
                operands = [int(word) for word in expression.split() if word.isdigit()]
                assert all(value in operands for name, value in values.items() if name in statement.split()[1:])
                values[statement.split()[0]] = result
            asked = row["question"].split()[-2]
            assert extract_answer(trace) == last.removeprefix("#### ") == row["answer"] == str(values[asked])


def test_rows_are_always_the_same_and_a_longer_list_begins_with_a_shorter_one() -> None:
    assert dependency_rows("test", 30)[:10] == dependency_rows("test", 10)


def test_no_question_is_in_two_splits() -> None:
    questions = [{row["question"] for row in dependency_rows(split, 300)} for split in SPLITS]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 900


def test_some_problems_have_two_orders_and_both_are_traces_of_the_same_steps() -> None:
    both = [row["rationales"] for row in dependency_rows("test", 100) if len(row["rationales"]) == 2]
    assert len(both) > 5
    assert all(sorted(one.split("\n")) == sorted(other.split("\n")) for one, other in both)


def test_a_short_cut_leaves_out_steps_and_ends_in_another_answer() -> None:
    draw = random.Random(1)
    problems = [random_problem(draw, (3, 4)) for _ in range(100)]
    taken = [(problem, hasty) for problem in problems if (hasty := short_cut(problem, draw))]
    assert len(taken) > 50
    for problem, hasty in taken:
        assert hasty.question != problem.question
        assert hasty.answer != problem.answer
        assert len(calculations(hasty.trace())) < len(calculations(problem.trace()))


def test_rows_with_short_cuts_have_the_answer_that_their_trace_reaches() -> None:
    exact, hasty = dependency_rows("pretraining", 200), dependency_rows("pretraining", 200, short_cuts=0.6)
    assert [row["question"] for row in exact[:1]] == [row["question"] for row in hasty[:1]]
    assert all(extract_answer(row["rationales"][0]) == row["answer"] for row in hasty)


def test_an_exercise_in_reading_gives_the_sentences_of_the_names_back() -> None:
    for row in recall_rows(20):
        told, _, asked = row["question"].partition(" What is said of ")
        lines = row["rationales"][0].split("\n")
        assert [line.split()[0] for line in lines] == asked.rstrip("?").split(", ")
        assert sorted(lines) == sorted(f"{sentence.rstrip('.')}." for sentence in told.split(". "))


def test_a_chain_is_told_in_order_and_needs_every_quantity() -> None:
    for row in dependency_rows("test", 60, steps=LENGTHS["chain"], make=chain_problem):
        (given, *sentences), [trace] = row["question"].split(". ")[:-1], row["rationales"]
        assert len(given.split()) == 4
        assert [line.split(":")[0] for line in trace.split("\n")[:-1]] == sentences
        assert len(sentences) in LENGTHS["chain"]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UsageError, match="expected one of pretraining, train, test"):
        dependency_rows("dev", 1)
