"""Problems with several strategies: every one is right, and no split shares a question."""

import pytest

from rlkd.answers import extract_answer
from rlkd.errors import UsageError
from rlkd.lab.problems import SPLITS
from rlkd.lab.solutions import LARGEST_VALUE, STEP_NAMES, STRATEGIES
from rlkd.lab.strategies import KINDS, pretraining_rows, read_problem, strategy_rows

ANSWERS = {
    "packs": lambda number, parts: number * sum(parts),
    "gifts": lambda number, parts: number - sum(parts),
    "shares": lambda number, parts: number * (1 + sum(parts)),
    "gap": lambda number, parts: number * (parts[0] - parts[1]),
}


@pytest.mark.parametrize("split", SPLITS)
def test_every_calculation_of_every_strategy_is_true_and_ends_in_the_answer(split) -> None:
    rows = strategy_rows(split, 200)
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        problem = read_problem(row["question"])
        assert row["answer"] == str(ANSWERS[row["kind"]](problem.number, problem.parts))
        assert len(set(row["rationales"])) == len(STRATEGIES) == 4
        for text in row["rationales"]:
            *lines, last = text.split("\n")
            assert extract_answer(text) == last.removeprefix("#### ") == row["answer"]
            for calculation in ", ".join(lines).split(", "):
                expression, result = calculation.split(" = ")
                assert eval(expression) == int(result) <= LARGEST_VALUE


def test_rows_are_always_the_same_and_no_question_is_in_two_splits() -> None:
    assert strategy_rows("test", 30)[:10] == strategy_rows("test", 10)
    questions = [{row["question"] for row in strategy_rows(split, 300)} for split in SPLITS]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 900


def test_a_course_has_one_solution_a_row_half_of_them_with_named_steps() -> None:
    texts = [row["rationales"] for row in pretraining_rows(200)]
    assert {len(each) for each in texts} == {1}
    named = sum(text.split(":")[0] in {n for same in STEP_NAMES.values() for n in same} for [text] in texts)
    assert 80 < named < 120


def test_another_text_and_another_split_are_refused() -> None:
    with pytest.raises(ValueError, match="no problem of the laboratory's strategies"):
        read_problem("Ann has 3 coins.")
    with pytest.raises(UsageError, match="expected one of pretraining, train, test"):
        strategy_rows("dev", 1)
