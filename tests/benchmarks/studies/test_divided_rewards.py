"""The points of the study are those of the rules, and the divisors are what their names say."""

import pytest

from divided_rewards import Points, divisors, rewards, teacher_points, without_answer
from lengthening import WAYS, Material
from rlkd.engines import run
from rlkd.gsrm import GSRM, DeterministicJudge, RulesDecomposer
from rlkd.gsrm.alignment import F1, Answers, Ordered, Sum, Teacher
from rlkd.gsrm.teacher_steps import distinct_steps, path_steps
from rlkd.structure import Step, Structure

RIGHT = Structure([Step("Eggs sold?", "16-3-4", "9"), Step("Income?", "9*20", "180"), Step("Left?", "180-40", "140")])
WRONG = Structure([Step("Eggs?", "16-3", "13"), Step("Income?", "13*20", "260"), Step("Left?", "260-40", "220")])
MATERIAL = Material(WRONG.steps, ["Eggs sold?"])
STUDENTS = [RIGHT, WRONG, Structure(RIGHT.steps[1:]), Structure(WRONG.steps[:1] + RIGHT.steps), Structure()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("sum", Sum()),
        ("cascade / teacher", Teacher()),
        ("cascade / mean", F1()),
        ("ordered / mean", Ordered()),
        ("answers / mean", Answers()),
    ],
)
def test_the_usual_divisors_give_the_rules_of_the_library(way, name, rule) -> None:
    teacher = Structure(WAYS[way](RIGHT.steps, 12, MATERIAL))
    points, parts = Points(STUDENTS), {"distinct": distinct_steps(teacher), "path": path_steps(teacher)}
    gsrm = GSRM(RulesDecomposer(), DeterministicJudge(), alignment=rule)
    for student in STUDENTS:
        targets = {key: teacher_points(part, points) for key, part in parts.items()}
        found = rewards(student.steps, teacher_points(teacher, points), targets, points)
        [score] = run(gsrm.reward([student], [[teacher]]))
        assert found[name] == pytest.approx(score.value)
        if name in ("cascade / teacher", "ordered / mean", "answers / mean"):
            for key, part in parts.items():
                [score] = run(gsrm.reward([student], [[part]]))
                assert found[f"{name}, {key} steps"] == pytest.approx(score.value)


def test_divisors_are_named_after_what_they_count() -> None:
    found = divisors(4, 9, {"path": 3})
    assert found == {
        "nothing": 1,
        "teacher": 9,
        "student": 4,
        "longer": 9,
        "mean": 6.5,
        "geometric": 6,
        "path": 3,
        "mean with path": 3.5,
    }


def test_steps_with_the_final_answer_are_left_out() -> None:
    kept = without_answer(Structure([*RIGHT, Step("That is:", "100+40", "$140"), Step(meta="Done.")]), 140)
    assert [step.answer for step in kept] == ["9", "180", None]
