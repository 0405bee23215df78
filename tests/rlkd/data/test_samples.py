import hashlib
import json
import re
from fractions import Fraction
from importlib.resources import files

import pytest

from rlkd.answers import extract_answer, is_correct, number
from rlkd.data.arithmetic import chain_rows
from rlkd.data.correctness import trace_verdicts
from rlkd.data.loading import load_rows
from rlkd.data.rows import split_half
from rlkd.data.samples import (
    FEW_SHOT_EXAMPLES,
    LONGEST_SOLUTION,
    expert_rows,
    few_shot_examples,
    mawps_rows,
    sample_rows,
    short_rows,
    warm_start_rows,
)
from rlkd.errors import UsageError
from rlkd.models import ModelUnavailable, embedded_model, shipped_adapters

PINNED_FIRST = {"rl": ["39", "54", "56"], "gsrm": ["24", "63", "80"]}
PINNED_DIGEST = "0f37f2631d394c64"


def words(question: str) -> str:
    return " ".join(re.findall(r"[a-z0-9.]+", question.lower()))


def without_numbers(question: str) -> str:
    return re.sub(r"\d[\d.]*", "#", words(question))


@pytest.fixture(scope="module")
def mix():
    return warm_start_rows()


@pytest.fixture(scope="module")
def lessons():
    """The training rows of the expert."""
    return expert_rows()


# GSM8K


@pytest.fixture(scope="module")
def halves():
    return {part: sample_rows(part) for part in ("rl", "gsrm", "test")}


def test_the_sample_has_the_rows_that_its_provenance_file_names(halves):
    assert {part: len(rows) for part, rows in halves.items()} == {"rl": 366, "gsrm": 382, "test": 200}


def test_the_split_is_that_of_the_trained_structure_models(halves):
    # Pinned: with another split, a structure model would judge questions that it has seen.
    first = {part: [row["id"].rpartition("-")[2] for row in halves[part][:3]] for part in ("rl", "gsrm")}
    assert first == PINNED_FIRST
    ids = "\n".join(row["id"] for row in halves["rl"])
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == PINNED_DIGEST


def test_no_question_is_in_two_parts(halves):
    questions = [{" ".join(row["question"].lower().split()) for row in rows} for rows in halves.values()]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 948


def test_the_half_of_a_question_does_not_depend_on_case_or_spaces():
    question = sample_rows("rl")[0]["question"]
    assert split_half(question) == split_half("  " + question.upper().replace(" ", "\n ")) == "rl"


def test_every_row_of_the_sample_has_one_rationale_and_its_structure(halves):
    for rows in halves.values():
        for row in rows:
            [rationale], [steps] = row["rationales"], row["structures"]
            assert len(steps) == len(rationale.splitlines()) > 0, row["id"]
            assert number(row["answer"]) is not None, row["id"]


def test_a_rationale_is_the_socratic_solution_without_its_sub_questions(halves, root):
    socratic = {}
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        for line in (root / "rlkd" / "assets" / name).read_text(encoding="utf-8").rstrip("\n").split("\n"):
            record = json.loads(line)
            socratic[record["id"]] = record["socratic"]
    for rows in halves.values():
        for row in rows:
            *lines, last = socratic[row["id"]].split("\n")
            sub_questions = [line.partition(" ** ")[0] for line in lines]
            assert row["rationales"][0].split("\n") == [line.partition(" ** ")[2] for line in lines]
            assert [step["meta"] for step in row["structures"][0]] == [question.strip() for question in sub_questions]
            assert " ** " not in row["rationales"][0]
            assert last == f"#### {row['answer']}"


def test_an_unknown_part_of_the_sample_is_refused():
    with pytest.raises(UsageError, match="part 'validation': expected 'rl', 'gsrm' or 'test'"):
        load_rows("gsm8k-sample", split="validation")


def test_the_training_split_of_the_sample_is_the_half_for_reinforcement_learning(halves):
    assert [row["id"] for row in load_rows("gsm8k-sample")] == [row["id"] for row in halves["rl"]]


def test_few_shot_examples_come_from_the_half_that_is_never_trained_on_by_rl(halves):
    shown = {question for question, _ in few_shot_examples(len(FEW_SHOT_EXAMPLES))}
    assert len(shown) == len(FEW_SHOT_EXAMPLES)
    assert shown <= {row["question"] for row in halves["gsrm"]}
    assert not shown & {row["question"] for part in ("rl", "test") for row in halves[part]}


def test_few_shot_examples_have_the_form_in_which_the_student_should_answer():
    for _, solution in few_shot_examples(2):
        assert "<<" not in solution
        assert solution.splitlines()[-1].startswith("#### ")


@pytest.mark.parametrize("count", [-1, 3])
def test_an_impossible_number_of_few_shot_examples_is_an_error(count):
    with pytest.raises(UsageError, match=rf"few_shot_examples={count}: there are 2; give 0 to 2"):
        few_shot_examples(count)


# The warm start


