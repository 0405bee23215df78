import pytest

from rlkd.answers.symbolic import compared, is_one_word, is_words, read, sound


@pytest.mark.parametrize(
    "text", ["5 squared", "at least six", "no solution", "listen", "ABC", r"\text{Blue}", "n or none"]
)
def test_words_are_no_mathematics(text):
    assert is_words(text)


@pytest.mark.parametrize(
    "text", ["2ab", r"\sin 2x", "AB=5", r"\pi", "4 or 5", r"8\pi square inches", "x", "n/a", "lcm(4,6)"]
)
def test_mathematics_is_no_words(text):
    assert not is_words(text)


def test_letters_alone_may_be_a_product():
    assert is_one_word("abc")
    assert compared("abc", r"a \cdot b \cdot c") is True


@pytest.mark.parametrize("text", ["72?73", "x @ y", "f'(x)", "1/0", "", r"\frac{1}"])
def test_a_text_is_read_whole_or_not_at_all(text):
    assert read(text) is None


def test_it_does_not_matter_which_side_is_gold():
    for pair in [("x>2", r"(2,\infty)"), ("y=2x", "2x"), ("1<x<3", "(1,3)")]:
        assert compared(*pair) is compared(*reversed(pair)) is True
    for pair in [("2x+3=7", "7"), (r"\{1,3\}", "(3,1)"), ("7=11a+c", "11a+c")]:
        assert compared(*pair) is compared(*reversed(pair)) is False


def test_rounding_does_not_make_numbers_equal():
    assert compared(r"\frac{1}{30!}", r"\frac{1}{31!}") is False
    assert compared("10^{-30}x", "10^{-31}x") is False
    assert compared(r"\sqrt{2}+10^{-30}", r"\sqrt{2}") is False
    assert compared(r"\sin^2 x + \cos^2 x", "1") is True


def test_a_gold_answer_that_can_be_read_and_compared_is_sound():
    assert sound(r"\sqrt{2}") is True
    assert sound("72?73") is False
