"""The control of a reward: its values change places within each group."""

import pytest
import torch

from rlkd.data.loading import load_rows, to_dataset
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps
from trainers.rlkd.shuffled_rewards import read_shuffled, shuffled_in_groups

NAMES = ["a", "b"]


def shuffled(step=0, seed=3):
    values = torch.arange(24.0).reshape(12, 2)
    return values, *shuffled_in_groups(values, values > 20, NAMES, {"b": seed}, 4, step)


def test_the_values_stay_in_their_group_and_other_rewards_as_they_are() -> None:
    values, found, failed = shuffled()
    assert found[:, 0].tolist() == values[:, 0].tolist()
    assert found[:, 1].tolist() != values[:, 1].tolist()
    for start in (0, 4, 8):
        assert sorted(found[start : start + 4, 1].tolist()) == values[start : start + 4, 1].tolist()
    assert failed.tolist() == (torch.cat([values[:, :1], found[:, 1:]], dim=1) > 20).tolist()


def test_the_order_is_another_one_in_each_step_and_for_each_seed_and_is_repeated() -> None:
    assert shuffled()[1].equal(shuffled()[1])
    assert not shuffled()[1].equal(shuffled(step=1)[1])
    assert not shuffled()[1].equal(shuffled(seed=4)[1])


@pytest.mark.parametrize(
    ("given", "found"), [(None, {}), ({}, {}), ({"prm": 7}, {"prm": 7}), ('{"prm": 7}', {"prm": 7})]
)
def test_a_mapping_or_its_json_is_read(given, found) -> None:
    assert read_shuffled(given) == found


@pytest.mark.parametrize("given", ["prm", '["prm"]', {"prm": "x"}, {"prm": True}, [], "", "[]", 0])
def test_anything_else_is_refused(given) -> None:
    with pytest.raises(UsageError, match="shuffle_rewards: "):
        read_shuffled(given)


def letters(completions, **columns):
    """A value of each text."""
    return [float(sum(map(ord, completion[0]["content"])) % 97) for completion in completions]


def trainer(model, folder, **changes):
    values = {
        **{"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1},
        **{"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "seed": 1},
        **{"gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True},
    }
    args, rows = RLKDConfig(**values | changes), to_dataset(load_rows("gsm8k-sample")[:4])
    return RLKDTrainer(model, reward_funcs=[letters], args=args, train_dataset=rows)


def test_credit_of_steps_and_a_name_that_is_no_reward_are_refused(tmp_path, tiny_model) -> None:
    with pytest.raises(UsageError, match="with step_credit 'local'"):
        trainer(tiny_model, tmp_path, shuffle_rewards={"letters": 1}, step_credit="local")
    with pytest.raises(UsageError, match=r"names 'other', which is no reward of this run \(letters\)"):
        trainer(tiny_model, tmp_path, shuffle_rewards={"other": 1})


@pytest.mark.slow
def test_a_run_trains_on_the_values_in_another_order(tmp_path, tiny_model) -> None:
    advantages, scores = [], []
    for seeds in (None, {"letters": 1}):
        made = trainer(tiny_model, tmp_path / str(seeds is None), shuffle_rewards=seeds)
        made.train()
        records = read_steps(made.rollouts_path)
        advantages.append([record["advantage"] for record in records])
        scores.append([record["rewards"]["letters"]["value"] for record in records])
    assert scores[0] == scores[1]  # the file has what the reward said
    assert advantages[0] != advantages[1]
    for start in (0, 4):
        own, other = (sorted(found[start : start + 4]) for found in advantages)
        assert own == pytest.approx(other, abs=1e-5)