def test_the_mix_has_the_rows_that_its_provenance_file_names(mix) -> None:
    sources = [row["id"].rpartition("-")[0] for row in mix]
    assert {name: sources.count(name) for name in set(sources)} == {"mawps-train": 1232, "gsm8k-train": 1623}
    assert len(short_rows()) == 1339
    assert len({row["id"] for row in mix}) == len({words(row["question"]) for row in mix}) == len(mix)


def test_every_line_of_easy_rows_is_true_and_the_last_one_has_the_answer(lessons) -> None:
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


def test_short_rows_have_one_to_three_lines(mix) -> None:
    for row in short_rows():
        assert 1 <= len(row["rationales"][0].split("\n")) <= 3, row["id"]
    assert max(len(row["rationales"][0].partition("\n####")[0]) for row in mix) <= LONGEST_SOLUTION


def test_rationales_have_no_calculator_marks_and_announce_only_what_their_last_line_hides(mix) -> None:
    announcing = []
    for row in mix:
        (rationale,) = row["rationales"]
        assert "<<" not in rationale
        if extract_answer(rationale) is not None:
            announcing.append(row["id"])
            rationale = rationale.rpartition("\n")[0]
            assert trace_verdicts([(rationale, row["answer"])]) != [True]
        assert is_correct(f"{rationale}\n#### {row['answer']}", row["answer"]), row["id"]
    assert len(announcing) == 6


def test_both_samples_load_by_name() -> None:
    assert [row["id"] for row in load_rows("warm-start")] == [row["id"] for row in warm_start_rows()]
    assert len(load_rows("mawps-sample")) == 1232
    assert len(load_rows("mawps-sample", split="test")) == 142


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("warm-start", "test", "expected 'train'; evaluate on"),
        ("expert", "test", "expected 'train'; evaluate on"),
        ("mawps-sample", "rl", "expected 'train' or 'test'"),
        ("distillation-sample", "rl", "expected 'train' or 'test'"),
    ],
)
def test_an_unknown_split_is_refused(name, split, message) -> None:
    with pytest.raises(UsageError, match=message):
        load_rows(name, split=split)


# The expert's rows


def test_the_expert_has_the_numbers_of_rows_in_its_card_and_no_duplicates(lessons) -> None:
    kinds = ["variant" if "-v" in row["id"] else row["id"].split("-")[0] for row in lessons]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "mawps": 596,
        "variant": 1188,
        "chain": 900,
        "gsm8k": 150,
    }
    assert len({row["id"] for row in lessons}) == len(lessons)


def test_rows_for_distillation_and_tests_are_not_among_the_experts_rows(lessons) -> None:
    asked = {words(row["question"]) for row in lessons}
    kept = [row for row in mawps_rows("train") if split_half(row["question"]) == "rl"]
    kept += [*sample_rows("rl"), *chain_rows("rl", 600)]
    tests = [*sample_rows("test"), *mawps_rows("test"), *chain_rows("test")]
    assert not asked & {words(row["question"]) for row in [*kept, *tests]}
    # A variant with other numbers is not a new problem, so for tests the wording counts.
    wordings = {without_numbers(row["question"]) for row in mawps_rows("test")}
    assert not wordings & {without_numbers(row["question"]) for row in lessons}


def test_rows_with_other_numbers_come_from_the_experts_half(lessons) -> None:
    halves = {row["id"]: split_half(row["question"]) for row in mawps_rows("train")}
    sources = {row["id"].partition("-v")[0] for row in lessons if row["id"].startswith("mawps")}
    assert {halves[source] for source in sources} == {"gsrm"}


def test_the_experts_rows_are_the_same_in_every_process(lessons) -> None:
    assert expert_rows() == lessons
    digest = hashlib.sha256(json.dumps(lessons).encode()).hexdigest()
    # The rows that the shipped adapter was trained on. If this changes, the adapter must be trained again.
    assert digest == "63fe2824aa90379c00351539de328376533520f493979a16d71b7c3d8905500f"


# Distillation


def test_no_row_of_the_expert_beyond_the_warm_start_is_distilled_or_tested(lessons) -> None:
    asked = {words(row["question"]) for row in lessons}
    train, test = (load_rows("distillation-sample", split=split) for split in ("train", "test"))
    assert not asked & {words(row["question"]) for row in [*train, *test]}
    assert not {words(row["question"]) for row in train} & {words(row["question"]) for row in test}


def test_any_prefix_of_the_distillation_rows_has_problems_and_chains() -> None:
    for split, sizes in (("train", {"mawps": 636, "chain": 600}), ("test", {"mawps": 142, "chain": 150})):
        kinds = [row["id"].split("-")[0] for row in load_rows("distillation-sample", split=split)]
        assert kinds[:4] == ["mawps", "chain"] * 2
        assert {kind: kinds.count(kind) for kind in set(kinds)} == sizes


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
def test_the_shipped_expert_solves_chains_that_nothing_was_trained_on() -> None:
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
    assert sum(right) >= 6  # ten when measured; the student it was trained from solves none
