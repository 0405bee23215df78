"""One loss, however a generation batch is divided: into one batch, into micro-batches, over processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.logs import read_steps

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_validity_kd_processes import train
train(*sys.argv[2:5], json.loads(sys.argv[5]), json.loads(sys.argv[6]))
"""


def train(model: str, teacher: str, folder: str, rows: list, settings: dict) -> list[dict]:
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
    trainer.train()
    return [entry for entry in read_steps(trainer.metrics_path) if "loss" in entry]


def train_in_two_processes(tmp_path: Path, model: str, teacher: str, rows: list, settings: dict) -> list[dict]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "processes"
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2, "--standalone"]
    settings = settings | {"ddp_backend": "gloo"}
    arguments = [Path(__file__).parent, model, teacher, folder, json.dumps(rows), json.dumps(settings)]
    done = subprocess.run(
        list(map(str, [*torchrun, script, *arguments])),
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [entry for entry in read_steps(folder / "metrics.jsonl") if "loss" in entry]


@pytest.mark.parametrize("normalise", ["tokens", "weights"])
def test_a_big_batch_micro_batches_and_two_processes_give_one_loss(tiny_model, tmp_path, normalise) -> None:
    teacher = tmp_path / "teacher"
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(teacher)
    # Traces of different lengths, two a row, with two steps each at least.
    rows = [
        {
            "id": f"row-{i}",
            "prompt": f"{i} apples?",
            "answer": str(2 * i),
            "rationales": [
                f"There are {i} apples{' and pears' * (i % 3)}. Twice that is {2 * i}.",
                f"First {i}.\nThen {i} + {i} = {2 * i}{'!' * (i % 4 + 1)}",
            ],
        }
        for i in range(16)
    ]
    arms = {
        "one": {"per_device_train_batch_size": 8},
        "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }
    found = {
        name: train(tiny_model, str(teacher), str(tmp_path / name), rows, arm | {"normalise": normalise})
        for name, arm in arms.items()
    }
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "normalise": normalise}
    found["processes"] = train_in_two_processes(tmp_path, tiny_model, str(teacher), rows, halves)
    one = found.pop("one")
    assert len(one) == 3
    assert all(abs(entry["kd_weight/mean"] - 1) > 0.01 for entry in one)
    for name, entries in found.items():
        for expected, entry in zip(one, entries, strict=True):
            for key in ("loss", "grad_norm", "kd_weight/mean", "validity/tau", "validity/margin", "entropy"):
                assert entry[key] == pytest.approx(expected[key], rel=1e-5), (name, key)
            assert entry["num_tokens"] == expected["num_tokens"]
            assert entry["kd/steps_per_trace"] == expected["kd/steps_per_trace"]


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
