"""The study: its arithmetic, and a smoke run that is interrupted and goes on."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.helpers import ROOT

STUDY = ROOT / "benchmarks/studies/validity_kd.py"
SCOPE = runpy.run_path(str(STUDY), run_name="study")


def run_of(arm: str, seed: int, after: dict, before: dict | None = None) -> dict:
    measured = {"before": before or dict.fromkeys(after, 0.0), "after": after}
    return {"arm": arm, "seed": seed, "weight": 1.0, "ended": 1.0, "tokens": 10.0, **measured}


def test_arms_are_compared_row_by_row_with_plain_of_the_same_seed() -> None:
    rows = [f"row-{i}" for i in range(40)]
    runs = []
    for seed in (1, 2, 3):
        plain = {row: float((i + seed) % 2) for i, row in enumerate(rows)}
        better = plain | {rows[0]: 1.0, rows[1]: 1.0, rows[2]: 1.0, rows[3]: 1.0}
        runs += [run_of("plain", seed, plain), run_of("expected", seed, better)]
    # A seed that plain lacks is left out of the comparison.
    runs.append(run_of("expected", 4, dict.fromkeys(rows, 0.0)))
    found = SCOPE["analyse"](runs)["arms"]
    assert found["plain"]["over_plain"] is None
    mean, low, high = found["expected"]["over_plain"]
    assert mean == pytest.approx(2 / 40)
    assert -0.05 < low < mean < high < 0.2
    assert found["plain"]["after"][0] == pytest.approx(0.5)
    assert "| expected | 4 | 0.000" in SCOPE["table"]({"arms": found})


def test_seeds_that_disagree_make_the_interval_wide() -> None:
    def of(*seeds: list[float]) -> list[float]:
        return SCOPE["interval"]([{f"row-{i}": value for i, value in enumerate(values)} for values in seeds])

    agree = of(*[[1.0, 0.0] * 50] * 4)
    disagree = of(*[[1.0] * 100, [0.0] * 100] * 2)
    assert agree[0] == disagree[0] == 0.5
    assert disagree[2] - disagree[1] > 3 * (agree[2] - agree[1])
    assert SCOPE["interval"]([]) is None


def test_rows_are_crossed_with_seeds_however_many_seeds_there_are() -> None:
    rows = {f"row-{i}": float(i % 2) for i in range(50)}
    one, five = (SCOPE["interval"]([rows] * seeds) for seeds in (1, 5))
    assert five == pytest.approx(one)
    assert SCOPE["interval"]([rows, rows | {"more": 1.0}]) == pytest.approx(one)


def test_rows_that_could_not_be_judged_are_left_out() -> None:
    assert SCOPE["differences"]({"a": 1.0, "b": None, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": None}) == {"a": 1.0}


@pytest.mark.slow
def test_a_smoke_study_runs_resumes_after_an_interruption_and_refuses_other_arguments(tiny_model, tmp_path) -> None:
    out = tmp_path / "study"
    extra = ["--", "--model_name_or_path", tiny_model, "--teacher", tiny_model]

    def study(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(STUDY), "--out", str(out), "--smoke", "--arms", "plain", "likelihood"]
        return subprocess.run(
            [*command, "--seeds", "11", *arguments], capture_output=True, text=True, timeout=300, cwd=tmp_path
        )

    done = study(*extra)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["runs"] == 2
    assert figures["smoke"]
    runs = (out / "runs.jsonl").read_text()
    assert [json.loads(line)["arm"] for line in runs.splitlines()] == ["plain", "likelihood"]
    # One run as a kill after its first checkpoint leaves it; the other one is not trained again.
    cut = out / "likelihood-11"
    (cut / "done").unlink()
    kept = (out / "plain-11" / "log.txt").stat().st_mtime_ns
    done = study(*extra)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "plain-11" / "log.txt").stat().st_mtime_ns == kept
    assert (out / "runs.jsonl").read_text() == runs
    refused = study(*extra, "--max_steps", "3")
    assert refused.returncode == 1
    assert "another config or other arguments" in refused.stderr
