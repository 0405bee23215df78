"""The runner, on a recipe that only counts: no model, so that it can be killed and started often."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from rlkd import cli
from rlkd.errors import UsageError
from rlkd.process import cores
from rlkd.study.commands import PlannedRun, StageCommand
from rlkd.study.definition import Stage, Study
from rlkd.study.runner import only_here, record_study, recorded_study, run_all
from tests.helpers import ROOT

# Trains --steps steps from its "checkpoint", and evaluates before and after. It waits while a file `hold` is there.
RECIPE = """
import argparse, json, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--config")
for key in ("output_dir", "seed", "steps", "gain", "fail", "data", "eval_samples", "resume_from_checkpoint"):
    parser.add_argument(f"--{key}", nargs="?")
given = parser.parse_args()
out = Path(given.output_dir)
if given.fail == given.seed:
    sys.exit("the recipe is broken")
if given.data:
    Path(given.data).read_text()
done = int((out / "step").read_text()) if (out / "step").exists() else 0
for step in range(done, int(given.steps)):
    (out / "step").write_text(str(step + 1))
    (out / "trace").open("a").write(f"{step} {os.environ['OMP_NUM_THREADS']}\\n")
    while Path("hold").exists() and step:
        time.sleep(0.01)
(out / "data.txt").write_text(given.seed)
with (out / "eval.jsonl").open("w") as file:
    for step, right in ((0, 2), (int(given.steps), 2 + int(given.gain))):
        rows = [{"id": i, "correct": float(i < right), "sampled_correct": (i < right) / 2} for i in range(10)]
        file.write(json.dumps({"step": step, "tokens": 3, "calculations": 1, "rows": rows, "sampled": {}}) + "\\n")
