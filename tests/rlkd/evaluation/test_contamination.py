"""Test questions in training rows: planted ones are found, neighbours with other numbers are not."""

import pytest

from rlkd.data.loading import load_rows
from rlkd.evaluation.contamination import check_contamination, overlaps, words

LONG = "A baker bakes four trays of twelve rolls and sells thirty rolls at two dollars each before noon."


def test_a_run_of_thirteen_words_counts_whatever_the_case_and_the_signs() -> None:
    train = f"Solve: {LONG.upper().replace(' ', ', ')} How many are left?"
    [pair] = overlaps([("t", LONG)], [("a", ["nothing here", train])])
    assert (pair.test, pair.train, pair.share) == ("t", "a", 1.0)
    assert pair.text == " ".join(words(LONG)[:13])


def test_twelve_words_in_common_are_not_enough_and_thirteen_are() -> None:
    own = words(LONG)
    assert not overlaps([("t", LONG)], [("a", [" ".join(own[:12])])])
    [pair] = overlaps([("t", LONG)], [("a", [" ".join(own[:13])])])
    assert pair.share == pytest.approx(1 / (len(own) - 12))


def test_a_short_question_counts_as_a_whole_and_with_other_numbers_it_is_another() -> None:
    tests = [("t", "What is 3 and 6 together?")]
    assert [pair.train for pair in overlaps(tests, [("a", ["So: what is 3 and 6 together?"])])] == ["a"]
    assert not overlaps(tests, [("a", ["What is 3 and 60 together?"]), ("b", ["What is 3 and 6?"])])


def test_unicode_and_groups_of_digits_do_not_hide_a_question() -> None:
    tests = [("t", "The caf\u00e9 sells 1,250 cups. How many is that in two days?")]
    written = "the cafe\u0301 \uff53ells 1250 cups how many is that in two days"
    assert [pair.share for pair in overlaps(tests, [("a", [written])])] == [1.0]


def test_the_signs_of_arithmetic_tell_short_questions_apart() -> None:
    tests = [("t", "What is 12 - 4?")]
    same = ("what is 12 \u2212 4", "1) What is 12-4 = ?")
    other = ("What is 12 + 4?", "What is 12, 4?", "What is 12/4?")
    assert [pair.train for pair in overlaps(tests, [(text, [text]) for text in (*same, *other)])] == list(same)
    assert overlaps([("t", "Who is the well-known man?")], [("a", ["who is the well known man"])])


def test_pairs_are_in_the_order_of_the_test_rows_the_closest_first() -> None:
    own = words(LONG)
    trainings = [("partly", [" ".join(own[:14])]), ("fully", [LONG]), ("other", ["What is 2 and 2?"])]
    found = overlaps([("t1", "What is 2 and 2?"), ("t2", LONG)], trainings)
    assert [(pair.test, pair.train) for pair in found] == [("t1", "other"), ("t2", "fully"), ("t2", "partly")]


def test_planted_test_questions_are_found_in_questions_messages_and_rationales() -> None:
    test_rows = load_rows("gsm8k-sample", split="test")[:20]
    train_rows = load_rows("gsm8k-sample")[:60]
    assert not check_contamination(test_rows, train_rows, "train").pairs
    train_rows[5] = {"id": "question", "question": test_rows[3]["question"], "rationales": []}
    train_rows[6] = {"id": "prompt", "prompt": [{"role": "user", "content": test_rows[4]["question"]}]}
    train_rows[7] = train_rows[7] | {"id": "rationale", "rationales": [f"We solve: {test_rows[5]['question']}"]}
    found = check_contamination(test_rows, train_rows, "train")
    assert [(pair.test, pair.train) for pair in found.pairs] == [
        (test_rows[i]["id"], name) for i, name in ((3, "question"), (4, "prompt"), (5, "rationale"))
    ]
    assert found.share == 3 / 20
    assert found.to_dict()["contaminated"] == 3
