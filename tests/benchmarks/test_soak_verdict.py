"""The verdict (`soak.py --summary`) on the files of a run, with one thing wrong at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

STEPS, GROUPS, SIZE = 40, 4, 8
Change = Callable[[dict[str, list[dict[str, Any]]]], None]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def judged(folder: Path, change: Change = lambda files: None) -> tuple[int, dict[str, Any]]:
    """The exit status and the figures for a clean run after a change to its files."""
    files: dict[str, list[dict[str, Any]]] = {
        "samples.jsonl": [
            {
                "at": 10.0 * step,
                "rss": {"trainer": 900.0, "workers": 100.0, "rollout": 400.0, "judge": 20.0, "supervisor": 80.0},
                "cpu": {"trainer": 2.0 * step, "workers": 0.0, "rollout": 1.0, "judge": 1.0, "supervisor": 1.0},
                "processes": {"trainer": 1, "workers": 3, "rollout": 1, "judge": 1, "supervisor": 4},
                "steps": step,
                "rollouts": step * GROUPS * SIZE,
            }
            for step in range(STEPS + 1)
        ],
        "events.jsonl": [
            *({"event": "killed", "role": role} for role in ("judge", "rollout", "rollout", "judge", "rollout")),
            {"event": "left", "processes": []},
        ],
        "run/metrics.jsonl": [
            {
                "step": step,
                "reward": 0.5,
                "step_time": 9.0,
                "completions/mean_length": 50.0,
                "sampling/sampling_logp_difference/max": 1e-5,
            }
            for step in range(1, STEPS + 1)
        ],
        "run/rollouts/rank0.jsonl": [
            {"step": step, "id": f"row {step} {group}"}
            for step in range(1, STEPS + 2)  # the last one was not finished
            for group in range(GROUPS)
            for _ in range(SIZE)
        ],
    }
    change(files)
    for name, records in files.items():
        write(folder / name, records)
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--summary", str(folder)],
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((folder / "soak.json").read_text())
    return done.returncode, figures


def test_a_clean_run_passes(tmp_path: Path) -> None:
    status, figures = judged(tmp_path)
    assert status == 0
    assert figures["memory_growth"] == figures["trainer_memory_growth"] == 0
    assert (figures["cpu_ratio"], figures["wall_ratio"]) == (1.0, 1.0)
    assert (figures["lost_rollouts"], figures["orphans"], figures["steps"]) == ([], [], STEPS)


def growing(files: dict[str, list[dict[str, Any]]]) -> None:
    for sample in files["samples.jsonl"]:
        sample["rss"]["trainer"] += sample["at"] / 2


def slowing(files: dict[str, list[dict[str, Any]]]) -> None:
    for sample in files["samples.jsonl"][30:]:
        sample["cpu"]["trainer"] += (sample["at"] - 300) / 40


def stale(files: dict[str, list[dict[str, Any]]]) -> None:
    files["run/metrics.jsonl"][7]["sampling/sampling_logp_difference/max"] = 0.4


def leaving_a_process(files: dict[str, list[dict[str, Any]]]) -> None:
    files["events.jsonl"][-1]["processes"] = ["python worker"]


def losing_a_rollout(files: dict[str, list[dict[str, Any]]]) -> None:
    del files["run/rollouts/rank0.jsonl"][100]


def doubling_a_step(files: dict[str, list[dict[str, Any]]]) -> None:
    files["run/metrics.jsonl"].insert(3, files["run/metrics.jsonl"][3])


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (growing, {"memory_growth <= 0.05", "trainer_memory_growth <= 0.05"}),
        (slowing, {"cpu_ratio"}),
        (stale, {"stale <= 0.01"}),
        (leaving_a_process, {"orphans = 0"}),
        (losing_a_rollout, {"lost_rollouts = 0"}),
        (doubling_a_step, {"lost_rollouts = 0"}),
        (lambda files: files["events.jsonl"].pop(0), {"all kills"}),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Change, broken: set[str]) -> None:
    status, figures = judged(tmp_path, change)
    assert status == 1
    assert {name for name, holds in figures["holds"].items() if not holds} == broken
