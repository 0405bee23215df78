import asyncio
import io

import pytest
from rich.console import Console

from rlkd.gsrm import GSRM, DeterministicJudge
from rlkd.report.terminal import best_rollout, show_rollout
from rlkd.structure import Step, Structure

TEACHER = Structure(
    [
        Step("How many apples are left?", "9 - 4", "5"),
        Step("What does one apple cost?", "6 / 2", "3"),
        Step("What do they cost together?", "5 * 3", "15"),
        Step("How much change?", "20 - 15", "5"),
    ]
)
STUDENT = Structure(
    [
        Step("How many apples are left?", "9 - 4", "6"),
        Step("Why is the sky blue?", None, None),
        Step("What do they cost together?", "5 * 3", "15"),
    ]
)


@pytest.fixture
def record():
    [judgement] = asyncio.run(GSRM(None, DeterministicJudge()).reward([STUDENT], [[TEACHER]]))
    return {
        "step": 7,
        "id": "row-3",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the change?"}],
        "completion": " It is [bold]5[/bold]. ",
        "answer": "5",
        "advantage": -0.25,
        "rewards": {
            "accuracy": {"status": "score", "value": 1.0},
            "structure": {"status": "score", "value": judgement.score.value, "detail": judgement.to_dict()},
            "style": {"status": "failed", "cause": "ConnectionError: [server] is down"},
            "tone": {"status": "not_applicable"},
        },
    }


def shown(record) -> str:
    page = io.StringIO()
    show_rollout(record, Console(width=160, file=page))
    return page.getvalue()


def test_a_rollout_shows_what_was_asked_written_and_expected(record):
    text = shown(record)
    assert "Rollout of step 7, row row-3" in text
    assert "Question: What is the change?" in text
    assert "Student:  It is [bold]5[/bold]." in text  # as written, not as markup
    assert "Gold:     5" in text
    assert "advantage within its group: -0.250" in text


def test_every_reward_is_shown_with_its_outcome(record):
    text = shown(record)
    assert "accuracy: 1.000" in text
    assert "structure: 0.125" in text
    assert "style: failed (ConnectionError: [server] is down)" in text
    assert "tone: not applicable" in text


def test_the_steps_stand_side_by_side_with_every_verdict(record):
    lines = shown(record).splitlines()
    rows = {cells[0]: cells for line in lines if (cells := [c.strip() for c in line.strip("│┃").split("│")])[0]}
    assert rows["1"][1:] == ["How many apples are left?", "How many apples are left?", "yes / yes / no", "0.5"]
    assert rows["2"][3:] == ["no / missing / missing", "0"]
    assert rows["3"][3:] == ["after the break", "0"]
    assert rows["4"][1:] == ["", "How much change?", "no counterpart", "-"]
    assert any("[9 - 4 = 6]" in line and "[9 - 4 = 5]" in line for line in lines)
    assert any("norm teacher, teacher branch 0" in line for line in lines)


def rollout(step, **values):
    return {"step": step, "rewards": {name: {"status": "score", "value": value} for name, value in values.items()}}


def test_the_best_rollout_has_the_highest_score_and_is_the_latest_of_equals():
    records = [rollout(1, structure=0.5), rollout(2, structure=0.75), rollout(3, structure=0.75), rollout(4)]
    assert best_rollout(records)["step"] == 3


def test_a_score_below_zero_is_better_than_none():
    assert best_rollout([rollout(1, structure=-1.0), rollout(2)])["step"] == 1


def test_without_the_reward_the_last_rollout_is_shown():
    assert best_rollout([rollout(1, accuracy=1.0), rollout(2, accuracy=0.0)])["step"] == 2
    assert best_rollout([]) is None
