"""A judge model must begin its reply with one of its choices."""

import math

import pytest

from rlkd.engines import Engine, EngineError
from rlkd.engines.choice_mass import check_choice_mass
from rlkd.errors import UsageError


class Fixed(Engine):
    """Answers every choice with the same log-probabilities."""

    def __init__(self, reply):
        self.reply = reply
        self.name = "fixed"

    async def generate(self, prompts, sampling, *, deadline=None):
        raise NotImplementedError

    async def choose(self, prompts, choices, *, deadline=None):
        return [self.reply] * len(prompts)


@pytest.mark.parametrize("reply", [(math.log(0.9), math.log(0.05)), (math.log(2e-3), -math.inf), (-math.inf, -6.5)])
def test_a_model_that_answers_passes(reply) -> None:
    assert check_choice_mass(Fixed(reply), "2?", ("Yes", "No"), "judge") is None


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((-12.0, -14.0), r"judge: fixed puts 7e-06 of its probability on Yes and No .*enable_thinking"),
        ((-math.inf, -math.inf), "puts 0 of its probability"),
        ((math.nan, math.nan), "puts 0 of its probability"),
        (EngineError("fixed", "no choice is likely."), "judge: fixed: no choice is likely"),
    ],
)
def test_one_that_thinks_first_or_cannot_answer_is_refused_with_the_way_out(reply, message) -> None:
    with pytest.raises(UsageError, match=message):
        check_choice_mass(Fixed(reply), "2?", ("Yes", "No"), "judge")
