"""The gap between expert and student: planted answers are counted right, and the script as it is started resumes."""

import argparse
import importlib.util
import json
import subprocess
import sys

import pytest

from rlkd.engines import Completion, EngineError
from rlkd.errors import UsageError
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def study():
    path = ROOT / "benchmarks/studies/expert_gap.py"
    spec = importlib.util.spec_from_file_location("expert_gap", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recited:
    """An engine that knows the first `right` of some rows, and counts the prompts that it gets."""

    guided = False

    def __init__(self, name, rows, right, fails=False):
        self.name = name
        self.answers = {row["question"]: row["answer"] if i < right else "-1" for i, row in enumerate(rows)}
        self.requests = 0
        self.fails = fails

    async def generate(self, prompts, sampling, *, deadline=None):
        self.requests += len(prompts)
        if self.fails:
            return [EngineError(self.name, "it is gone.")] * len(prompts)
        return [Completion(f"#### {self.answers[prompt[-1]['content']]}", "stop", 4) for prompt in prompts]


@pytest.fixture
def given():
    return argparse.Namespace(system_prompt="Be short.", max_new_tokens=8)


def records(right):
    return [{"correct": float(value), "ended": True, "tokens": 4, "text": ""} for value in right]


def test_the_difference_is_paired_and_its_interval_knows_a_gap_from_none(study) -> None:
    rows = [{"id": str(i)} for i in range(100)]
    student, expert = [i < 30 for i in range(100)], [i < 25 or i >= 70 for i in range(100)]
    found = study.compare(rows, {"student": records(student), "expert": records(expert)})
    assert found["difference"]["value"] == pytest.approx(0.25)
    assert found["right_alone"] == {"expert": 30, "student": 5}
    # sqrt((30 + 5) / 100 - 0.25 ** 2) / 10, times 1.98
    assert found["difference"]["low"] == pytest.approx(0.25 - 0.106, abs=0.01)
    assert found["difference"]["high"] == pytest.approx(0.25 + 0.106, abs=0.01)
    assert found["difference"]["excludes_zero"] is True
    assert found["models"]["expert"]["accuracy"]["value"] == pytest.approx(0.55)
    same = study.compare(rows, {"student": records(student), "expert": records(reversed(student))})
    assert same["difference"]["value"] == 0
    assert same["difference"]["excludes_zero"] is False
    assert same["mcnemar_p"] == 1


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (6, 1, 2 * 8 / 128), (3, 3, 1.0)]
)
def test_mcnemar_is_the_exact_test_on_fair_coins(study, one, other, p) -> None:
    assert study.mcnemar(one, other) == pytest.approx(p)


def test_a_question_without_a_comparable_answer_is_left_out_for_all(study) -> None:
    rows = [{"id": str(i)} for i in range(3)]
    student, expert = records([0, 1, 0]), records([1, 1, 1])
    expert[2]["correct"] = None
    found = study.compare(rows, {"student": student, "expert": expert})
    assert (found["n"], found["difference"]["value"]) == (2, 0.5)


def test_cached_answers_are_reused_and_a_torn_line_is_requested_again(study, given, tmp_path) -> None:
    rows = study.read_set("chains", 40)
    path = tmp_path / "answers.jsonl"
    engine = Recited("a", rows, right=10)
    found = study.answer(engine, rows, study.AnswerFile(path), given, "a")
    assert (engine.requests, sum(record["correct"] for record in found)) == (40, 10)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:9])
    again = Recited("a", rows, right=10)
    assert study.answer(again, rows, study.AnswerFile(path), given, "a") == found
    assert again.requests == 20
    assert path.read_bytes().splitlines(keepends=True) == lines


@pytest.mark.parametrize("change", [{"system_prompt": "Be long."}, {"max_new_tokens": 9}, {"name": "b"}])
def test_changed_settings_send_every_request_again(study, given, tmp_path, change) -> None:
    rows = study.read_set("chains", 3)
    kept = study.AnswerFile(tmp_path / "answers.jsonl")
    study.answer(Recited("a", rows, right=3), rows, kept, given, "a")
    engine = Recited(change.pop("name", "a"), rows, right=0)
    other = argparse.Namespace(**{**vars(given), **change})
    assert [record["correct"] for record in study.answer(engine, rows, kept, other, "a")] == [0, 0, 0]
    assert engine.requests == 3


def test_a_model_that_fails_ends_the_study_with_its_reason(study, given, tmp_path) -> None:
    rows = study.read_set("chains", 3)
    with pytest.raises(UsageError, match=r"a on chains: b: it is gone\."):
        study.answer(Recited("b", rows, 0, fails=True), rows, study.AnswerFile(tmp_path / "a"), given, "a on chains")


def test_sets_are_the_held_out_ones_and_a_file_without_answers_is_refused(study, tmp_path) -> None:
    assert {row["id"].rpartition("-")[0] for row in study.read_set("mawps", None)} == {"mawps-test"}
    assert {row["id"].rpartition("-")[0] for row in study.read_set("chains", None)} == {"chain-test"}
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1 and 1?", "answer": 2}\n{"question": "1 and 2?"}\n')
    assert len(study.read_set(str(path), 1)) == 1
    with pytest.raises(UsageError, match=r"row 'rows-1' has no answer"):
        study.read_set(str(path), None)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_script_as_it_is_started_writes_its_results(root, tmp_path, tiny_model) -> None:
    command = [sys.executable, root / "benchmarks/studies/expert_gap.py", "--out", tmp_path / "out", "--rows", 2]
    command += ["--student", tiny_model, "--expert", tiny_model, "--also", "--max-new-tokens", 4]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert set(printed) == {"smoke", "mawps", "chains"}
    assert printed["mawps"]["value"] == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["sets"]["chains"]["n"] == 2
    assert "expert minus student" in (tmp_path / "out/table.md").read_text()
