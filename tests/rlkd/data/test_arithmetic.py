import re
from fractions import Fraction

import pytest

from rlkd.data.arithmetic import CHAIN_SPLITS, chain_rows, with_other_numbers, work_out
from rlkd.data.rows import split_half
from rlkd.errors import UsageError


@pytest.mark.parametrize(
    ("equation", "numbers", "lines", "answer"),
    [
        ("+ number0 number1", "9 8 18", ["9 + 8 = 17"], "17"),
        ("- + number0 number1 number2", "24 39 4", ["24 + 39 = 63", "63 - 4 = 59"], "59"),
        ("* number0 + number1 number2", "8 4 6", ["4 + 6 = 10", "8 * 10 = 80"], "80"),
        ("- * number0 number1 / number2 number3", "3 4 8 2", ["3 * 4 = 12", "8 / 2 = 4", "12 - 4 = 8"], "8"),
        ("* number0 number1", "28.3 5", ["28.3 * 5 = 141.5"], "141.5"),
        ("+ number0 number1", "0.1 0.2", ["0.1 + 0.2 = 0.3"], "0.3"),
        ("- number0 number1", "3 5", ["3 - 5 = -2"], "-2"),
        ("* number0 0.01", "50", ["50 * 0.01 = 0.5"], "0.5"),
        ("number0", "7", [], "7"),
    ],
)
def test_an_equation_is_solved_with_one_calculation_per_line(equation, numbers, lines, answer) -> None:
    assert work_out(equation, numbers) == (lines, answer)


@pytest.mark.parametrize(
    ("equation", "numbers", "message"),
    [
        ("+ number0", "1", "an operand is missing"),
        ("+ number0 number1 number1", "1 2", "'number1' is left over"),
        ("+ number0 number2", "1 2", "'number2' is neither a number"),
        ("% number0 number1", "1 2", "'%' is neither a number nor an operation"),
        ("/ number0 number1", "1 0", "divides by zero"),
        ("/ number0 number1", "10 3", "10/3 has more than 4 decimals"),
    ],
)
def test_an_unsolvable_equation_is_an_error_with_the_reason(equation, numbers, message) -> None:
    with pytest.raises(ValueError, match=message):
        work_out(equation, numbers)


APPLES = {
    "id": "a",
    "question": "Ann has 12 apples and 1 pear. She eats 5 of the 12 apples. How many apples are left?",
    "equation": "- number0 number2",
    "numbers": "12 1 5 12",
}


def test_question_and_record_get_the_same_numbers_and_equal_ones_stay_equal() -> None:
    for i in range(50):
        changed = with_other_numbers(APPLES, f"a-v{i}")
        before, one, eaten, again = changed["numbers"].split()
        assert before == again != eaten
        assert one == "1"
        assert (before, eaten) != ("12", "5")
        assert re.findall(r"\d+", changed["question"]) == changed["numbers"].split()
        assert re.sub(r"\d+", "#", changed["question"]) == re.sub(r"\d+", "#", APPLES["question"])
        assert (changed["id"], changed["equation"]) == (f"a-v{i}", APPLES["equation"])
        assert int(before) > int(eaten)


def test_the_name_is_the_seed_of_a_variant() -> None:
    assert with_other_numbers(APPLES, "x") == with_other_numbers(APPLES, "x")
    assert len({with_other_numbers(APPLES, f"x{i}")["numbers"] for i in range(20)}) > 10


@pytest.mark.parametrize(
    ("equation", "numbers", "whole"),
    [
        ("/ number0 number1", "24 6", True),
        ("/ - number0 number1 number2", "30 6 8", True),
        ("* number0 number1", "2.5 3", False),
    ],
)
def test_a_variant_keeps_values_positive_and_whole(equation, numbers, whole) -> None:
    question = " and ".join(numbers.split()) + "?"
    for i in range(30):
        changed = with_other_numbers(
            {"id": "a", "question": question, "equation": equation, "numbers": numbers}, f"kind {i}"
        )
        lines, _ = work_out(equation, changed["numbers"])
        values = [Fraction(text) for line in lines for text in line.split() if text[-1].isdigit()]
        assert all(value > 0 and (value * (1 if whole else 10)).denominator == 1 for value in values), lines


@pytest.mark.parametrize(
    ("question", "numbers"), [("He has 3 apples and 4 pears.", "3 5"), ("Of 1 pie 1 is left.", "1 1")]
)
def test_a_problem_whose_numbers_cannot_be_changed_has_no_variant(question, numbers) -> None:
    record = {"id": "a", "question": question, "equation": "+ number0 number1", "numbers": numbers}
    assert with_other_numbers(record, "a-v1") is None


@pytest.mark.parametrize("split", CHAIN_SPLITS)
def test_the_words_of_a_chain_match_its_calculations(split) -> None:
    signs = {"Add": "+", "Put": "+", "Take away": "-", "Subtract": "-", "Multiply": "*", "Take it": "*", "Divide": "/"}
    for row in chain_rows(split):
        first, *sentences, _ = row["question"].split(". ")
        value = first.rpartition(" ")[2]
        lines = row["rationales"][0].split("\n")
        assert 2 <= len(lines) == len(sentences) <= 4
        for sentence, line in zip(sentences, lines, strict=True):
            sign = next((sign for word, sign in signs.items() if sentence.startswith(word)), "/")
            number = re.search(r"\d+", sentence)[0]
            assert line.startswith(f"{value} {sign} {number} = ")
            value = line.rpartition(" ")[2]
            assert 0 <= int(value) <= 200


def test_no_chain_is_in_two_splits_and_longer_lists_begin_with_shorter_ones() -> None:
    questions = {split: [row["question"] for row in chain_rows(split, 400)] for split in CHAIN_SPLITS}
    assert len({question for asked in questions.values() for question in asked}) == 3 * 400
    assert all([row["question"] for row in chain_rows(split, 20)] == asked[:20] for split, asked in questions.items())
    assert {split_half(question) for question in questions["rl"]} == {"rl"}
    assert {split_half(question) for question in questions["gsrm"]} == {"gsrm"}


def test_an_unknown_split_of_chains_is_refused() -> None:
    with pytest.raises(UsageError, match="'train' of the arithmetic chains: expected one of gsrm, rl, test"):
        chain_rows("train")
