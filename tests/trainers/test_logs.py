"""Files of a run: no gap, no duplicate, nothing lost."""

import json
from pathlib import Path

import pytest

from rlkd.errors import UsageError
from trainers.checkpoints import find_checkpoint
from trainers.logs import StepLog, read_steps, step_line


def test_a_resumed_log_drops_the_steps_that_are_run_again(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    log.begin(0)
    log.append([{"step": step, "reward": step / 10} for step in range(1, 8)])
    log.begin(5)
    log.append([{"step": 6, "reward": 1.0}])
    assert [(r["step"], r["reward"]) for r in read_steps(log.path)][-2:] == [(5, 0.5), (6, 1.0)]


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    log.begin(0)
    log.append([{"step": 1}, {"step": 2}])
    with log.path.open("a") as stream:
        stream.write('{"step": 3, "rew')
    log.begin(2)
    log.append([{"step": 3}])
    assert [record["step"] for record in read_steps(log.path)] == [1, 2, 3]


def test_a_fresh_run_keeps_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    for run in range(3):
        log.begin(0)
        log.append([{"step": 1, "run": run}])
    kept = {path.name: read_steps(path)[0]["run"] for path in tmp_path.glob("*.jsonl")}
    assert kept == {"metrics.1.jsonl": 0, "metrics.2.jsonl": 1, "metrics.jsonl": 2}


def test_a_value_that_json_does_not_know_becomes_null(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "m.jsonl")
    log.append([{"step": 1, "mean": float("nan"), "deep": {"x": float("inf")}}])
    assert json.loads(log.path.read_text()) == {"step": 1, "mean": None, "deep": {"x": None}}


def test_a_step_line_tells_means_flat_groups_and_what_is_missing() -> None:
    logs = {
        "reward": 0.3,
        "rewards/accuracy/mean": 0.125,
        "rewards/accuracy/failed": 0.25,
        "rewards/accuracy/not_applicable": 0.0,
        "rewards/structure/mean": float("nan"),
        "frac_reward_zero_std": 0.5,
        "completions/clipped_ratio": 0.625,
        "step_time": 40.4,
    }
    assert step_line(2, 10, logs) == (
        "step 2/10 | accuracy 0.125 (failed 25%, not applicable 0%) | structure n/a | flat groups 50% | cut off 62% "
        "| 40 s"
    )


def checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if complete else '{"global_st')
    return path


@pytest.mark.parametrize("wanted", [True, "true", "latest", "yes"])
def test_the_newest_complete_checkpoint_is_found_by_number(tmp_path: Path, wanted) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 15, complete=False)
    assert find_checkpoint(wanted, tmp_path) == newest


@pytest.mark.parametrize("wanted", [None, "false", False, ""])
def test_no_checkpoint_is_looked_for_unless_asked(tmp_path: Path, wanted) -> None:
    checkpoint(tmp_path, 5)
    assert find_checkpoint(wanted, tmp_path) is None


def test_before_the_first_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(True, tmp_path / "not-there-yet") is None


def test_a_named_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no complete checkpoint there.*bare flag"):
        find_checkpoint(str(tmp_path), tmp_path)
