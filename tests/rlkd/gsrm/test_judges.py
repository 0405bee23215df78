import asyncio

import pytest

from rlkd.data import sample_rows
from rlkd.engines.base import EngineError
from rlkd.gsrm import DeterministicJudge, JudgeError, ModelJudge, Verdict
from rlkd.gsrm.judges import same_answer
from rlkd.structure import Step, Structure

ALL_AGREE = Verdict(True, True, True)


def judge(judge, *pairs):
    return asyncio.run(judge.judge([(Structure(mine), Structure(theirs)) for mine, theirs in pairs]))


# Answers


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ("1200", "$1,200", True),
        ("24", "24.0", True),
        (".5", "0.5", True),
        ("1/2", "0.5", True),
        ("24 clips", "24", True),
        ("24.", "24", True),
        ("75%", "75", True),
        ("-3", "3", False),
        ("24", "42", False),
        ("1 1/2", "11/2", False),
        ("1.5x", "15x", False),
        ("2 and 3", "2 AND  3", True),
        ("x = 2 or x = 3", "x=2 or x=3.", True),
        ("Monday", "Tuesday", False),
    ],
)
def test_answers_are_the_same_if_they_are_the_same_number_or_text(mine, theirs, same):
    assert same_answer(mine, theirs) is same
    assert same_answer(theirs, mine) is same


# Deterministic


def compare(mine, theirs, **options):
    return DeterministicJudge(**options).compare(Step(*mine), Step(*theirs))


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        # The same calculation, differently written.
        (("How many in May?", "48/2", "24"), ("How many in May?", "48 / 2", "24"), ALL_AGREE),
        (("How many in May?", "48 ÷ 2", "24.0"), ("How many in May?", "48/2", "24"), ALL_AGREE),
        (("Price?", "1,200 x 2", "$2,400"), ("Price?", "2 * 1200", "2400"), ALL_AGREE),
        (("Price?", ".5 * 4", "2"), ("Price?", "0.50 × 4", "2"), ALL_AGREE),
        # Another calculation.
        (("How many in May?", "48*2", "96"), ("How many in May?", "48/2", "24"), Verdict(True, False, False)),
        (("How many in May?", "48/3", "16"), ("How many in May?", "48/2", "24"), Verdict(True, False, False)),
        (("How many in May?", "48/2", "23"), ("How many in May?", "48/2", "24"), Verdict(True, True, False)),
        (("How many in May?", "48-24", "24"), ("How many in May?", "48/2", "24"), Verdict(True, False, True)),
        # Operands in another order count as the same.
        (("In all?", "24+48", "72"), ("In all?", "48+24", "72"), ALL_AGREE),
        # What one side lacks cannot be compared; what both lack agrees.
        (("How many in May?", None, "24"), ("How many in May?", "48/2", "24"), Verdict(True, None, True)),
        (("How many in May?", "48/2", None), ("How many in May?", "48/2", "24"), Verdict(True, True, None)),
        (("How many in May?", None, None), ("How many in May?", "48/2", "24"), Verdict(True, None, None)),
        (("How many in May?", None, None), ("How many in May?", None, None), ALL_AGREE),
    ],
)
def test_steps_with_the_same_purpose_are_compared_field_by_field(mine, theirs, verdict):
    assert compare(mine, theirs) == verdict


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ("How many clips did she sell in May?", "How many clips did she sell in May?", True),
        ("How many clips were sold by Natalia in May?", "In May, how many clips had Natalia sold?", True),
        ("Clips sold in May", "clip sold in may", True),
        ("How many clips did she sell in May?", "How much did a ticket cost?", False),
        ("How many?", "how   many", True),
        ("How many?", "How much?", False),
    ],
)
def test_purposes_are_the_same_if_they_share_most_of_their_words(mine, theirs, same):
    assert compare((mine, None, None), (theirs, None, None)).meta is same


