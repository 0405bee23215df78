"""The recorded run: what is planted in its files is found, and the script as it is started works and resumes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlkd.data.samples import sample_rows
from rlkd.data.shuffle import shuffled_teachers
from rlkd.errors import UsageError
from tests.helpers import ROOT
from tests.helpers.scripts import run_here
from trainers.common.run_files import StepLog


@pytest.fixture(scope="module")
def study():
    path = ROOT / "benchmarks/studies/recorded_run.py"
    spec = importlib.util.spec_from_file_location("recorded_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def settings(study):
    return study.effective_settings(study.CONFIG, ["--eval_rows", "5"])


def write_arm(folder: Path, teachers: list[dict], *, learning: bool, steps: int = 30) -> None:
    """An arm whose completions take ever more of the steps of `teachers`, or always the same share."""
    rows = sample_rows("rl")
    own = {row["id"]: row for row in teachers}
    for step in range(1, steps + 1):
        rollouts = []
        for i in range(4):
            row = rows[(4 * step + i) % len(rows)]
            structure = own[row["id"]]["structures"][0]
            taken = structure[: round(len(structure) * (step / steps if learning else 0.5)) + i % 2]
            rollouts.append(
                {
                    "step": step,
                    "id": row["id"],
                    "prompt": [{"role": "user", "content": row["question"]}],
                    "completion": "\n".join(own[row["id"]]["rationales"][0].split("\n")[: len(taken)]),
                    "rewards": {
                        "structure": {
                            "status": "score",
                            "value": len(taken) / len(structure),
                            "detail": {"student": taken, "teacher": structure},
                        }
                    },
                }
            )
        StepLog(folder / "rollouts" / "rank0.jsonl").append(rollouts)
        values = [record["rewards"]["structure"]["value"] for record in rollouts]
        metrics = {"rewards/structure/mean": sum(values) / 4, "rewards/accuracy/mean": 0.0}
        metrics |= {"completions/mean_length": 50.0 + step % 3, "completions/clipped_ratio": 0.25}
        StepLog(folder / "metrics.jsonl").append([{"step": step, **metrics}])
    for step in (0, steps):
        right = 4 if step and learning else 1
        found = [
            {
                "id": row["id"],
                "correct": float(i < right),
                "tokens": 40,
                "completion": row["rationales"][0] if i < right else "",
            }
            for i, row in enumerate(sample_rows("test")[:5])
        ]
        share = {"mean": right / 5, "low": 0.0, "high": 1.0, "n": 5}
        StepLog(folder / "eval.jsonl").append(
            [{"step": step, "accuracy": share, "ended": share, "tokens": 40.0, "rows": found}]
        )


def test_an_arm_that_learns_true_steps_is_distinguished_from_one_that_learns_foreign_ones(
    study, settings, tmp_path
) -> None:
    rows = sample_rows("rl")
    write_arm(tmp_path / "true", rows, learning=True, steps=60)
    write_arm(tmp_path / "shuffled", shuffled_teachers(rows, study.SHUFFLE_SEED), learning=True, steps=60)
    results = study.analyse(tmp_path, settings)
    # By the logged reward the arms do the same, which is why it cannot be the comparison.
    logged = results["trends"]["structure, logged"]
    assert logged["true"].excludes_zero
    assert logged["shuffled"].excludes_zero
    assert not logged["difference"].excludes_zero
    for teacher, sign in (("true", 1), ("shuffled", -1)):
        for scorer in ("", ", by rules"):
            found = results["trends"][f"agreement with the {teacher} teacher{scorer}"]["difference"]
            assert found.excludes_zero
            assert sign * found.value > 0
    assert results["primary"]["agreement_trend_difference"].low > 0
    assert results["primary"]["agreement_level_difference"].low > 0
    # Scored again against its own teacher, every rollout has the value that was logged.
    assert results["rescoring_gap"] == {"true": 0.0, "shuffled": 0.0}
    gained = results["held_out"]["difference"]
    assert gained["true: last minus first"]["accuracy"].value == pytest.approx(0.6)
    assert gained["true minus shuffled, last"]["accuracy"].value == 0
    first, last = (measured["structure by rules"].value for measured in results["held_out"]["true"])
    assert first == pytest.approx(0.2)
    assert last == pytest.approx(0.8)


def test_arms_that_do_the_same_have_no_difference_whatever_they_do(study, settings, tmp_path) -> None:
    for arm in study.ARMS:
        write_arm(tmp_path / arm, sample_rows("rl"), learning=True)
    results = study.analyse(tmp_path, settings)
    difference = results["primary"]["agreement_trend_difference"]
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert results["primary"]["structure_trend"].excludes_zero
    # The files of this "shuffled" arm are none: its rewards do not fit the shuffled teachers, and that shows.
    assert results["rescoring_gap"]["true"] == 0
    assert results["rescoring_gap"]["shuffled"] > 0.2


def test_an_arm_that_does_not_learn_has_no_trend(study, settings, tmp_path) -> None:
    rows = sample_rows("rl")
    write_arm(tmp_path / "true", rows, learning=False)
    write_arm(tmp_path / "shuffled", shuffled_teachers(rows, study.SHUFFLE_SEED), learning=False)
    results = study.analyse(tmp_path, settings)
    assert not results["primary"]["structure_trend"].excludes_zero
    assert results == results | study.analyse(tmp_path, settings)


def test_files_that_are_missing_or_of_other_data_are_named(study, settings, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"true/metrics\.jsonl"):
        study.analyse(tmp_path, settings)
    for arm in study.ARMS:
        write_arm(tmp_path / arm, sample_rows("rl"), learning=True, steps=3)
    StepLog(tmp_path / "true/rollouts/rank0.jsonl").append([{"step": 3, "id": "strange", "rewards": {}}])
    with pytest.raises(UsageError, match="row 'strange'"):
        study.analyse(tmp_path, settings)


def test_an_arm_is_complete_when_its_last_step_is_trained_and_measured(study, tmp_path) -> None:
    assert not study.is_complete(tmp_path, 3)
    write_arm(tmp_path, sample_rows("rl"), learning=True, steps=3)
    assert study.is_complete(tmp_path, 3)
    assert not study.is_complete(tmp_path, 4)
    (tmp_path / "eval.jsonl").unlink()
    assert not study.is_complete(tmp_path, 3)


def test_an_arm_whose_process_lives_on_is_not_started_again(study, tmp_path) -> None:
    with study._lock(tmp_path / "true.lock", "true") as lock:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    with pytest.raises(UsageError, match="arm 'true' is still running"):
        study._lock(tmp_path / "true.lock", "true")
    study._stop({"true": process})
    assert process.returncode
    study._lock(tmp_path / "true.lock", "true").close()


def test_the_command_line_changes_the_settings(study) -> None:
    arguments = ["--eval_rows", "7", "--max_steps=9", "--reward_kwargs", '{"structure": {"alignment": "f1"}}']
    found = study.effective_settings(study.CONFIG, arguments)
    assert (found["eval_rows"], found["max_steps"], found["reward_kwargs"]) == (
        7,
        9,
        {"structure": {"alignment": "f1"}},
    )
    assert found["seed"] == 7


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_study_runs_from_another_folder_and_resumes_without_training_again(tmp_path, tiny_model) -> None:
    pytest.importorskip("matplotlib")
    model = ["--", "--model_name_or_path", tiny_model]

    def start(*options: str) -> dict:
        words = ["--out", "out", "--smoke", "--parallel", *options, *model]
        done = run_here("benchmarks/studies/recorded_run.py", words, tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    first = start()
    assert first["steps"] == 3
    assert first["smoke"] is True
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rescoring_gap"] == {"true": 0.0, "shuffled": 0.0}
    assert (tmp_path / "out/table.md").read_text().startswith("3 steps")
    assert (tmp_path / "out/recorded_run.png").stat().st_size > 5000
    logs = [(tmp_path / f"out/{arm}.log").read_text() for arm in ("true", "shuffled")]
    assert ["A CONTROL RUN" in log for log in logs] == [False, True]
    assert start("--resume") == first
    assert logs == [(tmp_path / f"out/{arm}.log").read_text() for arm in ("true", "shuffled")]
