import asyncio
import importlib.util
import json
from collections import Counter

import pytest

from rlkd.data.samples import sample_rows
from rlkd.errors import UsageError
from rlkd.gsrm import DeterministicJudge, JudgeError, ModelJudge, Verdict
from rlkd.gsrm.cli import main
from rlkd.gsrm.judge_eval import LabelledPair, evaluate_judge, fit_threshold, load_pairs, meta_only
from rlkd.structure import FIELDS, Step

PAIRS = load_pairs(split="all")


@pytest.fixture(scope="module")
def records(root):
    lines = (root / "rlkd" / "assets" / "step_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class Scripted:
    """A judge that says of each field what `say` says, or nothing at all about steps that say `fail`."""

    def __init__(self, say):
        self.say = say
        self.calls = 0

    async def judge(self, pairs):
        self.calls += 1
        found = []
        for mine, theirs in pairs:
            if mine[0].meta == "fail":
                found.append(JudgeError("told to"))
            else:
                found.append([Verdict(*(self.say(field, mine[0], theirs[0]) for field in FIELDS))])
        return found


def labelled(meta, *label, kind="pair"):
    return LabelledPair(
        Step(meta, "1+1", "2"), Step("teacher", "1+1", "2"), dict(zip(FIELDS, label, strict=True)), kind
    )


def errors_of(judge, pairs):
    return asyncio.run(evaluate_judge(judge, pairs))


# The labelled pairs


def test_the_shipped_pairs_are_those_that_the_builder_makes(root, records):
    spec = importlib.util.spec_from_file_location("build_step_pairs", root / "tests" / "data" / "build_step_pairs.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    assert builder.build() == records


def test_there_are_enough_pairs_of_both_answers_in_both_halves(records):
    assert len(records) >= 400
    for split in ("fit", "check"):
        counts = Counter(record["label"]["meta"] for record in records if record["split"] == split)
        assert min(counts[True], counts[False]) >= 150
    assert sum(record["read"] for record in records) >= 100
    assert len({record["id"] for record in records}) == len(records)


def test_no_problem_is_in_both_halves_and_none_is_a_test_problem(records):
    sources = {split: {s for r in records if r["split"] == split for s in r["source"]} for split in ("fit", "check")}
    assert not sources["fit"] & sources["check"]
    training = {row["id"] for part in ("rl", "gsrm") for row in sample_rows(part)}
    assert sources["fit"] | sources["check"] <= training


def test_every_kind_has_one_label_for_meta(records):
    kinds = {(record["kind"], record["label"]["meta"]) for record in records}
    assert len(kinds) == len({kind for kind, _ in kinds})


# Measuring


def test_a_judge_that_always_says_yes_has_all_the_false_yes_and_no_false_no():
    found = errors_of(Scripted(lambda *_: True), PAIRS)
    for errors in found.fields.values():
        assert (errors.false_yes.value, errors.false_no.value) == (1.0, 0.0)
    assert found.pairs == found.fields["meta"].accuracy.n == len(PAIRS)


def test_errors_are_counted_by_field_and_kind():
    pairs = [
        labelled("a", True, True, False, kind="one"),
        labelled("b", True, False, False, kind="one"),
        labelled("c", False, False, False, kind="two"),
    ]
    found = errors_of(Scripted(lambda field, mine, theirs: field == "question"), pairs)
    meta, question = found.fields["meta"], found.fields["question"]
    assert (meta.accuracy.value, meta.false_yes.value, meta.false_no.value) == (1 / 3, 0, 1)
    assert (question.accuracy.value, question.false_yes.value, question.false_no.value) == (1 / 3, 1, 0)
    assert found.fields["answer"].false_no is None
    assert found.kinds["two"]["meta"].accuracy.value == 1
    assert found.kinds["one"]["question"].accuracy.value == 0.5
    assert 0 < meta.accuracy.low < meta.accuracy.value < meta.accuracy.high < 1


def test_a_wrong_verdict_on_meta_hides_none_on_question_and_answer():
    # As model judges do: nothing is said about the rest of a step once its meta part differs.
    def say(field, mine, theirs):
        alive = mine.meta == theirs.meta
        return alive if field == "meta" else (True if alive else None)

    found = errors_of(Scripted(say), [labelled("another", True, True, True)])
    assert found.fields["meta"].false_no.value == 1
    assert found.fields["question"].false_no.value == found.fields["answer"].false_no.value == 0


def test_pairs_without_a_verdict_are_counted_apart():
    found = errors_of(Scripted(lambda *_: True), [labelled("fail", True, True, True), labelled("a", True, True, True)])
    assert (found.pairs, found.failed, found.fields["meta"].accuracy.n) == (2, 1, 1)


def test_a_judge_is_called_once():
    judge = Scripted(lambda *_: True)
    errors_of(judge, PAIRS)
    assert judge.calls == 1


def test_a_threshold_is_fitted_where_both_error_rates_are_least(scripted):
    # The log-odds of yes: 2 for what is the same, 1 for what is not.
    engine = scripted(prefer=lambda text: (0.0, -2.0 if "right" in text else -1.0))
    judge = ModelJudge(engine)
    pairs = [labelled("right", True, True, True), labelled("wrong", False, True, True)]
    assert 1 <= asyncio.run(fit_threshold(judge, pairs)) < 2
    assert errors_of(judge, pairs).fields["meta"].accuracy.value == 1


def test_the_default_judge_is_accurate_on_the_held_out_half():
    found = errors_of(DeterministicJudge(), load_pairs(split="check"))
    assert found.fields["meta"].accuracy.value > 0.95
    assert found.fields["question"].accuracy.value > 0.98
    assert found.fields["answer"].accuracy.value > 0.98


def test_without_arithmetic_only_meta_is_errors_of():
    found = errors_of(DeterministicJudge(), meta_only(PAIRS))
    assert found.fields["meta"].accuracy.n == len(PAIRS)
    assert found.fields["question"].accuracy is None


# Files and the command


def test_a_file_needs_steps_and_labels_only(tmp_path):
    record = {"student": {"meta": "a"}, "teacher": {"meta": "b"}, "label": dict.fromkeys(FIELDS, True)}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps(record | {"split": "fit", "kind": "mine"}) + "\n")
    assert [len(load_pairs(path, split)) for split in ("check", "fit", "all")] == [1, 2, 2]
    assert load_pairs(path, "fit")[1].kind == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1"),
        ('{"student": {"meta": "a"}, "teacher": {"meta": "b"}}', "line 1.*label"),
        ('{"student": {"meta": "a"}, "teacher": {"meta": "b"}, "label": {"meta": "yes"}}', "expected true or false"),
        ('{"student": {"mta": "a"}, "teacher": {}, "label": {"meta": true, "question": true, "answer": true}}', "mta"),
        ("", "no pairs"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_pairs(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        load_pairs(tmp_path / "nowhere.jsonl")


def test_the_command_prints_a_table(capsys):
    assert main(["judges", "--threshold", "0.8"]) == 0
    shown = capsys.readouterr().out
    assert "deterministic, threshold 0.8" in shown
    assert "same calculation" in shown


def test_the_command_prints_json_with_intervals(capsys):
    assert main(["judges", "--json", "--fit", "--sample", "60"]) == 0
    found = json.loads(capsys.readouterr().out)["deterministic"]
    assert found["pairs"] == 60
    meta = found["fields"]["meta"]["accuracy"]
    assert meta["low"] < meta["value"] < meta["high"] or meta["value"] == 1
    assert 0 < found["threshold"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "model"], "judge 'model' needs an engine"),
        (["--judge", "nobody"], "unknown judge 'nobody'"),
        (["--judge", "deterministic", "embedding", "--threshold", "0.5"], "belongs to one judge"),
        (["--threshold", "7"], "threshold 7.0: expected a number above 0"),
        (["--judge", "model", "--engine", "http://localhost:1/v1"], "name the model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        main(["judges", *arguments])


def test_a_judge_from_a_file_is_evaluated(capsys, tmp_path):
    (tmp_path / "judge.py").write_text(
        "from rlkd.gsrm import Verdict\n\n\n"
        "class Strict:\n"
        "    async def judge(self, pairs):\n"
        "        return [[Verdict(a.meta == b.meta, a.question == b.question, a.answer == b.answer)"
        " for a, b in zip(own, other)] for own, other in pairs]\n"
    )
    assert main(["judges", "--judge", f"{tmp_path / 'judge.py'}:Strict", "--sample", "30", "--json"]) == 0
    [errors] = json.loads(capsys.readouterr().out).values()
    assert errors["fields"]["meta"]["false_yes"]["value"] == 0
    assert errors["threshold"] is None