def test_the_same_calculation_with_the_same_result_is_the_same_purpose_in_any_words():
    assert compare(("Halve it", "48/2", "24"), ("How many in May?", "48/2", "24")).meta is True
    assert compare(("Halve it", "48/2", "25"), ("How many in May?", "48/2", "24")).meta is False
    assert compare(("Halve it", None, "24"), ("How many in May?", None, "24")).meta is False


def test_a_step_without_a_purpose_stands_for_itself_by_its_calculation():
    assert compare((None, "48/2", "24"), (None, "48/2", "24")) == ALL_AGREE
    assert compare((None, "count the clips", "23"), (None, "count the clips", "24")) == Verdict(True, True, False)
    assert compare((None, "count the clips", None), (None, "price the tickets", None)).meta is False


def test_the_threshold_says_how_many_words_must_be_shared():
    mine, theirs = ("red apples left", None, None), ("red pears left over", None, None)
    assert compare(mine, theirs, threshold=0.2).meta is True
    assert compare(mine, theirs, threshold=0.6).meta is False


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_a_threshold_that_accepts_all_or_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match="expected a number above 0, at most 1"):
        DeterministicJudge(threshold)


def test_a_structure_agrees_with_itself_in_every_field():
    structures = [Structure.from_list(row["structures"][0]) for row in sample_rows("gsrm")]
    verdicts = judge(DeterministicJudge(), *[(s, s) for s in structures])
    assert verdicts == [[ALL_AGREE] * len(s) for s in structures]


def test_verdicts_end_with_the_first_step_that_serves_another_purpose():
    same, other = Step("How many in May?"), Step("Why is the sky blue?")
    [verdicts] = judge(DeterministicJudge(), ([same, other, same], [same, same, same]))
    assert [verdict.meta for verdict in verdicts] == [True, False]


def test_there_is_a_verdict_for_each_pair_of_steps_and_none_for_surplus_steps():
    step = Step("How many in May?")
    verdicts = judge(DeterministicJudge(), ([step] * 3, [step] * 2), ([], [step]), ([step], []))
    assert [len(v) for v in verdicts] == [2, 0, 0]


# Model


def yes(text):
    return (-0.1, -3.0)


def no(text):
    return (-3.0, -0.1)


MINE = Step("Sold in May?", "half of 48", "two dozen")
THEIRS = Step("How many in May?", "48/2", "24")


def test_a_model_says_yes_or_no_by_the_likelier_of_the_two(scripted):
    assert judge(ModelJudge(scripted(prefer=yes)), ([MINE], [THEIRS])) == [[ALL_AGREE]]
    assert judge(ModelJudge(scripted(prefer=no)), ([MINE], [THEIRS])) == [[Verdict(False, None, None)]]


def test_each_field_has_a_question_of_its_own(scripted):
    engine = scripted(prefer=lambda text: no(text) if "worked out" in text else yes(text))
    assert judge(ModelJudge(engine), ([MINE], [THEIRS])) == [[Verdict(True, False, True)]]
    metas, fields = engine.chosen
    assert len(metas) == 1
    assert "First: Sold in May?\nSecond: How many in May?" in metas[0]
    assert len(fields) == 2


@pytest.mark.parametrize(("lead", "same"), [(0.0, False), (0.5, False), (1.0, False), (1.5, True)])
def test_yes_must_lead_by_more_than_the_margin(scripted, lead, same):
    engine = scripted(prefer=lambda text: (-1.0, -1.0 - lead))
    [[verdict]] = judge(ModelJudge(engine, margin=1.0), ([MINE], [THEIRS]))
    assert verdict.meta is same


def test_a_tie_is_no(scripted):
    [[verdict]] = judge(ModelJudge(scripted(prefer=lambda text: (-1.0, -1.0))), ([MINE], [THEIRS]))
    assert verdict.meta is False


