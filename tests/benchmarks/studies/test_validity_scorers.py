"""The study of scorers, on invented labels and a tiny random model."""

import importlib.util
import json
import random

import pytest

from benchmarks.tiny import byte_tokenizer, save_llama
from tests.helpers import ROOT
from tests.helpers.scripts import run_here

SCRIPT = ROOT / "benchmarks/studies/validity_scorers.py"

ROWS = [
    {
        "uuid": f"row-{problem}",
        "question": f"What is {problem} + 1, doubled?",
        "question_type": "original",
        "ground_truth_solution": f"{problem} + 1 = <<{problem}+1={problem + 1}>>{problem + 1}\nDone.\n#### {problem}",
        "ground_truth_answer": problem,
        "model_output_steps": [f"Step 1:  {problem} + 1 = {problem + 1}.", "Step 2: So 99.", "Step 3: #### 99"],
        "model_output_solution_first_error_step": 1 + problem % 2,
        "gsm8k_test_index": problem,
    }
    for problem in range(8)
] + [{"question_type": "POT"}]
REVERSED = {
    **ROWS[3],
    "uuid": "reversed",
    "question_type": "reversed",
    "ground_truth_solution": "A model wrote this.",
    "ground_truth_answer": "Let's think step by step.",
}


@pytest.fixture
def answering_model(tmp_path):
    """A random model for which Yes and No are tokens, as for any real one; without them a judge is refused."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Yes", "No"])
    return save_llama(tmp_path / "answering-model", tokenizer)


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("validity_scorers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def start(data, out, *arguments):
    return run_here(SCRIPT, ["--data", data, "--out", out, *arguments], out.parent)


def test_steps_up_to_the_first_error_are_labelled_and_human_ones_are_valid(study, data):
    traces = {trace.key: trace for trace in study.read_traces(data)}
    assert len(traces) == 16
    assert traces["row-1"].steps == ["1 + 1 = 2.", "So 99."]
    assert traces["row-1"].valid == [True, False]
    assert traces["row-2"].valid == [False]
    assert traces["human-1"].steps == ["1 + 1 = 2", "Done."]
    assert traces["human-1"].valid == [True, True]


def test_what_a_model_wrote_as_the_solution_of_a_reversed_question_is_no_evidence(study, tmp_path):
    file = tmp_path / "reversed.jsonl"
    file.write_text(json.dumps(REVERSED))
    [trace] = study.read_traces(file)
    assert (trace.source, trace.answer) == ("model", None)


def test_the_order_of_two_traces_does_not_depend_on_the_others(study, data, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    kept = [trace.key for trace in study.read_traces(few)]
    assert kept == [trace.key for trace in study.read_traces(data) if trace.key in kept]


def test_a_row_that_does_not_fit_is_named_by_its_line(study, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], "model_output_solution_first_error_step": 9}))
    with pytest.raises(study.UsageError, match=r"bad\.jsonl:2: .*first error is step 9 of 3"):
        study.read_traces(file)


def slow_auroc(steps, by_position):
    pairs = [
        (1.0 if good[4] > bad[4] else 0.5 if good[4] == bad[4] else 0.0)
        for good in steps
        for bad in steps
        if good[3] and not bad[3] and (not by_position or good[2] == bad[2])
    ]
    return sum(pairs) / len(pairs)


def test_the_auroc_is_the_share_of_pairs_in_the_right_order(study):
    draw = random.Random(1)
    steps = [
        (draw.randrange(9), "model", draw.randrange(4), draw.random() < 0.7, round(draw.random(), 1))
        for _ in range(120)
    ]
    for by_position in (False, True):
        figure = study.bounds(study.stratified_auroc(steps, by_position=by_position), "auroc")
        assert figure["auroc"] == pytest.approx(slow_auroc(steps, by_position))
        assert figure["auroc_low"] < figure["auroc"] < figure["auroc_high"]


def test_a_scorer_that_knows_the_truth_is_distinguished_from_one_that_measures_position(study, data):
    traces = study.read_traces(data)
    entries = [
        {"trace": trace.key, "scorer": "oracle", "values": [float(valid) for valid in trace.valid]} for trace in traces
    ]
    rows = {(row["scorer"], row["population"]): row for row in study.analyse(traces, entries)}
    assert all(rows["oracle", population]["auroc"] == 1.0 for population in study.POPULATIONS)
    assert rows["control: position", "same position"]["auroc"] == 0.5
    assert all(rows["control: length", population]["over_length"] == 0.0 for population in study.POPULATIONS)
    oracle, length = (rows[name, "all"] for name in ("oracle", "control: length"))
    assert oracle["over_length"] == pytest.approx(oracle["auroc"] - length["auroc"]) != 0
    assert rows["oracle", "same source"]["valid"] == 4


def test_steps_without_a_score_are_left_out_and_counted(study, data):
    traces = study.read_traces(data)
    entries = [
        {"trace": trace.key, "scorer": "half", "values": [None if valid else 0.0 for valid in trace.valid]}
        for trace in traces
    ]
    [row, *_] = study.analyse(traces, entries)
    assert (row["missing"], row["invalid"]) == (20, 8)
    assert row["auroc"] != row["auroc"]


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_as_an_uninterrupted_one(data, tmp_path, answering_model):
    scorers = ("--scorers", "likelihood", "expected", "judge", "prm", "rollout")
    arguments = ("--model", answering_model, *scorers, "--samples", "2", "--max-new-tokens", "4")
    whole = start(data, tmp_path / "whole", *arguments)
    assert whole.returncode == 0, whole.stderr
    scores = tmp_path / "whole" / "scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    assert len(lines) == 16 * 9

    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "settings.json").write_text((tmp_path / "whole" / "settings.json").read_text())
    (cut / "scores.jsonl").write_text("".join(lines[:40]) + lines[40][:20])
    refused = start(data, cut, *arguments)
    assert refused.returncode == 1
    assert "--resume continues it" in refused.stderr
    resumed = start(data, cut, "--resume", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert (cut / "results.json").read_text() == (tmp_path / "whole" / "results.json").read_text()

    other = start(data, cut, "--resume", *arguments, "--samples", "3")
    assert other.returncode == 1
    assert "'samples': 2" in other.stderr
    other = start(data, cut, "--resume", "--model", "embedded")
    assert other.returncode == 1
    assert "choose another --out" in other.stderr


@pytest.mark.slow
def test_traces_scored_in_a_batch_get_the_scores_that_each_gets_alone(data, tmp_path, answering_model):
    def scores(out, *arguments):
        done = start(data, tmp_path / out, "--model", answering_model, "--scorers", "prm", *arguments)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / out / "scores.jsonl").read_text().splitlines()
        return {entry["trace"]: entry["values"] for entry in map(json.loads, lines)}

    alone = scores("alone")
    together = scores("together", "--together", "5", "--engine", f"transformers:{answering_model}")
    assert alone.keys() == together.keys()
    assert all(together[key] == pytest.approx(values, abs=1e-5) for key, values in alone.items())
    assert len({value for values in alone.values() for value in values}) > 10


def test_an_engine_that_goes_leaves_no_scores_of_the_traces_under_way(study, data):
    class Gone:
        __name__ = "judge"

        def __call__(self, questions):
            return self.answers(questions)

        async def answers(self, questions):
            return [None] * len(questions)

        def check_ready(self):
            raise study.UsageError("the server does not answer")

    with pytest.raises(study.UsageError, match="does not answer"):
        study.score_steps(Gone(), study.read_traces(data)[:2], examples=0)


@pytest.mark.slow
def test_a_server_that_is_not_there_leaves_no_scores(data, tmp_path):
    out = tmp_path / "out"
    nobody = ("--engine", "http://127.0.0.1:9/v1#gone", "--scorers", "judge", "--rows", "2")
    done = start(data, out, *nobody)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert not (out / "scores.jsonl").exists()
