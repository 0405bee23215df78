import pytest

from rlkd.answers.remarks import without_remark


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5, because 2 + 3 = 5", "5"),
        ("5 since 2 + 3 = 5", "5"),
        ("5, as 2 + 3 = 5", "5"),
        ("5, so we are done", "5"),
        ("5 - the sum of 2 and 3", "5"),
        ("5 — the sum of 2 and 3", "5"),
        ("5—the sum", "5"),
        ("5, the sum of 2 and 3", "5"),
        ("5 (five)", "5"),
        ("5 (2 + 3)", "5"),
        ("5 (2 + 3 = 5)", "5"),
        ("$5 ($2 + $3)", "$5"),
        ("$5 (which is 2 + 3)", "$5"),
        ("5, not 6", "5"),
        ("5, but not 6", "5"),
        ("5, I believe", "5"),
        ("5, adding 2 and 3", "5"),
        ("5; 2 + 3 = 5", "5"),
        ("5 [2 + 3]", "5"),
        ("5 (i.e., 2 + 3)", "5"),
        ("5 not 6", "5"),
        ("5, i.e. half of ten", "5"),
        ("5 in total", "5"),
        ("5 clips, which she sold", "5 clips"),
        ("x = 5, where x > 0", "x = 5"),
        (r"\frac{1}{2}, because it is half", r"\frac{1}{2}"),
        (r"\(5\) because of this", r"\(5\)"),
        ("Paris, because it is the capital", "Paris"),
        ("Paris — the capital of France", "Paris"),
    ],
)
def test_what_follows_an_answer_is_removed(text, answer):
    assert without_remark(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "1, 2 and 3",
        "5, 6",
        "(1, 2)",
        "x = 5, y = 3",
        "4, maybe 5",
        "4 or 5",
        "4, or 5",
        "4 (or 5)",
        "5 as well as 6",
        "5 as x and 6 as y",
        "5 for a and 6 for b",
        "5, which is not right",
        "5, no, 6",
        "5, actually six",
        "5, if x is positive",
        "5 hours, thirty minutes",
        "5, as we found, or maybe 6",
        "5 - x",
        "5 - pi",
        "6–8",
        "6 - 8",
        "2 (3 + 4)",
        "2 (x + 1)",
        "5 (mod 7)",
        "5 (million)",
        "101 (base 2)",
        "48 + 24 = 72",
        "12,000 people",
        "$72 per week",
        "Romeo and Juliet",
        "Where the Wild Things Are",
    ],
)
def test_what_belongs_to_an_answer_stays(text):
    assert without_remark(text) == text
