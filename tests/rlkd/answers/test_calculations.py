from fractions import Fraction

import pytest

from rlkd.answers.calculations import calculated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30 + 12", 42),
        ("6*7", 42),
        ("6 × 7", 42),
        (r"6 \times 7", 42),
        ("$1.50 + $2", Fraction(7, 2)),
        ("1,000 - 1", 999),
        ("2^3", 8),
        ("2^{3}", 8),
        ("(1 + 2)/4", Fraction(3, 4)),
        ("42", 42),
    ],
)
def test_a_calculation_has_an_exact_value(text, value):
    assert calculated(text) == value


@pytest.mark.parametrize(
    "text", ["", "x + 1", "1/0", "1 +", "4, 5", "30 + 12 = 42", "9^9^9^9", "2^0.5", "2(3)", "1" + "+1" * 500]
)
def test_anything_else_has_no_value(text):
    assert calculated(text) is None
