import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from rewards import Failed, Outcome, RewardError, RewardOptions, Scored


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (0.5, 0.5),
        (1, 1.0),
        (True, 1.0),
        (False, 0.0),
        (-3, -3.0),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(2), 2.0),
        (numpy.bool_(True), 1.0),
        (torch.tensor(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
        (Scored(0.5, {}), 0.5),
    ],
)
def test_any_finite_number_is_a_score(returned, value):
    outcome = Outcome.of(returned, "mine", 0)
    assert (outcome.status, outcome.value) == ("score", value)
    assert type(outcome.value) is float


def test_none_is_not_applicable_and_has_no_value():
    assert Outcome.of(None, "mine", 0) == Outcome("not_applicable")


def test_failed_keeps_its_cause_and_has_no_value():
    outcome = Outcome.of(Failed("server is down"), "mine", 0)
    assert (outcome.status, outcome.value, outcome.cause) == ("failed", None, "server is down")


def test_a_score_keeps_the_facts_that_it_rests_on():
    assert Outcome.of(Scored(0.5, {"steps": [1, 0]}), "mine", 0).detail == {"steps": [1, 0]}


@pytest.mark.parametrize(
    "returned",
    [
        math.nan,
        math.inf,
        -math.inf,
        numpy.float32("nan"),
        torch.tensor(math.nan),
        Scored(math.nan, {}),
    ],
)
def test_a_score_that_is_not_finite_has_failed_and_the_cause_shows_it(returned):
    outcome = Outcome.of(returned, "mine", 3)
    assert (outcome.status, outcome.value) == ("failed", None)
    assert re.fullmatch(r"returned -?(nan|inf), which is no score", outcome.cause or "")


@pytest.mark.parametrize(
    "returned", ["0.5", "", [0.5, 1.0], {}, object(), torch.tensor([0.5, 1.0]), 10**400, 1j, Scored("1", {})]
)
def test_anything_else_is_an_error_that_shows_it(returned):
    with pytest.raises(RewardError, match=r"reward 'mine' returned .* for sample 3; expected a number, None"):
        Outcome.of(returned, "mine", 3)


def test_causes_and_details_of_other_types_are_shown_and_end_nothing():
    assert Outcome.of(Failed({"code": 500}), "mine", 0).cause == "{'code': 500}"
    assert Outcome.of(Scored(0.5, "why"), "mine", 0).detail == {"detail": "why"}
    assert Outcome.of(Scored(0.5, {(1, 2): "x"}), "mine", 0).detail == {"(1, 2)": "x"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("isolate", "false"), ("per_sample", 1), ("cache", None), ("timeout", "soon"), ("timeout", 0), ("workers", 0.5)],
)
def test_an_option_of_another_type_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option} {value!r}: expected"):
        RewardOptions(**{option: value})
