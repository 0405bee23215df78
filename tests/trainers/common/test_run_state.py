"""A run that is killed after any step and resumed ends as the uninterrupted one, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.resumed_runs import STEPS, WINDOW, compare_resumed_runs, trainer

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.helpers import resumed_runs
getattr(resumed_runs, sys.argv[2])(sys.argv[3], Path(sys.argv[4]))
"""
ALL = range(1, STEPS)
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--standalone"]


def run_apart(launcher: list[str], function: str, model: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Call a function of `resumed_runs`, which asserts, in processes of its own."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [*launcher, str(script), str(ROOT), function, model, str(folder)],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "steps"),
    [
        pytest.param("rlkd", WINDOW, ALL, id="rlkd, windows of four steps, the second one in the second epoch"),
        pytest.param("rlkd", WINDOW | {"step_credit": "to_go"}, (1, 3), id="rlkd, advantages of tokens"),
        pytest.param("kd", {"logging_steps": 2}, ALL, id="kd, tau: adapt, dropout, epochs of two steps"),
    ],
)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(tiny_model, tmp_path, kind, changes, steps) -> None:
    found = compare_resumed_runs(lambda folder: trainer(kind, tiny_model, folder, **changes), tmp_path, steps)
    assert found == {step: [] for step in steps}


@pytest.mark.slow
def test_so_does_one_whose_windows_end_inside_a_step_with_rare_logs_a_table_and_a_moving_reference(
    tiny_model, tmp_path
) -> None:
    changes = {
        "steps_per_generation": 3,
        "gradient_accumulation_steps": 2,  # the second of an epoch is incomplete
        "rows": 4,
        "logging_steps": 2,
        "log_completions": True,
        "num_completions_to_print": 0,
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
    }
    found = compare_resumed_runs(lambda folder: trainer("rlkd", tiny_model, folder, **changes), tmp_path, (1, 3))
    assert found == {1: [], 3: []}


@pytest.mark.slow
def test_so_do_two_processes(tiny_model, tmp_path) -> None:
    done = run_apart(TORCHRUN, "resume_in_two_processes", tiny_model, tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_so_does_a_run_that_is_killed_while_it_saves_and_within_a_step_and_has_a_damaged_checkpoint(
    tiny_model, tmp_path
) -> None:
    done = run_apart([sys.executable], "resume_after_kills", tiny_model, tmp_path)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_continued_exactly_is_named(tiny_model, tmp_path, caplog) -> None:
    first = trainer("rlkd", tiny_model, tmp_path, max_steps=1, **WINDOW)
    first.train()
    checkpoint = tmp_path / "checkpoint-1"
    other = trainer("rlkd", tiny_model, tmp_path, steps_per_generation=2, num_iterations=3)
    other.restore(checkpoint)
    assert "num_iterations 2, now 3: the run continues, but will not repeat" in caplog.text
    assert other._buffered_inputs is None
    other.get_train_dataloader()
    assert other._step == 1  # the rest of the window is left to new rollouts of the same rows
    caplog.clear()
    shutil.rmtree(checkpoint / "run_state")
    first.restore(checkpoint)
    assert "checkpoint-1 has no run_state" in caplog.text


@pytest.mark.slow
def test_the_checkpoint_keeps_how_weights_are_laid_out_and_what_the_watches_have_counted(
    tiny_model, tmp_path, monkeypatch
) -> None:
    run = trainer("rlkd", tiny_model, tmp_path, max_steps=1)
    run.train()
    path = tmp_path / "checkpoint-1" / "run_state" / "rank0.json"
    state = json.loads(path.read_text())
    assert state["layouts"]
    assert state["rollouts"] is None  # no further step trains on them
    assert state["parts"]["failures"] == {"batches": [[[0], 2]]}
    assert state["parts"]["spread"] == {"shares": {"letters": [0.0]}, "said": []}
    state["layouts"] = [[32, 64, 99, True]]
    path.write_text(json.dumps(state))
    monkeypatch.setattr("trainers.common.decoding_weights._faster", found := {})
    run.restore(tmp_path / "checkpoint-1")
    assert found == {(32, 64, 99): True}