def test_what_letters_or_numbers_settle_is_not_asked(scripted):
    engine = scripted(prefer=lambda text: pytest.fail(f"asked: {text}"))
    same = Step("How many in May?", "48/2", "24")
    written_differently = Step("how many in May", " 48 / 2 ", "$24.0")
    assert judge(ModelJudge(engine), ([same], [written_differently])) == [[ALL_AGREE]]
    another_number = Step("How many in May?", "48/2", "25")
    assert judge(ModelJudge(engine), ([same], [another_number])) == [[Verdict(True, True, False)]]


def test_every_distinct_question_is_asked_once_in_the_life_of_a_judge(scripted):
    engine = scripted(prefer=yes)
    model = ModelJudge(engine)
    for _ in range(2):
        judge(model, ([MINE, MINE], [THEIRS, THEIRS]), ([MINE], [THEIRS]))
    asked = [text for batch in engine.chosen for text in batch]
    assert len(asked) == len(set(asked)) == 3


def test_nothing_is_asked_about_fields_after_the_break(scripted):
    other = Step("Why is the sky blue?", "rayleigh", "air")
    engine = scripted(prefer=lambda text: no(text) if "sky" in text else yes(text))
    later = Step("Sold in June?", "a third of 48", "sixteen")
    [verdicts] = judge(
        ModelJudge(engine),
        ([MINE, other, later], [THEIRS, Step("How many in July?", "48/4", "12"), Step("June?", "48/3", "16")]),
    )
    assert verdicts == [ALL_AGREE, Verdict(False, None, None)]
    assert not any("a third" in text or "sixteen" in text or "rayleigh" in text for text in engine.chosen[1])


def test_fields_that_are_missing_are_not_asked_about(scripted):
    engine = scripted(prefer=yes)
    [[verdict]] = judge(ModelJudge(engine), ([Step("Sold in May?", None, None)], [Step("How many?", None, "24")]))
    assert verdict == Verdict(True, True, None)
    assert [len(batch) for batch in engine.chosen] == [1]


@pytest.mark.parametrize("about", ["sub-problem", "worked out", "same result"])
def test_a_question_without_a_reply_costs_its_own_pair_only(scripted, about):
    def prefer(text):
        if about in text and ("broken" in text):
            return EngineError("scripted", "timed out")
        return yes(text)

    broken = Step("broken purpose", "broken question", "broken answer")
    good, bad = judge(ModelJudge(scripted(prefer=prefer)), ([MINE], [THEIRS]), ([broken], [THEIRS]))
    assert good == [ALL_AGREE]
    assert isinstance(bad, JudgeError)
    assert "timed out" in str(bad)


def test_a_question_that_failed_is_asked_again_next_time(scripted):
    replies = iter([EngineError("scripted", "timed out")])
    engine = scripted(prefer=lambda text: next(replies, yes(text)))
    model = ModelJudge(engine)
    [first] = judge(model, ([MINE], [THEIRS]))
    assert isinstance(first, JudgeError)
    assert judge(model, ([MINE], [THEIRS])) == [[ALL_AGREE]]


def test_a_question_about_a_step_after_the_break_may_fail_without_harm(scripted):
    def prefer(text):
        if "sky" in text:
            return no(text)
        return EngineError("scripted", "timed out") if "later" in text else yes(text)

    model = ModelJudge(scripted(prefer=prefer))
    theirs = [Step("How many in May?"), Step("How many in June?"), Step("How many in July?")]
    [verdicts] = judge(model, ([Step("Sold in May?"), Step("Why is the sky blue?"), Step("later")], theirs))
    assert [verdict.meta for verdict in verdicts] == [True, False]


def test_without_pairs_nothing_is_asked(scripted):
    engine = scripted(prefer=yes)
    assert judge(ModelJudge(engine)) == []
    assert judge(ModelJudge(engine), ([], [THEIRS])) == [[]]
    assert engine.chosen == []


def test_a_factorial_is_not_the_number_before_its_mark():
    assert not same_answer("5!", "5")
    assert same_answer("Five.", "five")
