"""The shipped configs: every key is known, and what they name exists."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rewards import build_rewards
from tests.helpers import ROOT
from trainers.common.evaluation_settings import training_keys
from trainers.common.recipes import say_rewards

RECIPES = ROOT / "recipes"
# Those of `rlkd serve` (tests/rlkd/serve/test_config.py), Compose and Kubernetes (tests/docker) belong to no recipe.
FILES = sorted([*RECIPES.glob("*.yaml"), *(ROOT / "docker").glob("*.yaml")])
CONFIGS = [path for path in FILES if not path.stem.startswith(("serve", "compose", "kubernetes"))]


def recipe_of(config: Path) -> str:
    """`rlkd_paper.yaml` belongs to `rlkd.py`: the longest recipe's name that the config's begins with."""
    names = [path.stem for path in RECIPES.glob("*.py") if config.stem.startswith(path.stem)]
    return max(names, key=len)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_of_a_config_is_an_option_of_its_recipe(path: Path) -> None:
    from trl import ModelConfig, SFTConfig

    from trainers import RLKDConfig, ValidityKDConfig
    from trainers.async_grpo.config import RLKDAsyncConfig

    recipe = recipe_of(path)
    scope = runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="recipe")
    (script,) = [value for name, value in scope.items() if name.endswith("ScriptArguments")]
    # The asynchronous one names its student itself: ModelConfig and AsyncGRPOConfig both have `dtype`.
    training = {
        "rlkd": (RLKDConfig, ModelConfig),
        "rlkd_async": (RLKDAsyncConfig,),
        "validity_kd": (ValidityKDConfig, ModelConfig),
    }
    kinds = (script, *training.get(recipe, (SFTConfig, ModelConfig)))
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(yaml.safe_load(path.read_text())) <= known


@pytest.mark.parametrize("path", [c for c in CONFIGS if recipe_of(c).startswith("rlkd")], ids=lambda path: path.stem)
def test_the_rewards_of_a_config_can_be_built(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RLKD_GSRM_SPEC", "http://127.0.0.1:1/v1#model")  # of `rlkd serve` and compose.yaml
    config = yaml.safe_load(path.read_text())
    rewards = build_rewards(config["reward_funcs"], config["reward_kwargs"])
    assert len(rewards) == len(config["reward_weights"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_the_command_that_uses_it(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    recipe = recipe_of(path)
    assert f"recipes/{recipe}.py" in header
    assert path == RECIPES / f"{recipe}.yaml" or f"--config {path.relative_to(ROOT)}" in header


PAPER, ZERO, GSRM = (
    yaml.safe_load((RECIPES / f"{name}_paper.yaml").read_text()) for name in ("rlkd", "rlkd_zero", "gsrm")
)


@pytest.mark.parametrize("config", [PAPER, ZERO], ids=["RLKD", "RLKD-Zero"])
def test_a_config_of_the_rlkd_paper_has_its_rewards_and_its_schedule(config) -> None:
    assert config["reward_funcs"] == ["accuracy", "structure", "format", "tag_count"]
    assert config["reward_weights"] == [15, 15, 10, 10]
    assert config["reward_kwargs"]["structure"]["alignment"] == "sum"
    completions = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] * 4  # GPUs
    assert completions / config["num_generations"] * config["max_steps"] == 3200  # questions
    # A tenth of the 10,625 steps of one epoch: the run ends within it, at the rate that the config's head names.
    assert (config["warmup_steps"], config["lr_scheduler_type"]) == (1060, "constant_with_warmup")
    assert config["learning_rate"] == 5e-5
    assert f"{config['learning_rate'] * config['max_steps'] / config['warmup_steps']:.1e}" == "1.9e-05"


def test_rlkd_zero_is_the_setting_of_rlkd_on_another_model() -> None:
    other = {key for key in PAPER.keys() | ZERO.keys() if PAPER.get(key) != ZERO.get(key)}
    assert other == {"model_name_or_path", "max_completion_length", "output_dir", "reward_kwargs"}
    assert PAPER["reward_kwargs"]["structure"] == ZERO["reward_kwargs"]["structure"]
    assert (ZERO["model_name_or_path"], ZERO["max_completion_length"]) == ("Qwen/Qwen2.5-Math-7B", 3072)


@pytest.mark.parametrize("name", ["rlkd_paper", "rlkd_zero_paper"])
def test_the_structures_of_the_rlkd_paper_come_from_the_model_that_gsrm_paper_trains(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    structure = yaml.safe_load(text)["reward_kwargs"]["structure"]
    assert (structure["decomposer"], structure["judge"]) == ("generative", "model")
    assert structure["engine"] == "http://127.0.0.1:8001/v1#gsrm-paper"
    assert structure["judge_engine"] == f"http://127.0.0.1:8002/v1#{GSRM['model_name_or_path']}"
    # The servers that the config's head starts.
    assert f"vllm serve {GSRM['output_dir']} --served-model-name gsrm-paper --port 8001 " in text
    assert f"vllm serve {GSRM['model_name_or_path']} --port 8002 " in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rlkd", "alignment ordered (our choice, not the paper's rule)"),
        ("rlkd_paper", "alignment sum (the paper's rule, arXiv 2505.16142)"),
        ("rlkd_zero_paper", "alignment sum (the paper's rule, arXiv 2505.16142)"),
    ],
    ids=["default", "RLKD", "RLKD-Zero"],
)
def test_a_run_says_by_which_rule_structures_are_compared_and_whose_it_is(name: str, shown: str, capsys) -> None:
    config = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    rewards = build_rewards(config["reward_funcs"], config["reward_kwargs"])
    say_rewards(SimpleNamespace(process_index=1), rewards)
    assert capsys.readouterr().out == ""
    say_rewards(SimpleNamespace(process_index=0), rewards)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("structure: decomposer ")
    assert line.endswith(f", {shown}")


# Programs are selected by what they print, and of contrastive rationales there is one a question.
OTHERS = ("rationales_programs", "rationales_contrast")
BY_DIFFICULTY = sorted(path for path in RECIPES.glob("rationales*.yaml") if path.stem not in OTHERS)


@pytest.mark.parametrize("path", BY_DIFFICULTY, ids=lambda path: path.stem)
def test_selection_by_difficulty_drops_something(path: Path) -> None:
    """It would keep all where no more candidates come than it keeps; and it measures behind a prompt of training."""
    config = yaml.safe_load(path.read_text())
    assert "difficulty" in config["selectors"]
    keep = config.get("selector_kwargs", {}).get("difficulty", {}).get("keep", 6)
    written = config.get("candidates", 1) * len(config["writers"])
    by_share = config.get("keep_ratio", 1) < 1 and config.get("limit_by") == "log_rd"
    assert keep < written or by_share
    assert config["system_prompt"] == yaml.safe_load((RECIPES / "sft.yaml").read_text())["system_prompt"]


@pytest.mark.parametrize("recipe", ["rlkd", "rlkd_async", "validity_kd", "sft"])
def test_an_evaluation_takes_every_key_of_a_training_config(recipe: str) -> None:
    scope = runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="recipe")
    (script,) = [value for name, value in scope.items() if name.endswith("ScriptArguments")]
    assert {field.name for field in dataclasses.fields(script)} <= training_keys()
