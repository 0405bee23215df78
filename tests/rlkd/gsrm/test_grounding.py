import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.data.samples import sample_rows
from rlkd.gsrm.augmentation import canonical_calculation
from rlkd.gsrm.grounding import LONGEST, grounded
from rlkd.steps import calculations, strip_calculator_marks
from rlkd.structure import Step, Structure

TEXT = "4 apples cost 1.5 * 4 = 6 dollars. With (10 - 6) / 2 = 2 dollars for each of two pears nothing is left."
APPLES = Step("How much do the apples cost?", "1.5*4", "6")
PEARS = Step("How much does a pear cost?", "(10-6)/2", "2")


def test_a_correct_copy_stays_unchanged():
    assert grounded(Structure([APPLES, PEARS]), TEXT) == Structure([APPLES, PEARS])


def test_numbers_that_are_copied_badly_are_taken_from_the_trace():
    badly = Structure([Step(APPLES.meta, "15*4", "6"), Step(PEARS.meta, "10-6/2", "2")])
    assert grounded(badly, TEXT) == Structure([APPLES, PEARS])


def test_a_calculation_that_the_model_left_out_is_a_step_without_a_sub_question():
    bare = Step(None, "1.5*4", "6")
    assert grounded(Structure([PEARS]), TEXT) == Structure([bare, PEARS])
    assert grounded(Structure([APPLES]), TEXT) == Structure([APPLES, Step(None, "(10-6)/2", "2")])
    assert len(grounded(Structure(), TEXT)) == 2


def test_a_step_that_is_made_up_or_no_calculation_or_comes_twice_goes():
    for surplus in (
        Step("How many apples are there?", "4", "4"),
        Step("What is left over in the end?", "77-50", "27"),
        Step("How much is it once more?", "3*2", "6"),
    ):
        assert grounded(Structure([APPLES, surplus, PEARS]), TEXT) == Structure([APPLES, PEARS])


def test_a_calculation_in_words_stays_if_its_result_is_there():
    text = "Half of the 48 clips are 24. Then 24 + 48 = 72."
    steps = Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "24+48", "72")])
    assert grounded(steps, text) == steps


def test_steps_whose_results_are_in_a_trace_without_calculations_stay():
    steps = Structure([Step("Who is older?", "compare Ann and Bob", "Ann"), Step("By how much?", None, "3")])
    assert grounded(steps, "Ann is older than Bob, by 3 years.") == steps
    assert grounded(steps, "Ann is older than Bob.") == Structure(steps.steps[:1])


def test_a_step_in_words_has_the_position_of_its_result():
    text = "He picks 2*3 = 6 apples. Half of those, 3, are red. So 6-3 = 3 are not."
    model = Structure([Step("How many are red?", "6/2", "3"), Step("How many are not?", "6-3", "3")])
    assert [step.question for step in grounded(model, text)] == ["2*3", "6/2", "6-3"]


def test_another_calculation_with_the_same_result_is_another_step():
    text = "Ten minus four leaves 6. Then 6*2=12. 18-12=6 remain."
    model = Structure([Step("a", "10-4", "6"), Step("b", "6*2", "12"), Step("c", "18-12", "6")])
    assert grounded(model, text) == model


def test_a_repeated_calculation_is_two_steps_only_if_the_model_has_two():
    text = "He bought 2*3 = 6 apples. She bought 2*3 = 6 pears. In all 6+6 = 12."
    twice = Structure([Step("His?", "2*3", "6"), Step("Hers?", "2*3", "6"), Step("All?", "6+6", "12")])
    assert grounded(twice, text) == twice
    assert len(grounded(Structure(), text)) == 2


def test_a_completion_that_loops_is_truncated():
    text = " ".join(f"{i}*31 = {i * 31} and" for i in range(2000))
    assert len(grounded(Structure(), text)) == LONGEST


def test_a_wrong_calculation_stays_wrong():
    text = "In May she sold 48/2 = 25 clips, so 48+25 = 72 in all."
    model = Structure([Step("May?", "48/2", "24"), Step("All?", "48+24", "72")])
    assert [(step.question, step.answer) for step in grounded(model, text)] == [("48/2", "25"), ("48+25", "72")]


def test_the_steps_have_the_order_of_the_trace_and_each_calculation_occurs_once():
    for row in sample_rows("gsrm")[:60]:
        text = strip_calculator_marks(row["rationales"][0])
        found = list(dict.fromkeys((canonical_calculation(q), a) for _, q, a in calculations(text)))
        steps = grounded(Structure.from_list(row["structures"][0]), text)
        kept = [(step.question, step.answer) for step in steps if (step.question, step.answer) in found]
        assert list(dict.fromkeys(kept)) == found


@pytest.mark.slow
@settings(max_examples=60)
@given(st.text(max_size=60), st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_grounding_never_raises(text, fields):
    grounded(Structure(Step("Why?", *pair) for pair in fields), text)
