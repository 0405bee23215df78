"""Figures of an evaluation: by hand on a few rows, and what could not be judged is left out and counted."""

import pytest

from rlkd.evaluation.folder import RecordedCompletion
from rlkd.evaluation.summary import interval, summarise
from rlkd.statistics import estimate

RIGHT, WRONG, UNKNOWN = (
    {"status": "score", "value": 1.0},
    {"status": "score", "value": 0.0},
    {"status": "not_applicable"},
)
FAILED = {"status": "failed", "cause": "no server"}


def evaluation(*rows: list[tuple[str | None, dict]]) -> dict:
    """Of each row the answer and verdict of its completions, the greedy one first."""
    return {
        (f"r{i}", number): RecordedCompletion(
            f"r{i}", number, "3 + 4 = 7", 10 + number, number < 2, answer, {"accuracy": verdict}
        )
        for i, row in enumerate(rows)
        for number, (answer, verdict) in enumerate(row)
    }


def test_the_figures_of_three_rows_are_those_by_hand() -> None:
    found = summarise(
        ["r0", "r1", "r2"],
        evaluation(
            [("7", RIGHT), ("7", RIGHT), ("7.0", RIGHT), ("8", WRONG), ("9", WRONG)],
            [("7", RIGHT), ("8", WRONG), ("8", WRONG), ("7", RIGHT), ("7", RIGHT)],
            [("8", WRONG), (None, WRONG), (None, WRONG), (None, WRONG), ("1", WRONG)],
        ),
        samples=4,
    )
    greedy, sampled = found["greedy"], found["sampled"]
    assert interval(greedy["accuracy"]) == estimate([1.0, 1.0, 0.0])
    assert sampled["accuracy"]["value"] == pytest.approx(1 / 3)
    assert sampled["pass"]["1"] == sampled["accuracy"]
    assert sampled["pass"]["2"]["value"] == pytest.approx((5 / 6 + 5 / 6 + 0) / 3)
    assert sampled["pass"]["4"]["value"] == pytest.approx(2 / 3)
    # 7 and 7.0 are one answer; of two votes each, the first answer wins, and no answer is no vote.
    assert sampled["maj"].keys() == {"4"}
    assert sampled["maj"]["4"]["value"] == pytest.approx(1 / 3)
    assert greedy["announced"]["value"] == 1
    assert sampled["announced"]["value"] == pytest.approx(9 / 12)
    assert (greedy["tokens"]["value"], sampled["tokens"]["value"]) == (10, 12.5)
    assert (greedy["ended"]["value"], sampled["ended"]["value"]) == (1.0, 0.25)
    assert greedy["calculations"]["value"] == 1
    assert found["metrics"]["accuracy"] == {"scored": 15, "not_applicable": 0, "failed": 0, "causes": {}}
    for part in (greedy, sampled):
        for name in ("accuracy", "ended", "announced"):
            assert 0 <= part[name]["low"] <= part[name]["value"] <= part[name]["high"] <= 1


def test_what_could_not_be_judged_is_left_out_and_counted_with_its_cause() -> None:
    found = summarise(
        ["r0", "r1"],
        evaluation([("7", FAILED), ("7", RIGHT), ("7", FAILED)], [("7", UNKNOWN), ("7", UNKNOWN), ("8", UNKNOWN)]),
        samples=2,
    )
    assert found["greedy"]["accuracy"] is None
    assert found["sampled"]["accuracy"]["value"] == 1
    assert found["sampled"]["accuracy"]["n"] == found["sampled"]["pass"]["1"]["n"] == 1
    assert "2" not in found["sampled"]["pass"]
    assert found["metrics"]["accuracy"] == {
        "scored": 1,
        "not_applicable": 3,
        "failed": 2,
        "causes": {"no server": 2},
    }


def test_letters_are_compared_as_they_are() -> None:
    rows = evaluation([("A", WRONG), ("A", WRONG), ("B", RIGHT), ("B", RIGHT)])
    found = summarise(["r0"], rows, samples=3, compares=False)
    assert found["sampled"]["maj"]["3"]["value"] == 1


def test_without_accuracy_there_are_the_other_metrics() -> None:
    each = RecordedCompletion("r0", 0, "text", 3, True, None, {"length": {"status": "score", "value": -0.5}})
    found = summarise(["r0"], {each.key: each}, samples=0, metrics=["length"])
    assert found["greedy"]["length"]["value"] == -0.5
    assert "accuracy" not in found["greedy"]
