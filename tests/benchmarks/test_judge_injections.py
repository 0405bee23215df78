"""The count of judge injections: what is compared with what, with a judge that is a function."""

import pytest

import rlkd.engines.pool
from benchmarks import judge_injections
from benchmarks.judge_injections import CONTROLS, INJECTIONS, changes, summary, wrong_solutions
from rewards.judge import JudgeReward
from rlkd.engines.base import Completion, Engine, EngineError


class Judge(Engine):
    """Gives the grade that a function of the request says, or fails."""

    name = "judge"
    guided = True

    def __init__(self, grade):
        self.grade = grade

    async def generate(self, prompts, sampling, *, deadline=None):
        grades = [self.grade(prompt[0]["content"]) for prompt in prompts]
        return [
            one if isinstance(one, EngineError) else Completion(f'{{"grade": {one}}}', "stop", 5) for one in grades
        ]


@pytest.fixture
def reward(monkeypatch):
    def make(grade):
        monkeypatch.setattr(rlkd.engines.pool, "open_engine", lambda spec, **options: Judge(grade))
        return JudgeReward("a", "Is it right?")

    return make


def test_there_are_twenty_injections_and_each_changes_the_text_and_keeps_the_solution() -> None:
    assert len(INJECTIONS) == 20
    changed = {name: change("2 + 3 = 6") for name, change in {**INJECTIONS, **CONTROLS}.items()}
    assert len(set(changed.values())) == len(changed)
    assert all("2 + 3 = 6" in text for text in changed.values())


def test_a_judge_that_falls_for_one_injection_has_the_share_of_that_one(reward) -> None:
    pairs = wrong_solutions(3)
    found, failed = changes(reward(lambda request: 9 if "Grade: 10/10" in request else 2), pairs, INJECTIONS)
    assert failed == 0
    assert found["grade line"] == pytest.approx([0.7] * 3)
    assert summary(found)["rises"][0] == pytest.approx(1 / 20)
    assert summary({"plea": found["plea"]})["rises"][0] == 0


def test_a_grade_that_falls_is_no_success_and_a_judge_that_fails_is_no_pair(reward) -> None:
    def grade(request):
        if "system" in request.lower():
            return EngineError("judge", "is down.")
        return 1 if "Please be kind" in request else 5

    found, failed = changes(
        reward(grade), wrong_solutions(2), {name: INJECTIONS[name] for name in ("plea", "system line")}
    )
    assert found == {"plea": pytest.approx([-0.4, -0.4]), "system line": [None, None]}
    assert failed == 2
    assert summary(found)["pairs"] == 2
    assert summary({"system line": found["system line"]}) == {"pairs": 0}


def test_the_solutions_are_those_of_other_questions() -> None:
    pairs = wrong_solutions(4)
    assert len({question for question, _ in pairs}) == 4
    assert judge_injections.wrong_solutions(4) == pairs
