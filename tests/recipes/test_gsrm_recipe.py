"""Training a structure model, as a user starts it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.scripts import run_here
from trainers.common.run_files import read_steps

pytestmark = pytest.mark.slow


def start(tmp_path: Path, tiny_model: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    few = ["--model_name_or_path", tiny_model, "--output_dir", tmp_path / "run", "--max_steps", 2, "--copies", 2]
    return run_here("recipes/gsrm.py", [*few, *arguments], tmp_path)


@pytest.mark.parametrize("fine_grained", ["false", pytest.param("true", marks=pytest.mark.nightly)])
def test_the_recipe_trains_an_adapter_and_resumes_from_a_checkpoint(tmp_path, tiny_model, fine_grained) -> None:
    done = start(tmp_path, tiny_model, "--fine_grained", fine_grained, "--save_steps", 1, "--logging_steps", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "764 pairs to train on." in done.stdout
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_size > 0
    before = read_steps(tmp_path / "run" / "metrics.jsonl")
    arguments = ["--fine_grained", fine_grained, "--max_steps", 3, "--logging_steps", 1, "--resume_from_checkpoint"]
    done = start(tmp_path, tiny_model, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = read_steps(tmp_path / "run" / "metrics.jsonl")
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    # The first two are those of the first run: it was resumed, and not begun again.
    assert steps[:2] == before
    done = start(tmp_path, tiny_model, *arguments)
    assert "nothing is left to train" in done.stdout


def test_rows_without_structures_need_a_teacher(tmp_path, tiny_model) -> None:
    rows = [{"id": str(i), "question": f"{i}?", "rationales": [f"{i}+1 = {i + 1}"]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = start(tmp_path, tiny_model, "--dataset_name", "rows.jsonl")
    assert done.returncode == 1
    assert "no row has a rationale with its structure" in done.stderr
    assert "--label_engine" in done.stderr


def test_too_few_rows_are_refused_before_a_model_loads(tmp_path, tiny_model) -> None:
    steps = [[{"meta": "What?", "question": "1+1", "answer": "2"}]]
    row = {"id": "a", "question": "1+1?", "rationales": ["1+1 = 2"], "structures": steps}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    done = start(tmp_path, "/nowhere", "--dataset_name", "rows.jsonl")
    assert done.returncode == 1
    assert "2 pairs (1 rows x 2 copies) are less than one step takes: 8" in done.stderr


def test_a_rounded_adapter_is_saved_in_bfloat16_and_names_its_model(tmp_path, tiny_model) -> None:
    import torch
    from safetensors.torch import load_file

    done = start(tmp_path, tiny_model, "--round_adapter", "true", "--save_strategy", "no")
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model


def test_several_processes_want_labels_that_are_there(tmp_path, tiny_model, monkeypatch) -> None:
    rows = [{"id": str(i), "question": f"{i}?", "rationales": [f"{i}+1 = {i + 1}"]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--dataset_name", "rows.jsonl", "--label_engine", "http://127.0.0.1:9/v1#none"]
    done = start(tmp_path, tiny_model, *arguments)
    assert done.returncode == 1
    assert "label_engine: " in done.stderr
    assert "http://127.0.0.1:9/v1" in done.stderr
    # What was labelled before is what a run trains on, and no teacher is asked.
    steps = [[{"meta": "What?", "question": "1+1", "answer": "2"}]]
    labelled = [{"id": str(i), "question": "1+1?", "rationales": ["1+1 = 2"], "structures": steps} for i in range(20)]
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    done = start(tmp_path, tiny_model, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "40 pairs to train on." in done.stdout
