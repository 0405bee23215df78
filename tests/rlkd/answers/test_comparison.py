import threading

import pytest

from rlkd.answers import VerificationError, accuracy, are_correct, equal, is_correct

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
