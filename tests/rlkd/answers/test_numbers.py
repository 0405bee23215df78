from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.answers import number, numbers
from rlkd.answers.numbers import read_quantity

PIECES = ["5", ",", ".", "/", "-", "½", "^", "10", "e", "\\frac", "{", "}", "=", "(", ")", "%", "$", "km", " ", "\n"]


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
        ("€7.50", Fraction(15, 2)),
        ("Rs. 300", 300),
        ("300 USD", 300),
        ("-£40", -40),
        ("24 km/h", 24),
        ("30 cm^2", 30),
        (r"12 \text{ sq ft}", 12),
        ("45°", 45),
        ("3rd", 3),
        ("x = 8", 8),
        ("8 = x", 8),
        ("42 (forty-two)", 42),
        ("about 42", 42),
        ("nearly 42", 42),
        ("ca. 42", 42),
        ("more or less 42", 42),
        (r"\cong 42", 42),
        ("≅ 42", 42),
        ("a total of $42", 42),
        (r"\(42\)", 42),
        (r"\underline{42}", 42),
        ("42 cm$^2$", 42),
        ("[42]", 42),
    ],
)
def test_a_number_is_read_with_what_stands_around_it(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "11 2",
        "1,2",
        "1 or 2",
        "2x",
        "9" * 101,
        "1.2.3",
        "-",
        "5 squared",
        "6 factorial",
        "5!",
        "5^2",
        "2 pi",
        "5 plus two",
        "3 over four",
        "5 or six",
        "5 is wrong",
        "3 quarters",
        "7 May",
        "5 below zero",
        "2 sin x",
        "at least 5",
        "5 of 6",
        "5 feet 6 inches",
        "2ab",
        "2 ab",
        "5i",
        "10,00",
        "12 34",
        "(4,500)",
        "3–5",
        "5 to 6",
        "71 = 72",
        "30 + 12 = 42",
        "42 (43)",
        "5 (mod 7)",
        "72?73",
        "12:30",
        "five six",
        "twenty-third",
    ],
)
def test_anything_else_is_not_a_number(text):
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


@pytest.mark.parametrize("text", ["5 x", "3 i", "4 m n"])
def test_letters_that_may_be_variables_are_not_units(text):
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,00,000", 100_000),
        ("12,34,567", 1_234_567),
        ("1'000", 1000),
        ("1’000", 1000),
        ("20_000", 20_000),
        (r"1\,000\,000", 1_000_000),
        (r"1\ 000", 1000),
        ("2.345.678", 2_345_678),
        ("2.345,67", Fraction(234567, 100)),
        ("4\u202f500", 4500),
        ("７２", 72),
        ("٤٢", 42),
    ],
)
def test_digits_are_read_in_the_groups_of_other_languages(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 3/4", Fraction(11, 4)),
        ("2¾", Fraction(11, 4)),
        ("-2 3/4", Fraction(-11, 4)),
        ("2 and 3/4", Fraction(11, 4)),
        (r"2\frac34", Fraction(11, 4)),
        ("two and a half", Fraction(5, 2)),
        ("⅔", Fraction(2, 3)),
        (r"\frac{-2}{3}", Fraction(-2, 3)),
        ("two thirds", Fraction(2, 3)),
        ("7 tenths", Fraction(7, 10)),
        (r"0.\overline{6}", Fraction(2, 3)),
        (r"1.8\dot{3}", Fraction(11, 6)),
        (r"0.\dot{1}4285\dot{7}", Fraction(1, 7)),
    ],
)
def test_fractions_are_read_in_all_notations(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e3", 4000),
        ("4E-3", Fraction(1, 250)),
        ("1e+16", 10**16),
        (r"4.5 \times 10^{3}", 4500),
        ("4.5×10³", 4500),
        ("4.5 * 10**3", 4500),
        ("4.5 x 10^-3", Fraction(9, 2000)),
        ("10⁻²", Fraction(1, 100)),
        ("4 million", 4_000_000),
        ("$1.5 million", 1_500_000),
        ("$3M", 3_000_000),
        ("7k", 7000),
        ("2 dozen eggs", 24),
        ("3 hundred thousand", 300_000),
    ],
)
def test_powers_of_ten_and_multipliers_are_read(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["−6", "–6", "minus 6", "negative six", "- 6", "−$6", "$-6", "-(6)"])
def test_a_minus_is_read_as_sign_or_word(text):
    assert number(text) == -6


@pytest.mark.parametrize(("text", "name"), [("x = 8", "x"), (r"\theta = 8", r"\theta"), ("8", None)])
def test_the_variable_of_a_number_is_known(text, name):
    assert read_quantity(text).name == name


@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_reading_never_raises(text):
    assert number(text) == number(f" {text} ")


def test_thousands_of_digits_are_not_a_number() -> None:
    assert numbers("7" * 5000 + " and 3") == [3]
