"""Rewards that break down in a real run: counted, named, neutral, and the end of the run where they are too many."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rewards import RewardError
from rlkd.data.loading import load_rows, to_dataset
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.checkpoints import find_checkpoint, step_of
from trainers.common.run_files import read_steps

# Which completions fare how is decided by their texts, so that a sample's fate does not depend on its batch. Of 97
# residues, 5 raise and 1 hangs.
REWARDS = """
import time
from pathlib import Path
from rewards import RewardOptions

def residue(completion):
    return sum(map(ord, completion[0]["content"])) % 97

def healthy(completions, **columns):
    return [residue(c) / 97 for c in completions]

def raising(completions, **columns):
    for c in completions:
        if residue(c) % 20 == 7:
            raise ConnectionError("judge is down")
    return [1.0 - residue(c) / 97 for c in completions]

def hanging(completions, **columns):
    for c in completions:
        if residue(c) % 16 == 3:
            9 ** 9 ** 9 ** 9
    return [residue(c) / 97 for c in completions]

def infinite(completions, *, mark="", **columns):
    scores = [float(residue(c) % 2) for c in completions]
    if not Path(mark).exists():
        Path(mark).touch()
        scores[1] = float("inf")
    return scores

raising.reward_options = RewardOptions(per_sample=True)
hanging.reward_options = RewardOptions(per_sample=True, timeout=1.0)

def down(completions, *, switch="", **columns):
    if Path(switch).exists():
        raise ConnectionError("no answer from the judge")
    return [residue(c) / 97 for c in completions]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def rows() -> Dataset:
    return to_dataset(load_rows("gsm8k-sample")[:20])


def config(tmp_path: Path, **changes):
    values = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        "reward_cache": "off",
    }
    return RLKDConfig(**values | changes)


