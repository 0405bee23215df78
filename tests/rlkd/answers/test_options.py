import pytest

from rlkd.answers.options import letters, truth


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "a",
        "(A)",
        "[A]",
        "A.",
        "A!",
        "A) Paris",
        "A: Paris",
        "A. A big city",
        "A - Paris",
        "A — Paris",
        "(A) Paris, because (B) is wrong",
        "A (Paris)",
        "A because B is wrong",
        "A since it is the capital",
        "A, as B is wrong",
        "A, not B",
        "A. I am sure.",
        "A. B is wrong.",
        "A\n\nParis is the capital.",
        "A, A",
        "A is correct",
        "A. It is not B",
        "A. Not B.",
        "A) incorrect",
        "A - wrong spelling",
        "A) Vitamin C",
        "A. It is A.",
        "**A**: Paris",
        r"\text{(A)}",
        r"\(A\)",
        "'A'",
        "option A",
        "the correct choice (A)",
    ],
)
def test_one_letter_is_named(text):
    assert letters(text) == letters(text, ["A", "B", "C"]) == {"A"}


@pytest.mark.parametrize(
    "text",
    [
        "A, B",
        "A and B",
        "A/B",
        "A & B",
        "A B",
        "A; B",
        "(A)(B)",
        "A. B.",
        "A: B",
        "A\nB",
        "A|B",
        "A, then B",
        "option A, option B",
        "A\\B",
        "A->B",
        "A => B",
        "A…B",
        "A·B",
        "A • B",
    ],
)
def test_two_letters_are_both_named(text):
    assert letters(text) == letters(text, ["A", "B", "C"]) == {"A", "B"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A big dog",
        "I think it is A",
        "not A",
        "neither A nor B",
        "both A and B",
        "A or maybe B",
        "A, maybe B",
        "A, possibly C",
        "A, but also B",
        "A. Or B.",
        "A, as well as B",
        "A?",
        "A) Paris B) Rome",
        "(A) Paris and (B) Rome",
        "Paris",
        "I'm sure",
        "A; else B",
        "A. But B is correct.",
        "A, actually B",
        "A, I mean B",
        "A. No, B.",
        "A. It's B.",
        "A, no B",
        "A (wrong)",
        "A, which is wrong",
        "A is incorrect",
        "A. That is not right.",
        "A, not",
        "A, I doubt it",
    ],
)
def test_a_doubted_letter_or_a_word_is_no_letter(text):
    assert letters(text) == frozenset()


def test_labels_limit_the_letters_and_may_be_numbers():
    assert letters("E", ["A", "B"]) == frozenset()
    assert letters("2) steam", ["1", "2"]) == {"2"}
    assert letters("BA", ["A", "B"]) == {"A", "B"}
    assert letters("BA") == frozenset()


@pytest.mark.parametrize("word", ["Yes", "true"])
@pytest.mark.parametrize(
    "rest",
    [
        "",
        ".",
        "!",
        ", because it is",
        " because it is",
        " since it is",
        " - it is",
        " — it is",
        "—it is",
        " it is",
        " indeed",
        "\nIt is so.",
        ", no doubt",
        ", it is. No question.",
        ", that is right",
        ", and the reason is simple",
    ],
)
def test_yes_may_continue(word, rest):
    assert truth(word + rest) is True
    assert truth(f"({word}){rest}") is True


@pytest.mark.parametrize(
    "text",
    [
        "yes, no, maybe",
        "yes, no",
        "yes or no",
        "yes and no",
        "yes/no",
        "yes|no",
        "yes, then no",
        "Yes. No.",
        "true: false",
        "yes (no)",
        "no, or yes",
        "yes, maybe",
        "yes?",
        "no doubt, yes",
        "No idea",
        "nobody knows",
        "Yes…no",
        "Yes; however no",
        "Yes. But actually no.",
        "Yes, it is not",
        "Yes, it isn't",
        "Yes, which is incorrect",
        "Yes, that's false",
        "Yes (wrong)",
        "Yes, I doubt it",
        "No, it is",
        "No, that is true.",
        "not true",
        "",
    ],
)
def test_both_or_neither_is_no_truth(text):
    assert truth(text) is None


def test_a_word_that_begins_a_clause_is_not_a_second_answer():
    assert truth("No, yes would be wrong here") is False


@pytest.mark.parametrize("text", ["No, it is not", "No, that is not true", "No, it is false", "No. It isn't."])
def test_no_may_be_said_again(text):
    assert truth(text) is False
