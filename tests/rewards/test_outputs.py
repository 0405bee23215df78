import pytest

from rewards.outputs import same_output, same_value


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        # Blanks
        ("6\n", "6"), (" 6", "6"), ("6  ", "6"), ("\n6", "6"), ("6\n\n\n", "6"), ("1\t2", "1 2"), ("1   2", "1 2"),
        ("1 \n2", "1\n2"), ("1\r\n2", "1\n2"), ("3", "3\r\n"), ("", "\n"), ("a\n\nb", "a\n\nb"), ("  \n6", "6"),
        # The same number in another way
        ("1.0", "1"), ("1", "1.0"), ("1.500000", "1.5"), ("1e10", "10000000000"), ("1E+2", "100"),
        ("-0.0", "0"), ("-0", "0"),
        ("1e-07", "0.0000001"), (".5", "0.5"), ("5.", "5"), ("+5", "5"), ("x 1.0 y", "x 1 y"),
        ("2.9999999999999996", "3"),
        ("0.30000000000000004", "0.3"), ("100000000000000000000.0", "1e20"), ("5.551115123125783e-17", "0.0"),
        # Rounded to six digits or more
        ("0.6666666666666666", "0.6666666667"), ("0.3333333333333333", "0.333333"), ("0.6666666666666666", "0.666666"),
        ("3.141592653589793", "3.141593"), ("123.4567891", "123.456789"), ("0.0000001", "0.000000"),
        ("12.345678", "12.34568"),
    ],
)  # fmt: skip
def test_output_that_a_judge_accepts(printed, expected):
    assert same_output(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("Answer: 6", "6"), ("YES", "Yes"), ("yes", "YES"), ("1 2 3", "1 2"), ("1 2", "1 2 3"),
        ("1\n2", "1 2"), ("12", "1 2"),
        ("1\n\n2", "1\n2"), ("", "0"), ("6.", "6,"), ("a.", "a"),
        ("2", "2.5"), ("2.45", "2.5"), ("0.33", "0.333333"), ("0.666", "0.666667"),
        ("0.333334", "0.333333"), ("-1", "1"),
        ("1000000007", "1000000008"), ("1000000007.0", "1000000008"), ("1e10", "10000000001"), ("10000000001", "1e10"),
        ("999999", "1000000.0"), ("1000000.0", "1000000.5"), ("2.9999", "3"),
        ("0", "0.0000001"), ("0.0", "1e-10"), ("0.0", "0.000001"), ("0.001", "0.0"),
        ("007", "7"), ("0101", "101"), ("0012", "12a"), ("1_000", "1000"), ("1,5", "1.5"),
        ("1/3", "0.333333"), ("0x10", "16"),
        ("nan", "0.0"), ("inf", "1e999"), ("True", "1"), ("1.2.3", "1.2"), (".", "0"), ("e5", "0"),
        ("-", "0"), ("٣", "3"),
    ],
)  # fmt: skip
def test_output_that_a_judge_rejects(printed, expected):
    assert not same_output(printed, expected)


def test_huge_output_is_compared_as_text_and_quickly():
    assert same_output("1" * 200, "1" * 200)
    assert not same_output("1" * 200 + ".0", "1" * 200)
    assert not same_output("9e999", "1" * 90)
    assert same_output("1.0 " * 100_000, "1 " * 100_000)


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        ([1, [2.0, "x"]], [1, (2, "x")], True),
        (0.1 + 0.2, 0.3, True),
        (1, 1.0, True),
        (1.1, 1, False),
        ({"1": [0.30000000000000004]}, {1: [0.3]}, True),
        ({"1": 2}, {"1": 2, "2": 3}, False),
        ([1, 2], [2, 1], False),
        ("1", 1, False),
        (None, 0, False),
        ([], None, False),
        (float("nan"), 1.0, False),
        (2.9999999999999996, 3, True),
        (1e10, 10**10 + 1, False),
        (0.1 + 0.2 - 0.3, 0.0, True),
        (1e-12, 0.0, True),
        ([5e-17, 1.0], [0.0, 1.0], True),
        (1e-6, 0.0, False),
        (1e-12, 0, False),
        (0.0, 1e-12, False),
    ],
)
def test_values_are_compared_as_json_with_floats_to_a_billionth(found, expected, right):
    assert same_value(found, expected) is right
