"""Lengthened traces: as long as asked, the right steps in order, the final answer last."""

import pytest

from lengthening import WAYS, Material, smaller
from rlkd.gsrm.teacher_steps import path_steps
from rlkd.structure import Step, Structure

RIGHT = [Step("Eggs sold?", "16-3-4", "9"), Step("Income a day?", "9*20", "180"), Step("Left?", "180-40", "140")]
MATERIAL = Material(
    [Step("Eggs?", "16+3", "19"), Step("Income?", "19*20", "380")], ["How many eggs?", "She eats some."]
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [3, 7, 24])
def test_a_trace_gets_the_length_and_ends_with_the_final_answer(way, length) -> None:
    steps = WAYS[way](RIGHT, length, MATERIAL)
    assert length - 3 <= len(steps) <= length + 1
    assert steps[-1].answer == "140"
    if way != "finer":
        remaining = iter(steps)
        assert all(step in remaining for step in RIGHT)  # in order


def test_a_short_target_changes_nothing_but_splits_no_calculation() -> None:
    assert all(way(RIGHT, 2, MATERIAL) == RIGHT for way in WAYS.values())


@pytest.mark.parametrize(("way", "length"), [("checks", 30), ("restated", 30), ("abandoned", 5)])
def test_the_path_of_a_lengthened_trace_is_the_short_one(way, length) -> None:
    assert path_steps(Structure(WAYS[way](RIGHT, length, MATERIAL))) == Structure(RIGHT)


def test_repeated_attempts_have_other_results_and_restatements_have_none() -> None:
    attempts = WAYS["abandoned"](RIGHT, 7, MATERIAL)[:4]
    assert [step.answer for step in attempts] == ["19", "380", "20", "381"]
    said = [step for step in WAYS["restated"](RIGHT, 9, MATERIAL) if step not in RIGHT]
    assert len(said) == 6
    assert all(step.question is None and step.answer is None for step in said)


@pytest.mark.parametrize(
    ("question", "answer", "parts"),
    [
        ("16-3-4", "9", "16-3=13 13-4=9"),
        ("9 * $5", "45", "9*2=18 9*3=27 18+27=45"),
        ("9 x 2", "18", "2*4=8 2*5=10 8+10=18"),
        ("18/3", "6", "9/3=3 9/3=3 3+3=6"),
        ("(3+4)*5", "35", "3+4=7 7*5=35"),
        ("100+250", "350", "100+125=225 225+125=350"),
    ],
)
def test_a_calculation_is_split_into_smaller_ones_with_the_same_result(question, answer, parts) -> None:
    found = smaller(Step("?", question, answer))
    assert found is not None
    assert " ".join(f"{step.question}={step.answer}" for step in found) == parts


@pytest.mark.parametrize(
    ("question", "answer"), [("x+3", "7"), ("16-3", "12"), ("1+1", "2"), ("7/0", "0"), (None, "3")]
)
def test_what_cannot_be_split_or_is_wrong_stays(question, answer) -> None:
    assert smaller(Step("?", question, answer)) is None
