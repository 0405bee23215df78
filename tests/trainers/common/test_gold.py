"""Gold answers that cannot be read are named before a run starts."""

import pytest
from datasets import Dataset

from rewards import RewardError, build_reward
from rlkd.errors import UsageError
from trainers.common.gold import check_gold, check_held_out


@pytest.mark.parametrize(
    ("name", "column", "answers"),
    [
        ("numeric", "answer", ["many", "few"]),
        ("boolean", "answer", ["maybe", "2"]),
        ("accuracy_reward", "solution", ["no mathematics here", "none"]),
        ("accuracy", "answer", ["", " "]),
    ],
)
def test_answers_of_which_none_can_be_read_are_refused_with_examples(name, column, answers) -> None:
    with pytest.raises(RewardError, match=rf"'{name}': 2 of 2 answers cannot be read .*{answers[0]!r}.*'{column}'"):
        check_gold(build_reward(name), Dataset.from_dict({column: answers}), "train_dataset")


def test_some_that_cannot_be_read_are_counted_in_a_warning(caplog) -> None:
    rows = Dataset.from_dict({"answer": ["3", "many", None, "4.5"]})
    check_gold(build_reward("numeric"), rows, "train_dataset")
    assert "1 of 3 answers cannot be read as gold answers, such as 'many'" in caplog.text


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("accuracy", {"answer": ["72", r"\frac{1}{2}", "x + 1"]}),
        ("accuracy_reward", {"solution": ["$72$"], "answer": [None]}),
        ("multiple_choice", {"answer": ["A", "B"]}),
        ("boolean", {"answer": ["yes", "False"]}),
        ("numeric", {"answer": [None, None]}),
        ("structure", {"answer": ["many"]}),
        ("think_format", {"answer": ["many"]}),
    ],
)
def test_answers_that_can_be_read_and_rewards_without_a_gold_answer_pass_in_silence(caplog, name, columns) -> None:
    check_gold(build_reward(name), Dataset.from_dict(columns), "train_dataset")
    assert "cannot be read" not in caplog.text


def test_held_out_rows_are_checked_alike(caplog) -> None:
    check_held_out([])
    check_held_out([{"answer": None}, {"answer": "72"}])
    assert not caplog.text
    check_held_out([{"answer": "72"}, {"answer": " "}])
    assert "1 of 2 answers cannot be read" in caplog.text
    with pytest.raises(UsageError, match=r"2 of 2 answers cannot be read .*eval_rows: 0"):
        check_held_out([{"answer": " "}, {"answer": ""}])
