from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.answers import number, numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("-3", -3),
        ("+3", 3),
        ("1,200", 1200),
        ("1,234,567.5", Fraction(12345675, 10)),
        ("1 000", 1000),
        ("1{,}000", 1000),
        (".5", Fraction(1, 2)),
        ("0.50", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("3/6", Fraction(1, 2)),
        ("$1,200.50", Fraction(120050, 100)),
        (r"\$18", 18),
        ("-$5", -5),
        ("75%", 75),
        (r"75\%", 75),
        ("75 %", 75),
        ("24 clips", 24),
        ("24 clips in May.", 24),
        ("18.", 18),
        (" 18 ", 18),
    ],
)
def test_a_plain_number_is_read_with_currency_and_unit(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "1 1/2",
        "11 2",
        "1,2",
        "1 or 2",
        "2x",
        r"\frac{1}{2}",
        "1e5",
        "24 km/h",
        "9" * 101,
        "1.2.3",
        "-",
    ],
)
def test_anything_else_is_not_a_plain_number(text):
    assert number(text) is None


@given(st.fractions(max_denominator=10**9))
def test_a_fraction_comes_back_from_its_text(value):
    assert number(str(value)) == value


@given(st.integers(-(10**30), 10**30))
def test_thousands_commas_do_not_change_a_number(value):
    assert number(f"{value:,}") == value


def test_a_long_run_of_spaces_takes_linear_time():
    # Quadratic reading of this many would outlast the time limit of the test.
    assert number("5" + " " * 1_000_000 + "!") is None


@pytest.mark.parametrize("text", ["5 million", "5 x", "3 i", "2 dozen"])
def test_words_that_may_change_a_value_are_not_units(text):
    assert number(text) is None


def test_thousands_of_digits_are_not_a_number() -> None:
    assert numbers("7" * 5000 + " and 3") == [3]
