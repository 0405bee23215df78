import pytest

from tests.helpers.dry_runs import shown_by
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.rows import (
    answer_counts,
    field_list,
    question,
    rationale_counts,
    read_facts,
    repeated_questions,
    show_rows,
    spread,
    unreadable_golds,
)

ROWS = [
    {"id": "a", "question": "Ann has 3 eggs. How many?", "answer": "3", "rationales": ["3.", "Three."], "level": 1},
    {"id": "b", "question": "ann has 3 eggs! How many", "answer": "3", "rationales": ["3."], "level": None},
    {"id": "c", "prompt": [{"role": "user", "content": "2 + 3?"}], "answer": None, "rationales": []},
    {"id": "d", "prompt": "2 * 3?", "answer": "6", "rationales": [], "structures": [[{"question": "q"}]]},
]


def test_fields_and_columns_for_rewards_are_told_apart():
    assert field_list(read_facts(ROWS)) == (
        "id, prompt (2 of 4 rows), question (2 of 4 rows), answer (3 of 4 rows), rationales (2 of 4 rows), structures "
        "(1 of 4 rows); passed to the rewards: level (1 of 4 rows)"
    )


def test_rationales_and_structures_are_counted():
    counts = "2 of 4 rows, 1.5 each; 1 rows have several; 1 rows have their structures"
    assert rationale_counts(read_facts(ROWS)) == counts
    assert rationale_counts(read_facts(ROWS[2:3])) == "no row has one"


@pytest.mark.parametrize(
    ("golds", "text"),
    [
        (["3", "1/2", r"\frac{1}{2}"], "3 of 3 rows; all can be read"),
        ([None], "none of 1 rows has one"),
        (["3", ""], "2 of 2 rows; 1 of 2 cannot be read, such as '' (docs/answers.md)"),
    ],
)
def test_gold_answers_are_parsed_and_counted(golds, text):
    assert answer_counts(read_facts([{"question": "q", "answer": gold} for gold in golds])) == text
    assert unreadable_golds(["  ", "7"]) == ["  "]


def test_questions_of_the_same_words_are_repeated_and_signs_count():
    assert list(repeated_questions(read_facts(ROWS)).values()) == [["a", "b"]]
    assert question(ROWS[2]) == "2 + 3?"
    assert question({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}) == "Hi"


def test_rows_of_an_evaluation_are_called_test_rows(capsys):
    run = DryRun()
    show_rows(run, ROWS, source="test.jsonl", joins=False, split="test")
    assert "test 4 of test.jsonl" in " ".join(capsys.readouterr().out.split())
    assert run.warnings == ["1 of 4 test rows have the question of an earlier row (same words)"]


def test_rows_are_shown_with_duplicates_within_and_between(capsys):
    run = DryRun()
    long = "a b c d e f g h i j k l m n o p"
    train = [*ROWS, {"id": "e", "question": f"{long} q?", "answer": "1", "rationales": []}]
    test = [{"id": "t", "question": "2 + 3 ?", "answer": "5"}, {"id": "u", "question": f"{long} r?", "answer": "2"}]
    show_rows(run, train, test, source="mine.jsonl", tests="theirs")
    shown = " ".join(capsys.readouterr().out.split())
    assert "train 5 of mine.jsonl" in shown
    assert "1 rows have the question of an earlier row, such as a and b" in shown
    assert "test 2 of theirs; answers: 2 of 2 rows; all can be read" in shown
    assert "1 of 2 test questions are training questions, such as t and c" in shown
    assert "1 others share 13 words in a row with one" in shown
    assert len(run.warnings) == 2
    assert run.warnings[0].endswith(
        "(same words). Traces of one question in several rows are no branches: join_questions: true makes one row of "
        "them"
    )


@pytest.mark.parametrize(
    ("rows", "joins"), [(ROWS[:2], False), ([{**row, "rationales": []} for row in ROWS[:2]], True)]
)
def test_rows_that_cannot_be_joined_to_branches_are_only_counted(rows, joins):
    run = DryRun()
    show_rows(run, rows, source="mine", joins=joins)
    assert run.warnings == ["1 of 2 training rows have the question of an earlier row (same words)"]


def test_rows_without_duplicates_say_so(capsys):
    shown = shown_by(lambda run: show_rows(run, ROWS[1:], ROWS[:1], source="mine", tests="mine"), capsys)
    assert "no question occurs twice" in shown
    shown = shown_by(lambda run: show_rows(run, ROWS[:1], ROWS[2:3], source="mine", tests="mine"), capsys)
    assert "no test question is a training question" in shown


def test_a_sample_is_spread_over_the_rows():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread([1, 2], 4) == [1, 2]
