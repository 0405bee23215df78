import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.answers import extract_answer


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


def test_many_unclosed_answer_tags_take_one_pass():
    # Quadratic, this would take minutes: a hang guard, no measurement.
    assert extract_answer("<answer>1</ANSWER>" + "<answer>" * 200_000) == "1"
    assert extract_answer("<answer>" * 200_000) is None
