"""The distillation recipe as a user starts it; in a process of its own where that matters."""

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.helpers import ROOT
from tests.helpers.scripts import run_here, run_script
from trainers.common.run_files import read_steps
from trainers.validity_kd.draws import writes_itself

BIN = Path(sys.executable).parent
RECIPES = ROOT / "recipes"
CONFIGS = sorted(RECIPES.glob("validity_kd*.yaml"))


@pytest.fixture
def quick(tiny_model: str, tmp_path: Path) -> list[str]:
    """Arguments that make the default recipe small: tiny models."""
    return (
        f"--model_name_or_path {tiny_model} --teacher {tiny_model} --max_steps 2 --eval_rows 2 --lmbda 0.5 "
        f"--max_completion_length 40 --output_dir {tmp_path / 'run'}"
    ).split()


@pytest.mark.slow
def test_the_default_recipe_trains_measures_and_shows_weights(root, tmp_path, quick) -> None:
    done = run_script(
        [BIN / "accelerate", "launch", "--num_processes", 1, root / "recipes/validity_kd.py", *quick], tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == [1, 2]
    assert len(read_steps(run / "rollouts" / "rank0.jsonl")) == 16
    assert (run / "adapter_model.safetensors").stat().st_size > 0
    for shown in ("step 2/2 |", "| weight ", "accuracy before: ", "accuracy after: ", "95 % interval", "  weight "):
        assert shown in done.stdout + done.stderr
    for path in (run, run / "metrics.jsonl", run / "rollouts"):
        assert str(path) in done.stdout


@pytest.mark.slow
def test_two_processes_share_the_work_and_throw_one_coin(root, tmp_path, quick) -> None:
    # A seed whose first four coins fall on both sides.
    throws = ([writes_itself(0.5, seed, step) for step in range(4)] for seed in range(100))
    seed, coins = next((seed, coins) for seed, coins in enumerate(throws) if len(set(coins)) == 2)
    torchrun = [BIN / "torchrun", "--nproc_per_node", 2, "--standalone"]
    more = ["--ddp_backend", "gloo", "--max_steps", "4", "--eval_rows", "0", "--seed", seed]
    done = run_script([*torchrun, root / "recipes/validity_kd.py", *quick, *more], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    first, second = (read_steps(run / "rollouts" / f"rank{rank}.jsonl") for rank in (0, 1))
    assert len(first) == len(second) == 32
    assert not {(r["step"], r["id"]) for r in first} & {(r["step"], r["id"]) for r in second}
    whose = [{record["policy"] for record in [*first, *second] if record["step"] == step} for step in (1, 2, 3, 4)]
    assert whose == [{"student" if coin else "teacher"} for coin in coins]


@pytest.mark.slow
def test_a_control_run_says_so_and_can_be_resumed(tmp_path, quick) -> None:
    arguments = [*quick, "--control", "shuffled", "--save_steps", "1"]
    done = run_here("recipes/validity_kd.py", arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "*** A CONTROL RUN: the weights of steps are those of --control shuffled. ***" in done.stdout
    done = run_here("recipes/validity_kd.py", [*arguments, "--max_steps", 3, "--resume_from_checkpoint"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [entry["step"] for entry in read_steps(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_adapter_of_an_undisturbed_one(root, tmp_path, quick) -> None:
    # Rollouts and traces, a tau that adapts, steps that are written: all that a checkpoint has to bring back.
    seed = next(
        seed
        for seed in range(100)
        if all(len({writes_itself(0.5, seed, step) for step in part}) == 2 for part in (range(2), range(4, 8)))
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    more = ["--max_steps", 8, "--save_steps", 4, "--eval_rows", 0, "--seed", seed, "--proposals", "generate"]
    command = [sys.executable, root / "recipes/validity_kd.py", *quick, *more, "--max_step_tokens", 6]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        # Beyond the checkpoint, so that there is something to cut off.
        while not (run / "metrics.jsonl").exists() or len(read_steps(run / "metrics.jsonl")) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (run / "adapter_model.safetensors").exists()
    before = read_steps(run / "metrics.jsonl")[:4]
    done = run_here("recipes/validity_kd.py", [*command[2:], "--resume_from_checkpoint"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    after = read_steps(run / "metrics.jsonl")
    assert [entry["step"] for entry in after] == list(range(1, 9))
    assert after[:4] == before  # with the times that they took: they were not repeated
    done = run_here("recipes/validity_kd.py", [*command[2:], "--output_dir", whole], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed, undisturbed = (load_file(folder / "adapter_model.safetensors") for folder in (run, whole))
    assert resumed.keys() == undisturbed.keys()
    assert all(tensor.equal(undisturbed[name]) for name, tensor in resumed.items())
    assert any(float(tensor.abs().max()) > 0 for name, tensor in resumed.items() if "lora_B" in name)
    one, other = (read_steps(folder / "rollouts" / "rank0.jsonl") for folder in (run, whole))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control", "shufled"], "Did you mean 'shuffled'"),
        (["--lambda", "1"], "did you mean lmbda"),
        (["--teacher", "no-such-teacher"], "cannot be read"),
        (["--tau", "low"], "expected a number above 0, or adapt"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(tmp_path, tiny_model, arguments, message) -> None:
    defaults = ["--model_name_or_path", tiny_model, "--teacher", tiny_model]
    done = run_here("recipes/validity_kd.py", [*defaults, *arguments], tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_one_that_the_trainer_takes(path: Path, monkeypatch) -> None:
    from trl import ModelConfig

    from trainers import ValidityKDConfig

    scope = runpy.run_path(str(RECIPES / "validity_kd.py"), run_name="recipe")
    settings = yaml.safe_load(path.read_text())
    kinds = (scope["ValidityKDScriptArguments"], ValidityKDConfig, ModelConfig)
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    assert set(settings) <= set().union(*names)
    chosen = {key: value for key, value in settings.items() if key in names[1]}
    args = ValidityKDConfig(**chosen | {"use_cpu": True, "bf16": False, "use_vllm": False})
    assert args.teacher == settings["teacher"]


def test_what_the_cached_config_trains_on_is_what_the_cache_is_made_of() -> None:
    cached = yaml.safe_load((RECIPES / "validity_kd_cached.yaml").read_text())
    cache = yaml.safe_load((RECIPES / "teacher_cache.yaml").read_text())
    same = ("dataset_name", "system_prompt", "few_shot_examples", "max_completion_length", "model_name_or_path")
    assert {key: cached[key] for key in same} == {key: cache[key] for key in same}
    assert cached["teacher"] == cache["cache_dir"]
    assert cached["lmbda"] == 0
