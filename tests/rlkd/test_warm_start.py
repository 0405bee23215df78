import json
import re
from fractions import Fraction
from importlib.resources import files

import pytest

from rlkd.answers import extract_answer, is_correct
from rlkd.data import load_rows, sample_rows, split_half
from rlkd.errors import UsageError
from rlkd.models import ModelUnavailable, embedded_model, shipped_adapters
from rlkd.warm_start import LONGEST_SOLUTION, mawps_rows, short_rows, warm_start_rows, work_out


def words(question: str) -> str:
    return " ".join(re.findall(r"[a-z0-9.]+", question.lower()))


def without_numbers(question: str) -> str:
    return re.sub(r"\d[\d.]*", "#", words(question))


@pytest.fixture(scope="module")
def mix():
    return warm_start_rows()


# Equations


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
def test_an_equation_is_worked_out_a_calculation_a_line(equation, numbers, lines, answer) -> None:
    assert work_out(equation, numbers) == (lines, answer)


@pytest.mark.parametrize(
    ("equation", "numbers", "message"),
    [
        ("+ number0", "1", "an operand is missing"),
        ("+ number0 number1 number1", "1 2", "'number1' is left over"),
        ("+ number0 number2", "1 2", "'number2' is no number"),
        ("% number0 number1", "1 2", "'%' is no number and no operation"),
        ("/ number0 number1", "1 0", "divides by zero"),
        ("/ number0 number1", "10 3", "10/3 has more than 4 decimals"),
    ],
)
def test_an_equation_that_cannot_be_worked_out_says_why(equation, numbers, message) -> None:
    with pytest.raises(ValueError, match=message):
        work_out(equation, numbers)


# The rows


def test_the_mix_has_the_rows_that_its_provenance_file_names(mix) -> None:
    sources = [row["id"].rpartition("-")[0] for row in mix]
    assert {name: sources.count(name) for name in set(sources)} == {"mawps-train": 1232, "gsm8k-train": 1623}
    assert len(short_rows()) == 1339
    assert len({row["id"] for row in mix}) == len({words(row["question"]) for row in mix}) == len(mix)


def test_every_line_of_easy_rows_is_true_and_the_last_one_gives_the_answer() -> None:
    for row in [*mawps_rows("train"), *mawps_rows("test")]:
        for line in row["rationales"][0].split("\n"):
            left, sign, right, equals, result = line.split(" ")
            found = {
                "+": lambda a, b: a + b,
                "-": lambda a, b: a - b,
                "*": lambda a, b: a * b,
                "/": lambda a, b: a / b,
            }[sign](Fraction(left), Fraction(right))
            assert (equals, Fraction(result)) == ("=", found), row["id"]
        assert result == row["answer"], row["id"]


def test_no_question_is_of_the_reinforcement_half_or_a_test_question(mix) -> None:
    taken = {words(row["question"]) for row in [*sample_rows("rl"), *sample_rows("test"), *mawps_rows("test")]}
    for row in mix:
        assert words(row["question"]) not in taken, row["id"]
        if row["id"].startswith("gsm8k"):
            assert split_half(row["question"]) == "gsrm", row["id"]


def test_no_easy_question_is_a_test_question_with_other_numbers() -> None:
    taken = {without_numbers(row["question"]) for row in mawps_rows("test")}
    assert not taken & {without_numbers(row["question"]) for row in mawps_rows("train")}


def test_further_rows_have_one_to_three_lines_and_are_short(mix) -> None:
    for row in short_rows():
        assert 1 <= len(row["rationales"][0].split("\n")) <= 3, row["id"]
    assert max(len(row["rationales"][0]) for row in mix) <= LONGEST_SOLUTION


def test_rationales_hold_no_calculator_marks_and_leave_the_answer_to_the_recipe(mix) -> None:
    for row in mix:
        (rationale,) = row["rationales"]
        assert "<<" not in rationale
        assert extract_answer(rationale) is None, row["id"]
        assert is_correct(f"{rationale}\n#### {row['answer']}", row["answer"]), row["id"]


def test_both_sets_are_read_by_name() -> None:
    assert [row["id"] for row in load_rows("warm-start")] == [row["id"] for row in warm_start_rows()]
    assert len(load_rows("mawps-sample")) == 1232
    assert len(load_rows("mawps-sample", split="test")) == 142


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("warm-start", "test", "expected 'train'; measure on"), ("mawps-sample", "rl", "expected 'train' or 'test'")],
)
def test_a_split_that_is_not_there_is_refused(name, split, message) -> None:
    with pytest.raises(UsageError, match=message):
        load_rows(name, split=split)


# The adapter that was trained on them


def test_the_card_of_the_shipped_adapter_lists_these_rows(mix) -> None:
    listed = json.loads(files("rlkd.assets").joinpath("adapters/embedded-warm/rows.json").read_text())
    assert [f"{source}-{number}" for source in listed for number in listed[source]] == [row["id"] for row in mix]


@pytest.mark.slow
def test_the_shipped_student_answers_an_easy_question_in_lines_and_ends() -> None:
    from rlkd.data import build_prompt
    from rlkd.engines import Sampling, open_engine, run

    assert "embedded-warm" in shipped_adapters()
    try:
        embedded_model()
    except ModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")
    asked = (
        'Solve the problem in short lines, one calculation a line. The last line is "####" and the number.',
        "Sean has 9 apples. Susan gives Sean 8 more. How many apples does Sean have in all?",
    )
    prompt = build_prompt(asked[1], asked[0])
    (answer,) = run(open_engine("transformers:embedded-warm").generate([prompt], Sampling(max_new_tokens=48)))
    assert answer.finish_reason == "stop"
    assert answer.text.endswith("\n#### 17")