@pytest.mark.slow
def test_a_run_with_four_kinds_of_rewards_finishes_and_names_every_cause(tiny_model, rows, file, tmp_path) -> None:
    names = ["healthy", "raising", "hanging", "infinite"]
    args = config(
        tmp_path,
        reward_funcs=[f"{file}:{name}" for name in names],
        reward_kwargs={"infinite": {"mark": str(tmp_path / "mark")}},
    )
    trainer = RLKDTrainer(tiny_model, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 10
    metrics = read_steps(trainer.metrics_path)
    assert all(math.isfinite(entry["grad_norm"]) and math.isfinite(entry["loss"]) for entry in metrics)
    records = read_steps(trainer.rollouts_path)
    causes: dict[str, list[str]] = {name: [] for name in names}
    for record in records:
        for name, outcome in record["rewards"].items():
            if outcome["status"] == "failed":
                causes[name].append(outcome["cause"])
    assert not causes["healthy"]
    assert set(causes["raising"]) == {"ConnectionError: judge is down"}
    assert set(causes["hanging"]) == {"took more than 1 s"}
    assert causes["infinite"] == ["returned inf, which is no score"]
    for name in names:
        counted = sum(entry[f"rewards/{name}/failed"] * 8 for entry in metrics)
        assert counted == pytest.approx(len(causes[name]))
    # Which sample failed is decided by its text alone, and so are the scores of all others.
    for record in records:
        residue = sum(map(ord, record["completion"])) % 97
        assert (record["rewards"]["raising"]["status"] == "failed") == (residue % 20 == 7)
        assert (record["rewards"]["hanging"]["status"] == "failed") == (residue % 16 == 3)
        assert record["rewards"]["healthy"]["value"] == residue / 97
        assert record["rewards"]["hanging"].get("value") in (None, residue / 97)
    # What a failed entry adds is nothing: centred sums are those of the observed entries.
    for place in range(0, len(records), 4):
        group = records[place : place + 4]
        values = torch.tensor(
            [[r["rewards"][name].get("value", math.nan) for name in names] for r in group], dtype=torch.float64
        )
        centred = torch.nan_to_num(values - torch.nanmean(values, dim=0)).sum(dim=1)
        advantages = torch.tensor([r["advantage"] for r in group], dtype=torch.float64)
        assert torch.allclose(advantages * centred.std(), centred - centred.mean(), atol=2e-3)


@pytest.mark.slow
def test_a_reward_that_keeps_failing_ends_the_run_after_a_checkpoint_and_the_run_resumes_from_it(
    tiny_model, rows, file, tmp_path
) -> None:
    switch = tmp_path / "switch"
    changes = {
        "reward_funcs": [f"{file}:healthy", f"{file}:down"],
        "reward_kwargs": {"down": {"switch": str(switch)}},
        "failure_window": 2,
        "max_steps": 6,
    }
    switch.touch()
    trainer = RLKDTrainer(tiny_model, args=config(tmp_path, **changes), train_dataset=rows)
    with pytest.raises(RewardError) as error:
        trainer.train()
    message = str(error.value)
    assert "reward 'down' failed on 16 of 16 completions in the last 2 generation batches" in message
    assert "ConnectionError: no answer from the judge" in message
    assert message.count("gsm8k-train-") == 2  # the batch had two rows, each four times
    checkpoint = find_checkpoint(True, tmp_path / "run")
    assert checkpoint is not None
    assert str(checkpoint) in message
    assert step_of(checkpoint) == 2
    switch.unlink()
    resumed = RLKDTrainer(tiny_model, args=config(tmp_path, **changes), train_dataset=rows)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    metrics = read_steps(resumed.metrics_path)
    assert [entry["step"] for entry in metrics] == [1, 2, 3, 4, 5, 6]
    assert [entry["rewards/down/failed"] for entry in metrics] == [1, 1, 0, 0, 0, 0]


def test_a_run_ends_inside_a_rollout_window_too(tiny_model, rows, file, tmp_path) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    args = config(
        tmp_path,
        reward_funcs=[f"{file}:healthy", f"{file}:down"],
        reward_kwargs={"down": {"switch": str(switch)}},
        failure_window=1,
        steps_per_generation=3,
    )
    with pytest.raises(RewardError, match="checkpoint-1"):
        RLKDTrainer(tiny_model, args=args, train_dataset=rows).train()


def test_without_a_limit_a_run_continues_whatever_fails(tiny_model, rows, file, tmp_path) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    args = config(
        tmp_path,
        reward_funcs=[f"{file}:healthy", f"{file}:down"],
        reward_kwargs={"down": {"switch": str(switch)}},
        max_failure_rate=None,
        failure_window=1,
        max_steps=3,
    )
    trainer = RLKDTrainer(tiny_model, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 3


def test_metrics_show_zero_std_rewards_and_correlated_rewards(tiny_model, rows, file, tmp_path) -> None:
    def opposite(completions, **columns):
        return [-(sum(map(ord, c[0]["content"])) % 97) / 97 for c in completions]

    def flat(completions, **columns):
        return [0.5] * len(completions)

    args = config(tmp_path, max_steps=1)
    trainer = RLKDTrainer(tiny_model, reward_funcs=[f"{file}:healthy", opposite, flat], args=args, train_dataset=rows)
    trainer.train()
    (entry,) = read_steps(trainer.metrics_path)
    assert entry["rewards/correlation/healthy~opposite"] == pytest.approx(-1)
    assert "rewards/correlation/healthy~flat" not in entry
    assert entry["rewards/flat/frac_zero_std"] == 1
    assert entry["rewards/healthy/frac_zero_std"] < 1
    assert entry["rewards/healthy/seconds_p95"] >= entry["rewards/healthy/seconds_p50"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_failure_rate": 1.5}, "max_failure_rate 1.5: expected a share"),
        ({"failure_window": 0}, "failure_window 0: expected at least 1"),
        ({"reward_options": {"accuracy": 3}}, "reward_options: expected a mapping for 'accuracy'"),
        ({"reward_options": "{"}, "reward_options: '{' is not a JSON object"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path) -> None:
    with pytest.raises(UsageError) as error:
        config(tmp_path, **change)
    assert message in str(error.value)


def test_an_option_that_does_not_exist_is_named_before_the_model_loads(rows, tmp_path) -> None:
    args = config(tmp_path, reward_funcs=["accuracy"], reward_options={"accuracy": {"timeuot": 3}})
    with pytest.raises(
        RewardError, match=r"reward_options of 'accuracy': no option 'timeuot'\. Did you mean 'timeout'"
    ):
        RLKDTrainer("/there/is/no/model", args=args, train_dataset=rows)


def test_options_reach_a_function_that_is_handed_over(tiny_model, rows, tmp_path) -> None:
    def mine(completions, **columns):
        return [0.0] * len(completions)

    args = config(tmp_path, reward_options={"mine": {"isolate": True, "timeout": 7.0}})
    trainer = RLKDTrainer(tiny_model, reward_funcs=[mine], args=args, train_dataset=rows)
    (reward,) = trainer.rewards
    assert reward.is_isolated
    assert reward.options.timeout == 7.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [("on", True), (True, True), ("off", False), (False, False), ("x/y.sqlite", Path("x/y.sqlite"))],
)
def test_the_cache_is_on_off_or_a_file(value, expected, tmp_path) -> None:
    assert config(tmp_path, reward_cache=value).cache() == expected


def test_outcomes_in_the_rollouts_have_their_seconds(tiny_model, rows, file, tmp_path) -> None:
    trainer = RLKDTrainer(
        tiny_model, args=config(tmp_path, max_steps=1, reward_funcs=[f"{file}:healthy"]), train_dataset=rows
    )
    trainer.train()
    for line in trainer.rollouts_path.read_text().splitlines():
        outcome = json.loads(line)["rewards"]["healthy"]
        assert outcome["seconds"] > 0
