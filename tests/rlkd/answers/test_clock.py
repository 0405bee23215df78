import pytest

from rlkd.answers.clock import read_clock


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("9:15", "09:15"),
        ("9:15 pm", "9:15 P.M."),
        ("9:15pm", "21:15"),
        ("12:00 am", "0:00"),
        ("noon", "12:00 pm"),
        ("7:30 in the evening", "7:30 pm"),
        ("3 o'clock", "3:00"),
        ("9:15", "9:15 am"),
        ("1:02:03", "1:02:03"),
    ],
)
def test_one_time_in_two_notations_is_the_same(text, other):
    assert read_clock(text).equals(read_clock(other))
    assert read_clock(other).equals(read_clock(text))


@pytest.mark.parametrize(
    ("text", "other"),
    [("9:15 am", "9:15 pm"), ("9:15", "21:15"), ("12:00 am", "12:00 pm"), ("9:15", "9:51"), ("1:00", "10:00")],
)
def test_two_times_differ(text, other):
    assert not read_clock(text).equals(read_clock(other))


@pytest.mark.parametrize("text", ["", "9", "9:5", "9:60", "13 pm", "2:3", "9:15 x", "9:15 in the box", "am"])
def test_anything_else_is_no_time(text):
    assert read_clock(text) is None
