import pytest

from rlkd.gsrm.words import content_words, name_different_things, share_of_words


@pytest.mark.parametrize(
    ("mine", "theirs", "different"),
    [
        ("Sold on Monday?", "Sold on Tuesday?", True),
        ("What did Ann sell?", "What did Bob sell?", True),
        ("What is Ann's age?", "What is Bob's age?", True),
        ("Money in scheme A", "Money in scheme B", True),
        ("Hours of weeks 1 and 2", "Hours of weeks 3 and 4", True),
        ("Miles on the second day", "Miles on the third day", True),
        ("Miles on day two", "Miles on the second day", False),
        ("What did Ann sell?", "What did she sell?", False),
        ("Ann's age", "How old is Ann?", False),
        ("How old is Ann?", "How old is ann?", False),
        ("Sold on Monday?", "Sold in week 2?", False),  # a name against a number
        ("Paid in tips for $5", "Paid for 20% tips", False),
        ("So on Monday Ann sold 2*2 = 4.", "How many did Bob sell on Tuesday?", False),  # a statement
        ("How many?", "How much?", False),
        ("First of all: How many?", "Now: What is it?", False),
    ],
)
def test_things_differ_if_each_side_has_a_name_that_the_other_lacks(mine, theirs, different):
    assert name_different_things(mine, theirs) is different
    assert name_different_things(theirs, mine) is different


def test_words_for_a_sum_a_rest_and_a_difference_count_as_one_each():
    assert content_words("How many in total?") == content_words("How many altogether?") != frozenset()
    assert content_words("How many are left?") == content_words("How many remain?")
    assert share_of_words("How many pens?", "How many pens are left?") < 1


def test_texts_without_content_words_are_compared_by_letters():
    assert share_of_words("How many?", "how  many") == 1
    assert share_of_words("How many?", "How much?") == 0
