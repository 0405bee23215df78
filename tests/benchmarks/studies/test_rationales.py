"""The study: its arms and arithmetic, and a smoke run that is interrupted and goes on."""

import json
import runpy
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.helpers.scripts import run_here

STUDY = ROOT / "benchmarks/studies/rationales.py"


@pytest.fixture(scope="module")
def study() -> dict:
    before = list(sys.path)
    try:
        return runpy.run_path(str(STUDY), run_name="study")
    finally:
        sys.path[:] = before


def run_of(arm: str, seed: int, after: dict, tokens: int = 90) -> dict:
    data = {"tokens": tokens, "budget": 100, "rationales": 5}
    return {"arm": arm, "seed": seed, "before": dict.fromkeys(after, 0.0), "after": after, "data": data}


def test_an_arm_is_compared_row_by_row_with_its_own_control(study) -> None:
    rows = [f"row-{i}" for i in range(40)]
    runs = []
    for seed in (1, 2, 3):
        base = {row: float((i + seed) % 2) for i, row in enumerate(rows)}
        runs += [run_of("no_bank", seed, base), run_of("correct", seed, dict.fromkeys(rows, 1.0))]
        runs.append(run_of("drpc", seed, base | dict.fromkeys(rows[:4], 1.0), tokens=60))
    # A seed that the control lacks is left out of the comparison.
    runs.append(run_of("drpc", 4, dict.fromkeys(rows, 0.0)))
    found = study["analyse"](runs)["arms"]
    mean, low, high = found["drpc"]["over_control"]
    assert mean == pytest.approx(2 / 40)
    assert -0.05 < low < mean < high < 0.2
    assert found["no_bank"]["over_control"][0] == pytest.approx(-0.5)
    assert found["correct"]["over_control"] is None
    assert found["drpc"]["share_of_budget"] == pytest.approx(0.675)
    assert "| drpc | 4 | 0.000" in study["table"]({"arms": found})


def test_every_control_is_an_arm_and_every_selector_exists(study) -> None:
    from rlkd.rationales.select import load_selector

    for writer, chain, control in study["ARMS"].values():
        assert writer in ("free", "steps", "bank")
        assert control is None or control in study["ARMS"]
        for name, parameters in chain:
            load_selector(name, parameters, defaults={"student": "transformers:embedded"})
    writers = {arm: writer for arm, (writer, _, _) in study["ARMS"].items()}
    assert (writers["drpc"], writers["no_bank"]) == ("bank", "steps")
    # The bank is the only difference between these two.
    assert study["ARMS"]["drpc"][1] == study["ARMS"]["no_bank"][1]


def test_an_arm_of_selection_differs_from_its_control_in_one_selector(study) -> None:
    chains = {arm: chain for arm, (_, chain, _) in study["ARMS"].items()}
    for arm in ("random", "correct", "diverse", "morsd", "morsd_structure", "srd"):
        one, other = chains[arm], chains[study["ARMS"][arm][2]]
        added = len(one) == len(other) + 1 and [each for each in one if each in other] == other
        exchanged = len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
        assert added or exchanged, arm


@pytest.mark.slow
def test_a_smoke_study_runs_resumes_after_an_interruption_and_refuses_other_arguments(tiny_model, tmp_path) -> None:
    out = tmp_path / "study"

    def study(*arguments: str) -> subprocess.CompletedProcess[str]:
        models = ["--teacher", f"transformers:{tiny_model}", "--student", tiny_model]
        return run_here(STUDY, ["--out", out, "--smoke", *models, "--arms", "morsd", "drpc", *arguments], tmp_path)

    done = study()
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["runs"], figures["smoke"]) == (2, True)
    runs = (out / "runs.jsonl").read_text()
    assert [json.loads(line)["arm"] for line in runs.splitlines()] == ["morsd", "drpc"]
    assert all(json.loads(line)["data"]["tokens"] <= 3000 for line in runs.splitlines())
    # One run as a kill after its selection leaves it; nothing else is done again.
    (out / "drpc-11/done").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl") if path.parent.name == "data"}
    log = (out / "morsd-11/log.txt").stat().st_mtime_ns
    done = study()
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "morsd-11/log.txt").stat().st_mtime_ns == log
    assert (out / "runs.jsonl").read_text() == runs
    refused = study("--", "--max_steps", "3")
    assert refused.returncode == 1
    assert "another config or other arguments" in refused.stderr
