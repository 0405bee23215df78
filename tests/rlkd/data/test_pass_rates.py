import logging
import random

import pytest

from rlkd.data.pass_rates import check_bounds, rows_between, with_pass_rates
from rlkd.errors import UsageError

ROWS = [{"id": name} for name in "abcde"]


def measured(*rates: object) -> list[dict[str, object]]:
    return [{"id": f"r{number}", "pass_rate": rate} for number, rate in enumerate(rates)]


def test_a_rate_is_the_exact_share_of_right_samples() -> None:
    verdicts = {"a": [1, 0, 0], "b": [1.0] * 8, "c": [0.0], "d": [0.5, 1, None, 1], "e": [None, None]}
    rows = list(with_pass_rates(ROWS, verdicts))
    # A half right answer is not right; a sample that cannot be judged is none.
    assert [row["pass_rate"] for row in rows] == [1 / 3, 1.0, 0.0, 2 / 3, None]
    assert [row["pass_rate_samples"] for row in rows] == [3, 8, 1, 3, 0]
    assert ROWS[0] == {"id": "a"}


def test_over_many_measurements_the_rate_is_that_of_the_student() -> None:
    draw = random.Random(0)
    rates = [
        next(with_pass_rates([{"id": "a"}], {"a": [float(draw.random() < 0.3) for _ in range(4)]}))["pass_rate"]
        for _ in range(4000)
    ]
    assert sum(rates) / len(rates) == pytest.approx(0.3, abs=0.015)  # four standard errors


def test_rows_between_the_bounds_stay_and_the_others_are_counted(caplog) -> None:
    rows = measured(0.0, 0.1, "0.5", 0.9, 1, None, float("nan"), "")
    with caplog.at_level(logging.WARNING):
        assert [row["id"] for row in rows_between(rows, 0.1, 0.9, source="data")] == ["r1", "r2", "r3"]
    assert "data: 3 of 8 rows have a pass rate from 0.1 to 0.9" in caplog.text
    assert "1 below, 1 above, 3 without one" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS, "no row of data has a pass_rate. Measure it"),
        (measured(0.0, 1.0), "nothing is left. data: 0 of 2 rows"),
        (measured(0.5, 50), "row 'r1': pass_rate is 50; expected a share"),
        (measured(0.5, True), "pass_rate is True"),
        (measured(0.5, "half"), "pass_rate is 'half'"),
    ],
)
def test_rows_that_cannot_be_selected_are_refused(rows, message) -> None:
    with pytest.raises(UsageError, match=message):
        rows_between(rows, 0.1, 0.9, source="data")


@pytest.mark.parametrize("bounds", [[], [0.1], [0.9, 0.1], [-0.1, 0.5], [0.1, 90], [0.1, 0.5, 0.9]])
def test_bounds_that_are_none_are_refused(bounds) -> None:
    with pytest.raises(UsageError, match="keep_pass_rate"):
        check_bounds(bounds)
