"""The validity that checks the calculations of a step."""

import pytest

from rlkd.validity import StepQuestion, load_scorer


@pytest.mark.parametrize(
    ("step", "validity"),
    [
        ("Ann has 5 fewer than Zoe: 12 - 5 = 7, so Ann has 7.", 1.0),
        ("Ann has 5 fewer than Zoe: 12 - 5 = 8, so Ann has 8.", 0.0),
        ("He pays 3 * $2.50 = $7.50 and gets 10 - 7.5 = 3 back.", 0.5),
        ("So 2 + 2 = 4 and x = 5.", 1.0),
        ("#### 7", "undecided"),
        ("", "undecided"),
        ("10 / 3 = 3.33", 0.0),
        ("4 / 0 = 0", "undecided"),
    ],
)
def test_a_step_is_as_valid_as_its_calculations(step, validity) -> None:
    scorer = load_scorer("arithmetic")
    assert scorer([StepQuestion(prompt="", prefix="", step=step)]) == [validity]
