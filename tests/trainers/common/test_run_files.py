"""Files of a run: no gap, no duplicate, nothing lost."""

import json
from pathlib import Path

from trainers.common.run_files import (
    StepLog,
    last_steps,
    read_steps,
    resume_logs,
    set_earlier_run_aside,
    set_later_checkpoints_aside,
)


def checkpoint(folder: Path, step: int) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def test_a_resumed_log_drops_the_steps_that_are_run_again(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    log.append([{"step": step, "reward": step / 10} for step in range(1, 8)])
    log.cut(5)
    log.append([{"step": 6, "reward": 1.0}])
    assert [(r["step"], r["reward"]) for r in read_steps(log.path)][-2:] == [(5, 0.5), (6, 1.0)]


def test_a_line_that_a_kill_truncated_is_skipped(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    log.append([{"step": 1}, {"step": 2}])
    with log.path.open("a") as stream:
        stream.write('{"step": 3, "rew')
    log.cut(2)
    log.append([{"step": 3}])
    assert [record["step"] for record in read_steps(log.path)] == [1, 2, 3]


def test_the_logs_of_every_process_are_truncated(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "rollouts/rank0.jsonl", "rollouts/rank1.jsonl"):
        StepLog(tmp_path / name).append([{"step": 1}, {"step": 2}])
    resume_logs(tmp_path, 1)
    assert all([r["step"] for r in read_steps(path)] == [1] for path in tmp_path.rglob("*.jsonl"))
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3


def test_an_earlier_run_is_set_aside_whole_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    for run in ("first", "second"):
        StepLog(tmp_path / "metrics.jsonl").append([{"step": 1, "run": run}])
        StepLog(tmp_path / "rollouts" / "rank1.jsonl").append([{"step": 1, "run": run}])
        checkpoint(tmp_path, 5)
        (tmp_path / "notes.txt").write_text("mine")
        set_earlier_run_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "earlier-2", "notes.txt"]
    for number, run in ((1, "first"), (2, "second")):
        earlier = tmp_path / f"earlier-{number}"
        assert (earlier / "checkpoint-5" / "trainer_state.json").exists()
        assert read_steps(earlier / "metrics.jsonl")[0]["run"] == run
        assert read_steps(earlier / "rollouts" / "rank1.jsonl")[0]["run"] == run
    assert set_earlier_run_aside(tmp_path) is None


def test_checkpoints_of_steps_that_are_run_again_are_set_aside(tmp_path: Path) -> None:
    for step in (4, 5, 10):
        checkpoint(tmp_path, step)
    set_later_checkpoints_aside(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "earlier-1"]
    assert sorted(path.name for path in (tmp_path / "earlier-1").iterdir()) == ["checkpoint-10", "checkpoint-5"]
    assert set_later_checkpoints_aside(tmp_path, 4) is None


def test_only_the_last_steps_are_held_in_memory(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "r.jsonl")
    log.append([{"step": step, "i": i} for step in range(1, 9) for i in range(2)])
    assert [(r["step"], r["i"]) for r in last_steps(log.path, 2)] == [(7, 0), (7, 1), (8, 0), (8, 1)]
    assert last_steps(tmp_path / "missing.jsonl", 2) == []


def test_a_value_that_json_does_not_know_becomes_null(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "m.jsonl")
    log.append([{"step": 1, "mean": float("nan"), "deep": {"x": [float("inf"), {"y": (float("nan"), 2)}]}}])
    assert json.loads(log.path.read_text()) == {"step": 1, "mean": None, "deep": {"x": [None, {"y": [None, 2]}]}}


def test_a_value_of_a_strange_type_does_not_end_the_run(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "m.jsonl")
    log.append([{"step": 1, "place": Path("a")}])
    assert read_steps(log.path) == [{"step": 1, "place": "a"}]
