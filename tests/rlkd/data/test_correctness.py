import pytest

from rlkd.data.correctness import last_line_answer, trace_verdicts
from rlkd.data.samples import DISTILLATION_SAMPLE, EASY_SAMPLE, EXPERT, WARM_START, embedded_rows
from rlkd.teachers.traces import trace_text


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        # Announced
        ("It is 4 + 4 = 8.\n#### 8", "8", True),
        ("It is 4 + 4 = 9.\n#### 9", "8", False),
        ("4 + 4 = 8 is on the 8th day. The answer is <<8=8>>8.", "8", True),
        ("So it is \\boxed{8}.", "4 + 4 = 8\n#### 8", True),
        ("The answer is 1,200.", "1200", True),
        ("<think>\n#### 7\n</think>\n#### 8", "8", True),
        # The result of the last line's calculation
        ("She sold 48/2 = <<48/2=24>>24 clips in May.", "24", True),
        ("She sold 48/2 = <<48/2=24>>24 clips in May.", "25", False),
        ("There are 3.\n16 - 3 - 4 = $9 for 2 days each.\n\n", "9", True),
        ("24 + 48 = 72\nSo 12 + 12 = 24", "72", False),
        # Its only number
        ("So 10 - 2 = 8.\nA: 8", "8", True),
        ("So 10 - 2 = 8.\nA: 9", "8", False),
        ("It is cold.\nThe average is -12 degrees.", "-12", True),
        ("It is cold.\nThe average is -12 degrees.", "12", False),
        ("He has 12 apples left, so 12.", "12", True),
        # Neither
        ("He has 12 apples and 15 pears.", "15", None),
        ("He has some apples left.", "15", None),
        ("", "15", None),
        ("<think>5 + 3 = 8", "8", None),
        ("He has 15 apples.", None, None),
        ("He has 15 apples.", "  ", None),
        # Answers in words
        ("The answer is yes.", "yes", True),
        ("The answer is no.", "yes", False),
        ("#### true", "yes", True),
        ("#### (B)", "B", True),
        ("#### C", "B", False),
        ("#### Paris", "B", None),
        ("#### the river Seine", "Seine", None),
        ("It is Paris.", "Paris", None),
    ],
)
def test_a_trace_is_right_wrong_or_unreadable(text, gold, verdict):
    assert trace_verdicts([(text, gold)]) == [verdict]


def test_other_answers_than_numbers_and_words_are_compared_as_mathematics():
    pairs = [("\\boxed{\\frac{1}{2}}", "0.5"), ("\\boxed{x+1}", "$1+x$"), ("\\boxed{x-1}", "$1+x$")]
    assert trace_verdicts(pairs) == [True, True, False]


def test_beside_options_a_value_may_stand_for_a_letter():
    assert trace_verdicts([("#### 12", "3"), ("#### 3", "3")], options=[True, True]) == [None, True]


@pytest.mark.parametrize(
    ("line", "answer"),
    [("A: $1,200", "1,200"), ("10 - 3", None), ("= 3/4 of it", "3/4"), ("x = 5 and y = 6", "6"), ("1.", "1")],
)
def test_the_answer_of_a_last_line(line, answer):
    assert last_line_answer(f"First 1, then 2.\n{line}")[0] == answer


@pytest.mark.parametrize(
    ("line", "gold"),
    [
        ("768 / 50 = 15.36 minutes, which rounds down to 15", "15"),
        ("6/3 = .5 hours, which is 30 minutes.", "30"),
        ("12 / 2 = 6. It takes Jerry 3 weeks to get down to 6 sodas.", "3"),
        (".50 - .25 = $0.25 a can", "25"),
        ("12/15 = .8", "80"),
        ("$80 000 + $16 000 = $96 000", "96000"),
    ],
)
def test_a_last_line_that_may_mean_another_value_does_not_make_a_trace_wrong(line, gold):
    assert trace_verdicts([(line, gold)]) == [None]
    assert trace_verdicts([("7 + 7 = 14 cups for 2 cakes", "14"), ("7 + 7 = 14 cups", "15")]) == [True, False]


@pytest.mark.parametrize("sample", [EASY_SAMPLE, DISTILLATION_SAMPLE, WARM_START, EXPERT])
@pytest.mark.slow
def test_every_trace_that_a_default_trains_on_is_right(sample):
    rows = embedded_rows(sample, "train")
    pairs = [(text, row["answer"]) for row in rows for text in row["rationales"]]
    # A solution may announce what it has calculated otherwise (GSM8K has some mistakes).
    pairs = [(trace_text(text, answer), answer) for text, answer in pairs]
    assert trace_verdicts(pairs) == [True] * len(pairs)
    assert all(text.endswith(f"#### {answer}") for text, answer in pairs)