"""
STUDY = {
    "title": "Counting",
    "question": "Do more steps help?",
    "recipe": "recipe.py",
    "settings": {"steps": 3, "gain": 1, "eval_samples": 1},
    "arms": {"plain": {}, "more": {"gain": 4}},
    "control": "plain",
    "seeds": [1, 2, 3],
    "primary": ["sampled_accuracy", "accuracy"],
    "smoke": {"steps": 2},
}


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Writes the study, with changes, and returns the words that run it."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")

    def write(**changes) -> list[str]:
        (tmp_path / "counting.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
        return ["study", "counting.yaml", "--out", "out"]

    return write


def without_times(table: str) -> list[str]:
    """A table without the minutes of its runs, its last column."""
    return [line.rpartition("| ")[0] if line.startswith("| ") else line for line in table.splitlines()]


def test_every_arm_runs_with_every_seed_and_the_table_compares_them(counting, tmp_path, capsys) -> None:
    assert cli.main(counting()) == 0
    out = tmp_path / "out"
    assert {path.parent.name for path in out.glob("*/done")} == {
        f"{a}-{s}" for a in ("plain", "more") for s in (1, 2, 3)
    }
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| accuracy | more | plain | +30.0% (" in table
    assert "rlkd study counting.yaml --out out\n" in table
    assert "Not finished" not in table
    results = json.loads((out / "results.json").read_text())
    assert results["arms"]["more"]["greedy"]["over_control"]["value"] == pytest.approx(0.3)
    # Two runs at once share the cores.
    threads = max(1, cores() // 2)
    assert (out / "more-3/trace").read_text() == f"0 {threads}\n1 {threads}\n2 {threads}\n"


@pytest.mark.slow
def test_the_same_command_runs_nothing_twice_and_writes_the_same_table(counting, tmp_path) -> None:
    assert cli.main(counting()) == 0
    table = (tmp_path / "out/table.md").read_text()
    traces = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/trace")}
    assert cli.main(counting(title="Counting", question="Do more steps help?")) == 0
    assert (tmp_path / "out/table.md").read_text() == table
    assert {path: path.stat().st_mtime_ns for path in traces} == traces
    (tmp_path / "counting.yaml").unlink()
    assert cli.main(["study", "counting.yaml", "--out", "out", "--analyse"]) == 0
    assert (tmp_path / "out/table.md").read_text() == table


@pytest.mark.slow
def test_a_study_that_is_ended_takes_its_runs_along_and_goes_on_where_it_was(counting, tmp_path) -> None:
    words = counting()
    (tmp_path / "hold").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlkd.cli", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: len(list(tmp_path.glob("out/*/step"))) == 2)
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 2)  # noqa: B023
        children = psutil.Process(process.pid).children()
        with pytest.raises(UsageError, match="is still running"), only_here(tmp_path / "out"):
            pass
        process.send_signal(number)
        assert process.wait(30) != 0
        wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))  # noqa: B023
    assert not list(tmp_path.glob("out/*/done"))
    (tmp_path / "hold").unlink()
    assert cli.main(words) == 0
    # The two that were under way went on from their steps.
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("out/*/trace"))] == [3] * 6
    whole = ["--out", "whole"]
    assert cli.main([*words[:2], *whole]) == 0
    one, other = ((tmp_path / name / "table.md").read_text() for name in ("out", "whole"))
    assert without_times(one.replace("--out out", "--out whole")) == without_times(other)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_fails_is_shown_and_missing_and_the_others_go_on(counting, tmp_path, capsys) -> None:
    assert cli.main(counting(arms={"plain": {}, "more": {"fail": "{seed}", "gain": 4}, "less": {"gain": 0}})) == 1
    printed = capsys.readouterr()
    assert "more-1: FAILED\nthe recipe is broken" in printed.err
    assert "3 runs failed: more-1, more-2, more-3" in printed.err
    table = (tmp_path / "out/table.md").read_text()
    assert "**Not finished, and so not in these figures** (arm and seeds): `more` 1, 2, 3." in table
    assert "| less | 3 |" in table
    assert "| accuracy | more | plain | - | - | - |" in table
    assert "\n| more |" not in table
    # One seed of an arm alone is missing: the others are compared.
    (tmp_path / "out/less-2/done").unlink()
    assert cli.main(["study", "counting.yaml", "--out", "out", "--analyse"]) == 0
    assert "`less` 2" in (tmp_path / "out/table.md").read_text()
    assert "| less | 2 |" in (tmp_path / "out/table.md").read_text()


@pytest.mark.slow
def test_stages_follow_each_other_and_shared_ones_come_first(counting, tmp_path) -> None:
    keys = {"steps": 1, "gain": 0}
    words = counting(
        shared=[{"recipe": "recipe.py", "keys": keys}],
        arms={
            "plain": {"data": "{shared}/data.txt"},
            "staged": [
                {"recipe": "recipe.py", "name": "first", "keys": keys | {"data": "{shared}/data.txt"}},
                {"keys": {"data": "{run}/first/data.txt"}},
            ],
        },
    )
    assert cli.main(words) == 0
    assert (tmp_path / "out/staged-2/first/done").exists()
    assert (tmp_path / "out/shared-2/data.txt").read_text() == "2"
    # Without what they share, no run begins.
    (tmp_path / "other").mkdir()
    assert (
        cli.main([*counting(shared=[{"recipe": "recipe.py", "keys": keys | {"fail": 2}}])[:2], "--out", "other"]) == 1
    )
    assert {path.parent.name for path in tmp_path.glob("other/*-2/log.txt")} == {"shared-2"}
    assert (tmp_path / "other/plain-3/done").exists()


@pytest.mark.parametrize(
    ("changes", "more", "place"),
    [
        ({"settings": {"steps": 4, "gain": 1, "eval_samples": 1}}, [], "study.arms.more.0.keys.steps was 3 and is 4"),
        ({"seeds": [1, 2, 4]}, [], "study.seeds.2 was 3 and is 4"),
        ({"primary": ["accuracy"]}, [], "study.primary"),
        ({}, ["--smoke"], "study."),
        ({}, ["--", "--steps", "9"], "study.words"),
    ],
)
def test_a_folder_with_another_study_is_refused(counting, capsys, changes, more, place) -> None:
    assert cli.main([*counting(), "--seeds", "1"]) == 0
    capsys.readouterr()
    assert cli.main([*counting(**changes), "--seeds", "1", *more]) == 1
    error = capsys.readouterr().err
    assert place in error
    assert "choose another --out" in error


def test_other_versions_are_refused_and_another_title_is_not(counting, tmp_path, capsys) -> None:
    assert cli.main([*counting(), "--seeds", "1"]) == 0
    assert cli.main([*counting(title="Another title"), "--seeds", "1"]) == 0
    path = tmp_path / "out/study.json"
    kept = json.loads(path.read_text())
    assert kept["study"]["title"] == "Another title"
    assert kept["versions"].keys() >= {"trl", "torch"}
    path.write_text(json.dumps(kept | {"versions": kept["versions"] | {"trl": "0.1"}}))
    assert cli.main(counting()) == 1
    assert "versions.trl was '0.1' and is " in capsys.readouterr().err


def test_a_study_goes_on_from_another_place_unless_its_config_says_something_else(tmp_path) -> None:
    def study(place: str, gain: int) -> Study:
        stage = Stage("count", "count.py", f"{place}/count.yaml", {"gain": gain}, {})
        return Study("counting", "", "", {"plain": [stage]}, "plain", [1], ["accuracy"], [], [])

    record_study(study("/old", 1), tmp_path)
    record_study(study("/new", 1), tmp_path)
    assert recorded_study(tmp_path).arms["plain"][0].config == "/new/count.yaml"
    with pytest.raises(UsageError, match=r"base\.gain was 1 and is 2"):
        record_study(study("/new", 2), tmp_path)


@pytest.mark.slow
def test_arms_seeds_words_and_smoke_choose_what_runs(counting, tmp_path, capsys) -> None:
    words = counting(arms={"plain": {}, "more": {"gain": 4}, "most": {"gain": 8}})
    assert cli.main([*words, "--arms", "most", "--seeds", "2", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--output_dir ")[1].split()[0] for line in lines] == ["out/plain-2", "out/most-2"]
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--smoke", "--arms", "most", "--", "--gain", "2"]) == 0
    assert {path.parent.name for path in tmp_path.glob("out/*/done")} == {"plain-1", "plain-2", "most-1", "most-2"}
    table = (tmp_path / "out/table.md").read_text()
    assert "rlkd study counting.yaml --out out --smoke --arms most -- --gain 2" in table
    assert "A smoke test: these figures mean nothing" in table
    assert "2 steps a run" in table
    # The planned comparison of the arm that was left out counts in the adjustment.
    assert "for the 2 of a figure" in table
    assert "| accuracy | more | plain | - | - | - |" in table
    for wrong, message in (
        (["--arms", "mots"], "--arms mots: not in this study. Did you mean 'most'?"),
        (["--seeds", "9"], "--seeds 9"),
    ):
        assert cli.main([*words, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_a_key_that_the_recipe_lacks_stops_the_study_before_its_first_run(counting, tmp_path, capsys) -> None:
    assert cli.main(counting(arms={"plain": {}, "more": {"gian": 4}})) == 1
    error = capsys.readouterr().err
    assert error.startswith("counting: 2 arms x 3 seeds, 6 runs in out; checking their keys with the recipes (")
    assert "arms: more: 'gian' is no key of the recipe" in error
    assert not (tmp_path / "out").exists()


def test_nothing_to_analyse_is_said(counting, tmp_path, capsys) -> None:
    words = [*counting(), "--analyse"]
    assert cli.main(words) == 1
    assert "there is no study in out" in capsys.readouterr().err
    assert cli.main([*counting(settings={"steps": 1, "gain": 0, "eval_samples": 1, "fail": "{seed}"})]) == 1
    assert "no run in out has finished" in capsys.readouterr().err


def test_another_study_than_that_of_the_folder_is_not_analysed(counting, capsys) -> None:
    assert cli.main([*counting(), "--seeds", "1"]) == 0
    assert cli.main(["study", "rlkd", "--out", "out", "--analyse"]) == 1
    assert "out holds the study 'counting', not 'rlkd'" in capsys.readouterr().err


def test_a_run_waits_for_the_one_that_it_needs_even_if_that_is_done(tmp_path) -> None:
    def planned(name: str, code: str, needs: PlannedRun | None = None) -> PlannedRun:
        folder = tmp_path / name
        return PlannedRun(name, folder, [StageCommand(folder, [sys.executable, "-c", code])], needs)

    first = planned("first", "")
    with only_here(tmp_path) as lock:
        assert run_all([first], at_once=1, lock=lock) == []
        broken = planned("broken", "1 / 0")
        runs = [first, planned("second", "", first), broken, planned("third", "", broken)]
        assert run_all(runs, at_once=2, lock=lock) == ["broken", "third"]
