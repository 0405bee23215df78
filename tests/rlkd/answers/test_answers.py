import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.answers import VerificationError, accuracy, are_correct, equal, extract_answer, is_correct, number, numbers

TOWER = r"\boxed{9^{9^{9^{9}}}}"


def off_the_main_thread(call):
    """Call on another thread; return what it returned or the exception that it raised."""
    got = []

    def target():
        try:
            got.append(call())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(60)
    assert got, "still running after a minute"
    return got[0]


# Finding the answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24 in May, 72 in all.\n#### 72", "72"),
        ("#### 72\n", "72"),
        ("####72<|im_end|>", "72"),
        ("#### 10\nNo, wait.\n#### 72", "72"),
        (r"so \boxed{72}", "72"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{a}{b}}} and done", r"\sqrt{\frac{a}{b}}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{ 5 }", "5"),
        ("<answer>72</answer>", "72"),
        ("<answer> 72 </answer> bye", "72"),
        ("<ANSWER>72</ANSWER>", "72"),
        (r"<answer>So \boxed{72}.</answer>", "72"),
        ("The answer is 72.", "72"),
        ("The final answer is: 72 clips. Good.", "72 clips"),
        ("The answer is $5.50.", "$5.50"),
        ("the answer is 1.5\nand more", "1.5"),
    ],
)
def test_an_announced_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> \\boxed{2}\n#### 3", "3"),
        ("The answer is 1. <answer>2</answer>", "2"),
        ("The answer is 1.\n\\boxed{2}", "2"),
    ],
)
def test_the_most_explicit_announcement_wins(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    ["", "72", "She sold 72 clips.", r"\boxed{", r"\boxed{\frac{1}{2", r"\boxed{}", "<answer></answer>", "####"],
)
def test_a_text_that_announces_no_answer_has_none(text):
    assert extract_answer(text) is None


def test_a_thought_is_not_an_answer():
    assert extract_answer(r"<think>maybe \boxed{1}</think> The answer is 2.") == "2"
    assert extract_answer(r"<think>maybe \boxed{1}</think> I do not know") is None
    assert extract_answer(r"<think>maybe</think> \boxed{1} </think> so 2") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3, then 24", "24"),
        ("I get 24, I think", "24"),
        ("It is .5", ".5"),
        ("$1,200.50 in all", "$1,200.50"),
        ("1/2 of it", "1/2"),
        ("minus -3", "-3"),
    ],
)
def test_the_last_number_counts_only_as_fallback(text, answer):
    assert extract_answer(text, "last_number") == answer
    assert extract_answer(text) is None


def test_an_announced_answer_beats_the_last_number():
    assert extract_answer(r"\boxed{5} took me 3 minutes", "last_number") == "5"


@given(
    st.text() | st.lists(st.sampled_from(["\\boxed{", "}", "####", "<answer>", "</think>", "answer is", "\n", "7"]))
)
def test_extraction_never_raises_and_never_gives_an_empty_answer(text):
    text = text if isinstance(text, str) else "".join(text)
    for fallback in ("none", "last_number"):
        answer = extract_answer(text, fallback)
        assert answer is None or answer.strip()


# Numbers


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


# Comparing


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "72"),
        ("1,000", "1000"),
        (".5", "0.50"),
        ("1/2", "0.5"),
        ("3/6", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{1}{2}", r"\frac12"),
        (r"-\frac{3}{4}", "-0.75"),
        ("-5", "-5.0"),
        ("75%", "75"),
        ("$18", "18 dollars"),
        (r"12\text{ cm}", "12"),
        ("x^2+2x", "2x + x^2"),
        (r"(x+1)^2", "x^2+2x+1"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("Blue", "blue"),
        ("x + 1", "x+1"),
    ],
)
def test_the_same_value_in_another_form_is_equal(answer, gold):
    assert equal(answer, gold) is True


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "73"),
        ("-5", "5"),
        ("1.5x", "15x"),
        (r"2.5\sqrt{3}", r"25\sqrt{3}"),
        ("1 1/2", "11/2"),
        ("(1,2)", "(2,1)"),
        ("0.33", "1/3"),
        ("75%", "0.75"),
        ("x", "y"),
        ("???", "5"),
    ],
)
def test_another_value_is_not_equal(answer, gold):
    assert equal(answer, gold) is False


