import asyncio
import io

import pytest
from rich.console import Console

from rlkd.gsrm import GSRM, DeterministicJudge
from rlkd.gsrm.alignment import BUILT_IN, BranchScore, Sum, Teacher, Verdict
from rlkd.gsrm.factory import make
from rlkd.report.terminal import arithmetic, best_rollout, render_evaluation, render_score, show_rollout
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
    [score] = asyncio.run(GSRM(None, DeterministicJudge(), alignment=Teacher()).reward([STUDENT], [[TEACHER]]))
    return {
        "step": 7,
        "id": "row-3",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the change?"}],
        "completion": " It is [bold]5[/bold]. ",
        "answer": "5",
        "advantage": -0.25,
        "rewards": {
            "accuracy": {"status": "score", "value": 1.0},
            "structure": {"status": "score", "value": score.value, "detail": score.to_dict()},
            "style": {"status": "failed", "cause": "ConnectionError: [server] is down"},
            "tone": {"status": "not_applicable"},
        },
    }


def shown(record) -> str:
    page = io.StringIO()
    show_rollout(record, Console(width=160, file=page))
    return page.getvalue()


def test_a_rollout_shows_question_completion_and_gold_answer(record):
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
    assert any("alignment teacher, teacher branch 0" in line for line in lines)


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


# Scores


def judged(rule, student=STUDENT, teacher=TEACHER):
    gsrm = GSRM(None, DeterministicJudge(), alignment=make("alignment", rule))
    [score] = asyncio.run(gsrm.reward([student], [[teacher]]))
    return score


def test_the_arithmetic_of_a_cascade_goes_down_to_its_value_and_names_the_break():
    assert arithmetic(judged("teacher")) == [
        "step 1: g = 1, answer differs: 1 x 1/2 = 0.5",
        "step 2: the meta parts differ, g = 0 from here on -> 0",
        "step 3: g = 0, after the break -> 0",
        "sum R: 0.5 + 0 + 0 = 0.5",
        "alignment teacher: 0.5 / 4 = 0.125 (steps of the longest branch)",
        "The chain breaks at step 2: the student turns to 'Why is the sky blue?', the teacher to "
        "'What does one apple cost?'; the judge takes these for two sub-problems.",
        "1 later pair of steps can therefore earn nothing.",
    ]


def test_without_a_cascade_the_arithmetic_names_both_steps_of_a_pair():
    assert arithmetic(judged("ordered")) == [
        "step 1 ~ 1: answer differs: 1 x 1/2 = 0.5",
        "step 3 ~ 3: nothing halved -> 1",
        "sum R: 0.5 + 1 = 1.5",
        "alignment ordered: 1.5 / 3.5 = 0.4286 (mean of 3 student and 4 teacher steps)",
    ]
    assert arithmetic(judged("answers")) == [
        "step 3 ~ 3: the same answer -> 1",
        "sum R: 1 = 1",
        "alignment answers: 1 / 3 = 0.3333 (mean number of answers of 2 and 4)",
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Sum(), "step 1: g = 1, nothing halved -> 1"),
        (Teacher(), "step 1: g = 1, question missing on one side: 1 x 1/2 = 0.5"),
    ],
)
def test_a_missing_field_is_free_under_sum_only(rule, expected):
    student, teacher = Structure([Step("Why?", None, "5")]), Structure([Step("Why?", "2 + 3", "5")])
    assert arithmetic(rule.score(student, teacher, [[Verdict(True, None, True)]], 1))[0] == expected


@pytest.mark.parametrize("rule", BUILT_IN)
@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (TEACHER, STUDENT), (Structure(), TEACHER)])
def test_every_step_of_both_sides_is_shown_once_under_every_rule(rule, student, teacher):
    page = io.StringIO()
    Console(width=200, file=page).print(render_score(judged(rule, student, teacher)))
    table = page.getvalue().partition("sum R")[0]
    for step in (*student, *teacher):
        if step.meta not in ("How many apples are left?", "What do they cost together?"):  # on both sides
            assert table.count(f" {step.meta} ") == 1


def test_a_score_of_an_unknown_rule_is_shown_without_its_words():
    score = BranchScore(STUDENT, TEACHER, "mine", (0.5,), 2.0, (Verdict(True, True, False),), ((0, 0),))
    assert arithmetic(score) == [
        "step 1 ~ 1: yes / yes / no -> 0.5",
        "sum R: 0.5 = 0.5",
        "alignment mine: 0.5 / 2 = 0.25",
    ]


def test_an_evaluation_shows_figures_and_failures():
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    row = {"name": "structure, answers", "pooled": figure, "within": figure, "over_length": figure}
    evaluation = {
        "setup": {"decomposer": "rules", "alignments": ["teacher", "answers"]},
        "joined": {"parse rate": figure, "step count: equal": nothing},
        "stability": {},
        "faithfulness": {},
        "at_shuffled_level": {"teacher": False},
        "auroc": [row | {"within_over_length": nothing}],
        "over_rules": {"teacher, all together": {"value": 0.1, "low": 0.05, "high": 0.15, "n": 3}},
        "failures": {f"cause [{i}]": 9 - i for i in range(7)},
    }
    page = io.StringIO()
    Console(width=150, file=page).print(render_evaluation(evaluation))
    text = page.getvalue()
    assert "parse rate" in text
    assert "0.500 [0.250, 0.750]" in text
    assert "n/a" in text
    assert "swapped traces do NOT fall to the shuffled level" in text
    assert "failed 9 x cause [0]" in text
    assert "and 2 more causes of failure" in text
    assert "another layout" not in text  # an empty section has no table
