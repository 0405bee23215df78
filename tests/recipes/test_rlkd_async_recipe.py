"""The asynchronous recipe as far as it goes without vLLM: its configs, and mistakes that end it early."""

import dataclasses
import pickle
import runpy
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.scripts import run_here

RECIPES = ROOT / "recipes"
CONFIGS = sorted(RECIPES.glob("rlkd_async*.yaml"))


def settings(path: Path) -> dict:
    from trainers.async_grpo.config import RLKDAsyncConfig

    known = {field.name for field in dataclasses.fields(RLKDAsyncConfig)}
    return {key: value for key, value in yaml.safe_load(path.read_text()).items() if key in known}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_an_asynchronous_config_is_an_option(path: Path) -> None:
    from trainers.async_grpo.config import RLKDAsyncConfig

    script = runpy.run_path(str(RECIPES / "rlkd_async.py"), run_name="recipe")["RLKDAsyncScriptArguments"]
    fields = [field.name for kind in (script, RLKDAsyncConfig) for field in dataclasses.fields(kind)]
    assert len(fields) == len(set(fields))
    assert set(yaml.safe_load(path.read_text())) <= set(fields)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_rewards_of_an_asynchronous_config_survive_the_way_to_the_rollout_process(path, tmp_path) -> None:
    from trainers.async_grpo.config import RLKDAsyncConfig

    # Without a GPU, bf16 is refused.
    args = RLKDAsyncConfig(**settings(path) | {"bf16": False, "use_cpu": True, "output_dir": str(tmp_path)})
    reward = pickle.loads(pickle.dumps(args.composite(tmp_path / "async.jsonl")))
    assert len(reward.weights) == len(args.reward_funcs)


def test_the_keys_of_rewards_are_those_of_the_synchronous_recipe() -> None:
    from trainers import RLKDConfig
    from trainers.common.reward_settings import RewardSettings

    synchronous = {field.name: field for field in dataclasses.fields(RLKDConfig)}
    for field in dataclasses.fields(RewardSettings):
        same = synchronous[field.name]
        assert field.type == same.type or field.name == "reward_weights" or field.name.startswith("multi")
        if field.default_factory is dataclasses.MISSING:
            assert field.default == same.default


def test_the_gpu_config_says_that_it_was_never_run() -> None:
    assert "We have not run it" in (RECIPES / "rlkd_async_2gpu.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward_funcs", "accurracy"], "Did you mean 'accuracy'"),
        (["--reward_gates", '{"structure": "right"}'], "'right' is no reward of this run"),
        (["--max_stalness", "1"], "did you mean max_staleness?"),
    ],
)
def test_a_mistake_ends_the_recipe_with_one_message(tmp_path, words, message) -> None:
    done = run_here("recipes/rlkd_async.py", ["--output_dir", tmp_path / "run", *words], tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
