"""The shipped configs: every key is known, and what they name exists."""

from pathlib import Path

import pytest
import yaml

from rewards import build_rewards

CONFIGS = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_config_is_an_option_of_the_recipe(root, path: Path) -> None:
    import dataclasses
    import runpy

    from trl import ModelConfig

    from trainers import RLKDConfig

    script = runpy.run_path(str(root / "recipes/rlkd.py"), run_name="recipe")["RLKDScriptArguments"]
    known = {field.name for kind in (script, RLKDConfig, ModelConfig) for field in dataclasses.fields(kind)}
    assert set(yaml.safe_load(path.read_text())) <= known


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_rewards_of_a_config_can_be_built(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    rewards = build_rewards(config["reward_funcs"], config["reward_kwargs"])
    assert len(rewards) == len(config["reward_weights"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_the_command_that_uses_it(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert "recipes/rlkd.py" in header
    assert path.name == "rlkd.yaml" or f"--config recipes/{path.name}" in header
