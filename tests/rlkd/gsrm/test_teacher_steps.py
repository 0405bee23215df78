"""Parts of a teacher's trace: what is left out, and that a trace that leads straight to its result loses nothing."""

import pytest

from rlkd.data.samples import sample_rows
from rlkd.gsrm.teacher_steps import distinct_steps, path_steps
from rlkd.structure import Step, Structure


def steps(*calculations):
    return Structure(Step(f"{text}?", *text.split(" = ")) for text in calculations)


def questions(structure):
    return [step.question for step in structure]


RIGHT = ("16-3-4 = 9", "9*2 = 18")


def test_equal_calculations_with_equal_results_are_one_step_and_the_first_stays() -> None:
    found = distinct_steps(steps("48/2 = 24", "0.5 * 48 = $24", "48/2 = 25", "48+24 = 72", "48/2 = 24.0"))
    assert questions(found) == ["48/2", "48/2", "48+24"]
    assert [step.answer for step in found] == ["24", "25", "72"]


def test_steps_without_a_calculation_are_one_step_where_their_texts_are_equal() -> None:
    texts = Structure([Step(meta="How many eggs?"), Step(meta="How many ducks?"), Step(meta="How many eggs?")])
    assert [step.meta for step in distinct_steps(texts)] == ["How many eggs?", "How many ducks?"]
    assert distinct_steps(Structure()) == Structure()


@pytest.mark.parametrize("answer", [None, "$18"])
@pytest.mark.parametrize(
    "trace",
    [
        (*RIGHT, *RIGHT, *RIGHT),
        ("16-3 = 12", "12*2 = 24", *RIGHT),
        ("16-3-4 = 9", "3+4 = 7", "9*2 = 18"),
        (*RIGHT, "16-3-4 = 9"),
    ],
    ids=["checked twice", "tried in vain", "a number that nothing uses", "ends with a check"],
)
def test_the_path_is_what_the_final_result_rests_on(trace, answer) -> None:
    assert questions(path_steps(steps(*trace), answer)) == ["16-3-4", "9*2"]


@pytest.mark.parametrize("answer", [None, "18"])
def test_a_calculation_that_was_tried_before_its_source_is_still_the_final_one(answer) -> None:
    assert questions(path_steps(steps("9*2 = 18", "16-3-4 = 9", "9*2 = 18"), answer)) == ["16-3-4", "9*2"]


@pytest.mark.parametrize("check", ["13+3 = 16", "26/2 = 13", "3+4 = 7"])
def test_with_the_answer_a_check_at_the_end_is_left_out(check) -> None:
    trace = steps("16-3 = 13", "13*2 = 26", check)
    assert questions(path_steps(trace, "26 eggs")) == ["16-3", "13*2"]
    assert questions(path_steps(trace))[-1] == check.split(" = ")[0]
    assert path_steps(trace, "27") == path_steps(trace, "many") == path_steps(trace)


@pytest.mark.parametrize(
    ("source", "use", "is_used"),
    [
        ("5-8 = -3", "-3*4 = -12", True),
        ("1/3*100 = 33.33", "33.333*3 = 100", True),
        ("200/3 = 66.6667", "66.66*3 = 200", True),
        ("1/4 = 25%", "0.25*80 = 20", True),
        ("1/4 = 0.25", "25% of 80 = 20", True),
        ("1/4 = 0.25", "25*80 = 2000", False),
        ("5/2 = 2.5", "3*80 = 240", False),
        ("1/3*100 = 33.33", "33*3 = 99", False),
        ("1/4 = 0.25", "0.27*80 = 21.6", False),
    ],
)
def test_numbers_lead_back_to_results_but_for_sign_rounding_and_percent(source, use, is_used) -> None:
    expected = [source.split(" = ")[0]] * is_used + [use.split(" = ")[0]]
    assert questions(path_steps(steps(source, use))) == expected


def test_an_exact_result_goes_before_a_later_rounded_one() -> None:
    trace = steps("100/3 = 33.333", "101/3 = 33.33", "33.333*3 = 100")
    assert questions(path_steps(trace)) == ["100/3", "33.333*3"]


def test_a_check_backwards_keeps_the_path() -> None:
    assert questions(path_steps(steps(*RIGHT, "18/2 = 9"))) == ["16-3-4", "9*2", "18/2"]


def test_a_stated_result_leads_back_to_where_it_was_calculated() -> None:
    trace = Structure([*steps("48/2 = 24", "5*5 = 25"), Step("sold", "clips in May", "24"), *steps("48+24 = 72")])
    assert questions(path_steps(trace)) == ["48/2", "clips in May", "48+24"]


def test_a_step_rests_on_the_latest_of_several_equal_results() -> None:
    assert questions(path_steps(steps("20-11 = 9", "16-3-4 = 9", "9*2 = 18"))) == ["16-3-4", "9*2"]


def test_a_trace_without_a_readable_calculation_keeps_its_distinct_steps() -> None:
    algebra = [Step("a", "D + A", "162"), Step("b", "18A", "1782")]
    assert path_steps(Structure(algebra * 2), "1782") == Structure(algebra)
    assert path_steps(Structure()) == Structure()


def test_most_solutions_of_gsm8k_are_their_own_path() -> None:
    whole = [Structure.from_list(row["structures"][0]) for row in sample_rows("test") if row["structures"]][:100]
    assert len(whole) == 100
    assert sum(path_steps(each) == each for each in whole) >= 80
    lost = [step for each in whole for step in each if step not in path_steps(each).steps]
    assert len(lost) < 0.1 * sum(map(len, whole))
