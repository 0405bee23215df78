"""A study of the real recipe, as a user starts it: killed in the middle it ends as an undisturbed one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.scripts import run_script
from trainers.common.run_files import read_steps

STUDY = {
    "title": "A tiny study",
    "question": "Does it resume?",
    "recipe": "rlkd",
    "settings": {
        **{"max_steps": 3, "save_steps": 1, "eval_every": 1, "eval_rows": 4, "eval_samples": 2, "learning_rate": 0.01},
        **{"max_completion_length": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        **{"num_generations": 4},
    },
    "arms": {
        "accuracy": {"reward_funcs": ["accuracy"], "reward_weights": [1.0], "reward_kwargs": {}},
        "length": {"reward_funcs": ["length.py:length"], "reward_weights": [1.0], "reward_kwargs": {}},
    },
    "control": "accuracy",
    "seeds": [1, 2],
    "primary": ["sampled_accuracy", "rollouts_to_goal"],
}


def without_times(table: str) -> list[str]:
    return [line.rpartition("| ")[0] if line.startswith("| ") else line for line in table.splitlines()]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_killed_study_ends_with_the_table_of_an_undisturbed_one(root: Path, tmp_path: Path, tiny_model: str) -> None:
    # A reward that differs within a group, so that the weights move.
    (tmp_path / "length.py").write_text(
        "def length(completions, **columns):\n"
        "    return [sum(map(ord, completion[0]['content'])) % 97 / 97 for completion in completions]\n"
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-P", "-m", "rlkd.cli", "study", "tiny.yaml", "--out"]
    words = ["--", "--model_name_or_path", tiny_model]
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        [*command, "out", *words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 400
        while not list(out.glob("*-1/checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert not list(out.glob("*-2/done"))
    for folder in ("out", "whole"):
        done = run_script([*command, folder, *words], tmp_path, timeout=500, PYTHONPATH=str(root))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, other = ((tmp_path / folder / "table.md").read_text() for folder in ("out", "whole"))
    assert without_times(one.replace("--out out", "--out whole")) == without_times(other)
    for name in ("accuracy-1", "length-1", "length-2"):
        resumed, undisturbed = (read_steps(tmp_path / folder / name / "eval.jsonl") for folder in ("out", "whole"))
        assert [record["step"] for record in resumed] == [0, 1, 2, 3]
        assert [record["rows"] for record in resumed] == [record["rows"] for record in undisturbed]
    assert resumed[0]["rows"] != resumed[-1]["rows"]
    assert len(list(out.glob("*/curve.svg"))) == len(list(out.glob("figure.svg"))) * 4
