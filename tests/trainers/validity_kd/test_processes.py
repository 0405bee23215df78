"""One loss, however a generation batch is divided: into one batch, into micro-batches, over processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from tests.helpers import ROOT
from tests.helpers.sharded import ROWS, save_other_weights
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.trainers.validity_kd.test_processes import train
from trainers.common.arguments import end_processes
for folder, settings in json.loads(sys.argv[5]).items():
    train(sys.argv[2], sys.argv[3], folder, json.loads(sys.argv[4]), settings, json.loads(sys.argv[6]))
end_processes()
"""


def train(model: str, teacher: str, folder: str, rows: list, settings: dict, resume: bool = False) -> list[dict]:
    """Three steps on the teacher's traces; the entries of `metrics.jsonl`."""
    values = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_completion_length": 140,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        "lmbda": 0.0,
        "tau": "adapt",
    }
    trainer = ValidityKDTrainer(model, teacher, ValidityKDConfig(**values | settings), Dataset.from_list(rows))
    trainer.train(resume_from_checkpoint=resume)
    return [entry for entry in read_steps(trainer.metrics_path) if "loss" in entry]


def train_in_two_processes(
    tmp_path: Path, model: str, teacher: str, rows: list, settings: dict, resume: bool = False
) -> list[dict]:
    (entries,) = train_runs_in_two_processes(tmp_path, model, teacher, rows, {"processes": settings}, resume).values()
    return entries


def train_runs_in_two_processes(
    tmp_path: Path, model: str, teacher: str, rows: list, runs: dict[str, dict], resume: bool = False
) -> dict[str, list[dict]]:
    """Runs after each other, by the names of their folders, in one pair of processes, whose start takes longest."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2, "--standalone"]
    runs = {str(tmp_path / name): settings | {"ddp_backend": "gloo"} for name, settings in runs.items()}
    arguments = [ROOT, model, teacher, *map(json.dumps, (rows, runs, resume))]
    done = subprocess.run(
        list(map(str, [*torchrun, script, *arguments])),
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        Path(folder).name: [entry for entry in read_steps(Path(folder) / "metrics.jsonl") if "loss" in entry]
        for folder in runs
    }


@pytest.fixture(scope="module")
def teacher(tiny_model, tmp_path_factory) -> str:
    return save_other_weights(tiny_model, tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize(
    "cases",
    [
        [("none", "tokens"), ("none", "weights"), ("position", "tokens")],
        pytest.param([("shuffled", "tokens"), ("teacher_only", "tokens")], marks=pytest.mark.nightly),
    ],
    ids=["main", "further"],
)
def test_a_big_batch_micro_batches_and_two_processes_give_one_loss(tiny_model, teacher, tmp_path, cases) -> None:
    chosen = {f"{c}-{n}": {"control": c, "normalise": n, "v_0": 0.0} for c, n in cases}
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    processes = train_runs_in_two_processes(
        tmp_path, tiny_model, teacher, ROWS, {name: halves | settings for name, settings in chosen.items()}
    )
    arms = {
        "one": {"per_device_train_batch_size": 8},
        "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }
    for case, settings in chosen.items():
        folders = {arm: str(tmp_path / f"{case}-{arm}") for arm in arms}
        found = {arm: train(tiny_model, teacher, folders[arm], ROWS, arms[arm] | settings) for arm in arms}
        found["processes"] = processes[case]
        one = found.pop("one")
        assert len(one) == 3
        assert all(entry["kd_weight/q90"] - entry["kd_weight/q10"] > 1e-3 for entry in one)
        for arm, entries in found.items():
            for expected, entry in zip(one, entries, strict=True):
                for key in ("loss", "grad_norm", "kd_weight/mean", "traces/tau", "validity/margin", "entropy"):
                    assert entry[key] == pytest.approx(expected[key], rel=1e-5), (case, arm, key)
                assert entry["num_tokens"] == expected["num_tokens"]
                assert entry["kd/steps_per_trace"] == expected["kd/steps_per_trace"]


def test_two_processes_resume_to_the_weights_of_an_undisturbed_run(tiny_model, teacher, tmp_path) -> None:
    """One process writes what a checkpoint keeps of the profile of positions; the other one reads it, too."""
    settings = {
        "per_device_train_batch_size": 2,
        "control": "position",
        "v_0": 0.0,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = train_in_two_processes(tmp_path, tiny_model, teacher, ROWS, settings)
    folder = tmp_path / "processes"
    before = [read_steps(folder / "rollouts" / f"rank{rank}.jsonl") for rank in (0, 1)]
    parameters = load_file(folder / "checkpoint-4" / "model.safetensors")
    shutil.rmtree(folder / "checkpoint-4")
    again = train_in_two_processes(tmp_path, tiny_model, teacher, ROWS, settings, resume=True)
    assert [entry["kd_weight/mean"] for entry in again] == [entry["kd_weight/mean"] for entry in whole]
    assert [read_steps(folder / "rollouts" / f"rank{rank}.jsonl") for rank in (0, 1)] == before
    for name, parameter in load_file(folder / "checkpoint-4" / "model.safetensors").items():
        assert torch.equal(parameter, parameters[name]), name


def test_processes_with_different_numbers_of_steps_propose_together(tiny_model, tmp_path) -> None:
    # One process has a row of five steps, the other one a row of a single one.
    texts = ["One.", "One. Two. Three. Four. Five."]
    rows = [{"id": f"row-{i}", "prompt": f"{i}?", "answer": "2", "rationales": [texts[i % 2]]} for i in range(8)]
    settings = {
        "per_device_train_batch_size": 1,
        "proposals": "generate",
        "max_step_tokens": 6,
        "shuffle_dataset": False,
    }
    found = train_in_two_processes(tmp_path, tiny_model, tiny_model, rows, settings)
    assert [entry["kd/steps_per_trace"] for entry in found] == [3.0] * 3
    records = [read_steps(tmp_path / "processes" / "rollouts" / f"rank{rank}.jsonl") for rank in (0, 1)]
    assert [len(record["steps"]) for record in records[0]] == [1, 1, 1]
    assert [len(record["steps"]) for record in records[1]] == [5, 5, 5]
