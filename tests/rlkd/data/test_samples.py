import hashlib
import json
import re
from fractions import Fraction
from importlib.resources import files

import pytest

from rlkd.answers import extract_answer, is_correct
from rlkd.data.loading import load_rows
from rlkd.data.rows import split_half
from rlkd.data.samples import (
    CHAIN_SPLITS,
    LONGEST_SOLUTION,
    chain_rows,
    expert_rows,
    mawps_rows,
    sample_rows,
    short_rows,
    warm_start_rows,
    with_other_numbers,
    work_out,
)
from rlkd.errors import UsageError
from rlkd.models import ModelUnavailable, embedded_model, shipped_adapters


def words(question: str) -> str:
    return " ".join(re.findall(r"[a-z0-9.]+", question.lower()))


def without_numbers(question: str) -> str:
    return re.sub(r"\d[\d.]*", "#", words(question))


@pytest.fixture(scope="module")
def mix():
    return warm_start_rows()


@pytest.fixture(scope="module")
def lessons():
    """What the expert is trained on."""
    return expert_rows()


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


def test_every_line_of_easy_rows_is_true_and_the_last_one_gives_the_answer(lessons) -> None:
    made = [row for row in lessons if not row["id"].startswith("gsm8k")]
    for row in [*mawps_rows("train"), *mawps_rows("test"), *chain_rows("test"), *made]:
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
    [
        ("warm-start", "test", "expected 'train'; measure on"),
        ("expert", "test", "expected 'train'; measure on"),
        ("mawps-sample", "rl", "expected 'train' or 'test'"),
        ("distillation-sample", "rl", "expected 'train' or 'test'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(name, split, message) -> None:
    with pytest.raises(UsageError, match=message):
        load_rows(name, split=split)


# The expert's rows


def test_the_expert_learns_from_as_many_rows_as_its_card_says_and_nothing_twice(lessons) -> None:
    kinds = ["variant" if "-v" in row["id"] else row["id"].split("-")[0] for row in lessons]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "mawps": 596,
        "variant": 1188,
        "chain": 900,
        "gsm8k": 150,
    }
    assert len({row["id"] for row in lessons}) == len(lessons)


def test_what_is_kept_for_distillation_and_for_tests_is_not_among_the_experts_rows(lessons) -> None:
    asked = {words(row["question"]) for row in lessons}
    kept = [row for row in mawps_rows("train") if split_half(row["question"]) == "rl"]
    kept += [*sample_rows("rl"), *chain_rows("rl", 600)]
    tests = [*sample_rows("test"), *mawps_rows("test"), *chain_rows("test")]
    assert not asked & {words(row["question"]) for row in [*kept, *tests]}
    # A problem with other numbers is no new problem, so for tests its wording counts.
    wordings = {without_numbers(row["question"]) for row in mawps_rows("test")}
    assert not wordings & {without_numbers(row["question"]) for row in lessons}


def test_rows_with_other_numbers_come_from_the_experts_half(lessons) -> None:
    halves = {row["id"]: split_half(row["question"]) for row in mawps_rows("train")}
    sources = {row["id"].partition("-v")[0] for row in lessons if row["id"].startswith("mawps")}
    assert {halves[source] for source in sources} == {"gsrm"}


def test_the_experts_rows_are_the_same_in_every_process(lessons) -> None:
    assert expert_rows() == lessons
    digest = hashlib.sha256(json.dumps(lessons).encode()).hexdigest()
    # Those which the shipped adapter was trained on. If this changes, the adapter has to be trained again.
    assert digest == "63fe2824aa90379c00351539de328376533520f493979a16d71b7c3d8905500f"


# What is distilled from the expert


def test_no_row_of_the_expert_beyond_the_warm_start_is_distilled_or_tested(lessons) -> None:
    asked = {words(row["question"]) for row in lessons}
    train, test = (load_rows("distillation-sample", split=split) for split in ("train", "test"))
    assert not asked & {words(row["question"]) for row in [*train, *test]}
    assert not {words(row["question"]) for row in train} & {words(row["question"]) for row in test}


def test_any_beginning_of_the_distillation_rows_holds_problems_and_chains() -> None:
    for split, sizes in (("train", {"mawps": 636, "chain": 600}), ("test", {"mawps": 142, "chain": 150})):
        kinds = [row["id"].split("-")[0] for row in load_rows("distillation-sample", split=split)]
        assert kinds[:4] == ["mawps", "chain"] * 2
        assert {kind: kinds.count(kind) for kind in set(kinds)} == sizes


# Other numbers

APPLES = {
    "id": "a",
    "question": "Ann has 12 apples and 1 pear. She eats 5 of the 12 apples. How many apples are left?",
    "equation": "- number0 number2",
    "numbers": "12 1 5 12",
}


def test_other_numbers_stand_in_question_and_record_alike_and_equal_ones_stay_equal() -> None:
    for i in range(50):
        changed = with_other_numbers(APPLES, f"a-v{i}")
        before, one, eaten, again = changed["numbers"].split()
        assert before == again != eaten
        assert one == "1"
        assert (before, eaten) != ("12", "5")
        assert re.findall(r"\d+", changed["question"]) == changed["numbers"].split()
        assert without_numbers(changed["question"]) == without_numbers(APPLES["question"])
        assert (changed["id"], changed["equation"]) == (f"a-v{i}", APPLES["equation"])
        assert int(before) > int(eaten)


def test_the_name_is_the_seed_of_other_numbers() -> None:
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
def test_other_numbers_keep_the_kind_of_all_values(equation, numbers, whole) -> None:
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
def test_a_problem_whose_numbers_cannot_be_changed_gives_none(question, numbers) -> None:
    record = {"id": "a", "question": question, "equation": "+ number0 number1", "numbers": numbers}
    assert with_other_numbers(record, "a-v1") is None


# Chains


@pytest.mark.parametrize("split", CHAIN_SPLITS)
def test_a_chain_says_in_words_what_its_lines_calculate(split) -> None:
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


def test_no_chain_is_in_two_splits_and_more_rows_begin_with_the_same() -> None:
    questions = {split: [row["question"] for row in chain_rows(split, 400)] for split in CHAIN_SPLITS}
    assert len({question for asked in questions.values() for question in asked}) == 3 * 400
    assert all([row["question"] for row in chain_rows(split, 20)] == asked[:20] for split, asked in questions.items())
    assert {split_half(question) for question in questions["rl"]} == {"rl"}
    assert {split_half(question) for question in questions["gsrm"]} == {"gsrm"}


def test_a_split_of_chains_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'train' of the arithmetic chains: expected one of gsrm, rl, test"):
        chain_rows("train")


# The adapters that were trained on these rows


def test_the_card_of_the_shipped_adapter_lists_these_rows(mix) -> None:
    listed = json.loads(files("rlkd.assets").joinpath("adapters/embedded-warm/rows.json").read_text())
    assert [f"{source}-{number}" for source in listed for number in listed[source]] == [row["id"] for row in mix]


def test_the_card_of_the_expert_lists_its_rows(lessons) -> None:
    listed = json.loads(files("rlkd.assets").joinpath("adapters/embedded-expert/rows.json").read_text())
    assert [f"{source}-{number}" for source in listed for number in listed[source]] == [row["id"] for row in lessons]


@pytest.mark.slow
def test_the_shipped_student_answers_an_easy_question_in_lines_and_ends() -> None:
    from rlkd.data.rows import build_prompt
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


@pytest.mark.slow
def test_the_shipped_expert_works_out_chains_that_nothing_was_trained_on() -> None:
    from rlkd.data.rows import build_prompt
    from rlkd.engines import Sampling, open_engine, run

    try:
        embedded_model()
    except ModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")
    rows = chain_rows("test", 24)
    system = 'Solve the problem in short lines, one calculation a line. The last line is "####" and the number.'
    prompts = [build_prompt(row["question"], system) for row in rows]
    answers = run(open_engine("transformers:embedded-expert").generate(prompts, Sampling(max_new_tokens=64)))
    assert all(answer.finish_reason == "stop" for answer in answers)
    right = [
        answer.text == f"{row['rationales'][0]}\n#### {row['answer']}"
        for row, answer in zip(rows, answers, strict=True)
    ]
    assert sum(right) >= 6  # ten as measured; the student it was made of has none
