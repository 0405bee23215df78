from fractions import Fraction

import pytest

from rlkd.answers.number_words import leading_number


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("zero", 0, ""),
        ("forty-two clips", 42, " clips"),
        ("one hundred and five", 105, ""),
        ("two thousand thirty", 2030, ""),
        ("three hundred thousand", 300_000, ""),
        ("a dozen", 12, ""),
        ("two thirds of it", Fraction(2, 3), " of it"),
        ("three quarters", Fraction(3, 4), ""),
        ("half", Fraction(1, 2), ""),
        ("six and more", 6, " and more"),
    ],
)
def test_a_number_in_words_is_read_up_to_its_end(text, value, rest):
    assert leading_number(text) == (value, rest)


@pytest.mark.parametrize("text", ["", "clips", "a clip", "two two", "ten two", "twenty-third", "hundreds", "and five"])
def test_other_words_are_no_number(text):
    assert leading_number(text) is None