@pytest.mark.parametrize("gold", ["???", "-", "!!"])
def test_an_unreadable_gold_answer_equals_only_itself(gold):
    assert equal("5", gold) is None
    assert equal(gold, gold) is True


@pytest.mark.parametrize("gold", ["", "  "])
def test_an_empty_gold_answer_cannot_be_judged(gold):
    assert is_correct("#### 5", gold) is None


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 1,000", "1000", True),
        ("#### 1000", "She earned 1,000.\n#### 1,000", True),
        (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", True),
        (r"\boxed{72", "72", False),
        ("72", "72", False),
        ("<think>#### 72</think>", "72", False),
        ("#### 71", "72", False),
    ],
)
def test_a_completion_is_right_if_its_announced_answer_is(text, gold, correct):
    assert is_correct(text, gold) is correct


def test_with_the_last_number_as_fallback_an_unannounced_answer_is_right():
    assert is_correct("So she sold 72.", "72", "last_number") is True


def test_a_comparison_that_hangs_is_stopped_on_the_main_thread():
    with pytest.raises(VerificationError, match="took more than 2 s"):
        is_correct(TOWER, "5", seconds=2.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Step 1: add\n1 + 4 = 5, so \\boxed{5}", "5"),
        ("The answer is 3. No, wait.\n#### 4", "4"),
        ("<answer>12</answer> and then <answer>13", "12"),
        ("<answer>\\boxed{7}</answer>", "7"),
    ],
)
def test_the_last_announcement_counts_unless_it_is_truncated(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", ["5 million", "5 x", "3 i", "2 dozen"])
def test_words_that_may_change_a_value_are_not_units(text):
    assert number(text) is None


def test_off_the_main_thread_plain_numbers_are_compared():
    assert off_the_main_thread(lambda: is_correct("#### 1,000", "1000")) is True
    assert off_the_main_thread(lambda: is_correct("#### 999", "1000")) is False


def test_off_the_main_thread_a_comparison_that_hangs_is_an_error_and_the_others_are_made():
    error = off_the_main_thread(lambda: is_correct(TOWER, "5", seconds=2.0))
    assert isinstance(error, VerificationError)
    assert off_the_main_thread(lambda: is_correct("#### 1+x", "$x+1$")) is True
    assert off_the_main_thread(lambda: is_correct("#### 2+x", "$x+1$")) is False


def test_a_comparison_that_hangs_does_not_affect_the_others():
    found = are_correct([TOWER, "#### 1+x", "#### 2", "no answer"], ["5", "$x+1$", "2", "$y$"], seconds=2.0)
    assert isinstance(found[0], VerificationError)
    assert found[1:] == [True, True, False]


@pytest.mark.parametrize("text", ["The answer is **18**.", "#### **18**", "So \\boxed{18}", "The answer is `18`."])
def test_emphasis_around_an_answer_is_not_part_of_it(text):
    assert is_correct(text, "18") is True


def test_many_unclosed_answer_tags_take_one_pass():
    # Quadratic, this would take minutes: a hang guard, no measurement.
    assert extract_answer("<answer>1</ANSWER>" + "<answer>" * 200_000) == "1"
    assert extract_answer("<answer>" * 200_000) is None


def test_thousands_of_digits_are_not_a_number() -> None:
    assert numbers("7" * 5000 + " and 3") == [3]


# The metric


def test_accuracy_does_not_apply_to_a_row_without_a_readable_answer():
    assert accuracy({"answer": None}, "#### 1") is None
    assert accuracy({}, "#### 1") is None
    assert accuracy({"answer": "???"}, "#### 1") is None


def test_accuracy_is_one_for_the_right_answer_and_zero_for_any_other():
    assert accuracy({"answer": "1000"}, "#### 1,000") == 1.0
    assert accuracy({"answer": "1000"}, "#### 999") == 0.0
    assert accuracy({"answer": "1000"}, "no idea") == 0.0


@pytest.mark.slow
def test_an_answer_that_cannot_be_compared_is_wrong():
    assert accuracy({"answer": "5"}, "#### 9^{9^{9^{9}}}") == 0.0
