"""Shuffled teachers and the structure reward: no trace is read beside a foreign question."""

import pytest

from rlkd.errors import UsageError
from trainers import RLKDConfig
from trainers.rlkd.shuffled import take_steps_from_rows

STEPS = [[{"meta": "What?", "question": "1+1", "answer": "2"}]]
WITH_STEPS = [{"rationales": ["1+1 = 2"], "structures": STEPS}, {"rationales": [], "structures": []}]
WITHOUT_STEPS = [*WITH_STEPS, {"rationales": ["1+1 = 2"], "structures": []}]


def config(tmp_path, parameters, funcs=("accuracy", "structure"), name="structure") -> RLKDConfig:
    kwargs = None if parameters is None else {name: parameters}
    return RLKDConfig(str(tmp_path), reward_funcs=list(funcs), reward_kwargs=kwargs, use_cpu=True, bf16=False)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"decomposer": "generative"}, {"decomposer": "generative", "teacher": "rows"}),
        ({"decomposer": "prompted", "teacher": "rows"}, {"decomposer": "prompted", "teacher": "rows"}),
        ({"decomposer": "my.py:Own"}, {"decomposer": "my.py:Own", "teacher": "rows"}),
        ({"decomposer": "rules"}, {"decomposer": "rules"}),
        ({"decomposer": "native", "teacher": "decompose"}, {"decomposer": "native", "teacher": "decompose"}),
    ],
)
def test_models_get_the_teachers_steps_from_the_data(tmp_path, parameters, expected) -> None:
    args = config(tmp_path, parameters)
    take_steps_from_rows(args, WITH_STEPS)
    assert args.reward_kwargs == {"structure": expected}


def test_an_alias_is_followed_and_other_rewards_are_left_alone(tmp_path) -> None:
    args = config(tmp_path, {"decomposer": "generative"}, ["mine=structure", "accuracy"], "mine")
    take_steps_from_rows(args, WITH_STEPS)
    assert args.reward_kwargs == {"mine": {"decomposer": "generative", "teacher": "rows"}}
    args = config(tmp_path, None, ["accuracy"])
    take_steps_from_rows(args, WITHOUT_STEPS)
    assert args.reward_kwargs is None


@pytest.mark.parametrize(
    ("parameters", "rows", "message"),
    [
        ({"decomposer": "generative", "teacher": "decompose"}, WITH_STEPS, "Set teacher: rows"),
        ({"decomposer": "prompted"}, WITHOUT_STEPS, "traces of 1 of 3 rows beside another row's question"),
    ],
)
def test_what_would_be_read_beside_a_foreign_question_is_refused(tmp_path, parameters, rows, message) -> None:
    with pytest.raises(UsageError, match=message):
        take_steps_from_rows(config(tmp_path, parameters), rows)
