import asyncio
import math
import os
import pickle
import time

import pytest
import torch

from rlkd.data.samples import sample_rows
from rlkd.engines.base import EngineError
from rlkd.gsrm import DeterministicJudge, EmbeddingJudge, JudgeError, ModelJudge, Verdict
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


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        # The same calculation, whatever its words, its writing and its result.
        (("Halve it", "48/2", "24"), ("How many in May?", "48/2", "24"), True),
        (("Halve it", "0.5 × 48", "25"), ("How many in May?", "48/2", "24"), True),
        (("Take it away", "24-48", "-24"), ("How many are left?", "48-24", "24"), True),
        (("Take a share", "2/48", "0.04"), ("How many in May?", "48/2", "24"), True),
        (("Solve it", "2x + 3 = 9", "3"), ("What is x?", "3 + 2x = 9", "3"), True),
        # Another one, and other words.
        (("Halve it", "48/3", "16"), ("How many in May?", "48/2", "24"), False),
        # Without a calculation words decide.
        (("Halve it", None, "24"), ("How many in May?", None, "24"), False),
        # The result of one is what the other starts from: an earlier step, however similar the words.
        (("How many clips in May?", "48/2", "24"), ("How many clips in all in May?", "48+24", "72"), False),
        (("How many clips in all in May?", "48+24", "72"), ("How many clips in May?", "48/2", "24"), False),
        # Unless it says itself that it is the same.
        (("How many clips?", "48/2", "24"), ("How many clips?", "48+24", "72"), True),
        # One calculation with one result is one step, however a model words it.
        (("How much on Monday?", "2*2", "4"), ("How much on Tuesday?", "2 x $2", "$4"), True),
        # Names and numbers that exclude each other, even with one calculation.
        (("How much on Monday?", "2*2", "5"), ("How much on Tuesday?", "2*2", "4"), False),
        (("Clips sold in week three", "2*2", "5"), ("Clips sold in the second week", "2*2", "4"), False),
        (("Clips sold in week two", "2*2", "4"), ("Clips sold in the second week", "2*2", "4"), True),
        (("What did Ann sell?", "2*2", "4"), ("How many clips did she sell?", "2*2", "4"), True),
    ],
)
def test_calculations_and_names_are_evidence_for_or_against_one_purpose(mine, theirs, same):
    assert compare(mine, theirs).meta is same
    assert compare(theirs, mine).meta is same


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ("48-24", "24-48", False),
        ("48/2", "2/48", False),
        ("16-3-4", "16-(4+3)", True),
        ("20%*50", "50*0.2", True),
        ("half of 20", "20/2", True),
        ("half of 20", "half of 30", False),
        ("count 20 clips", "count 30 clips", False),
        ("2x + 3", "3 + 2x", True),
        ("2x + 3", "3 + 2y", False),
    ],
)
def test_questions_are_the_same_if_they_calculate_the_same(mine, theirs, same):
    assert compare(("Why?", mine, None), ("Why?", theirs, None)).question is same
    assert compare(("Why?", theirs, None), ("Why?", mine, None)).question is same


def test_a_step_without_meta_is_compared_by_its_calculation():
    assert compare((None, "48/2", "24"), (None, "48/2", "24")) == ALL_AGREE
    assert compare((None, "count the clips", "23"), (None, "count the clips", "24")) == Verdict(True, True, False)
    assert compare((None, "count the clips", None), (None, "price the tickets", None)).meta is False


def test_the_threshold_says_how_many_words_must_be_shared():
    mine, theirs = ("red apples here", None, None), ("red pears there", None, None)
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


MINE = Step("Sold in May?", "halve the clips", "half of April")
THEIRS = Step("How many in May?", "48/2", "24")


def test_a_model_says_yes_or_no_by_the_likelier_of_the_two(scripted):
    assert judge(ModelJudge(scripted(prefer=yes)), ([MINE], [THEIRS])) == [[ALL_AGREE]]
    assert judge(ModelJudge(scripted(prefer=no)), ([MINE], [THEIRS])) == [[Verdict(False, None, None)]]


def test_each_field_has_a_question_of_its_own(scripted):
    engine = scripted(prefer=lambda text: no(text) if "worked out" in text else yes(text))
    assert judge(ModelJudge(engine), ([MINE], [THEIRS])) == [[Verdict(True, False, True)]]
    [asked] = engine.chosen
    assert len(asked) == 3
    assert "First: How many in May?\nSecond: Sold in May?" in asked[0]


@pytest.mark.parametrize(("lead", "same"), [(0.0, False), (0.5, False), (1.0, False), (1.5, True)])
def test_yes_must_lead_by_more_than_the_threshold(scripted, lead, same):
    engine = scripted(prefer=lambda text: (-1.0, -1.0 - lead))
    [[verdict]] = judge(ModelJudge(engine, threshold=1.0), ([MINE], [THEIRS]))
    assert verdict.meta is same


def test_a_tie_is_no(scripted):
    [[verdict]] = judge(ModelJudge(scripted(prefer=lambda text: (-1.0, -1.0))), ([MINE], [THEIRS]))
    assert verdict.meta is False


def test_equal_texts_and_numbers_are_not_sent(scripted):
    engine = scripted(prefer=lambda text: pytest.fail(f"asked: {text}"))
    same = Step("How many in May?", "48/2", "24")
    written_differently = Step("how many in May", " 48 / 2 ", "$24.0")
    assert judge(ModelJudge(engine), ([same], [written_differently])) == [[ALL_AGREE]]
    another_number = Step("How many in May?", "48/2", "25")
    assert judge(ModelJudge(engine), ([same], [another_number])) == [[Verdict(True, True, False)]]


def test_every_distinct_question_is_sent_once_in_the_life_of_a_judge(scripted):
    engine = scripted(prefer=yes)
    model = ModelJudge(engine)
    for _ in range(2):
        judge(model, ([MINE, MINE], [THEIRS, THEIRS]), ([MINE], [THEIRS]))
    asked = [text for batch in engine.chosen for text in batch]
    assert len(asked) == len(set(asked)) == 3


def test_a_judge_of_a_long_run_remembers_a_limited_number_of_replies(scripted, monkeypatch):
    monkeypatch.setattr("rlkd.gsrm.judges.REMEMBERED", 6)
    engine = scripted(prefer=yes)
    model = ModelJudge(engine)
    for number in range(20):
        step = Step(f"Sold in week {number}?", f"halve pile {number}", f"a half of {number} piles")
        assert judge(model, ([step], [THEIRS])) == [[ALL_AGREE]]
        assert len(model._log_odds) <= 6 + 3
    judge(model, ([step], [THEIRS]))  # the newest ones are still there
    assert len(engine.chosen) == 20


def test_all_questions_of_a_batch_go_out_in_one_call(scripted):
    other = (Step("Why is the sky blue?", "rayleigh", "air"), Step("How many in July?", "48/4", "12"))
    engine = scripted(prefer=lambda text: no(text) if "sky" in text else yes(text))
    pairs = [([MINE, other[0], MINE], [THEIRS, other[1], THEIRS]), ([other[0]], [other[1]])]
    first, second = judge(ModelJudge(engine), *pairs)
    assert first == [ALL_AGREE, Verdict(False, None, None)]
    assert second == [Verdict(False, None, None)]
    assert [len(batch) for batch in engine.chosen] == [6]


def test_nothing_behind_a_known_break_is_sent(scripted):
    other = (Step("Why is the sky blue?"), Step("How many in July?"))
    engine = scripted(prefer=lambda text: no(text) if "sky" in text else yes(text))
    model = ModelJudge(engine)
    judge(model, ([other[0]], [other[1]]))
    [verdicts] = judge(model, ([other[0], MINE], [other[1], THEIRS]))
    assert verdicts == [Verdict(False, None, None)]
    assert [len(batch) for batch in engine.chosen] == [1]


def test_a_verdict_does_not_depend_on_who_is_the_student_or_on_the_order_of_the_batch(scripted):
    # Says yes where the first text is the longer one: a judge with a bias for places.
    def prefer(text):
        first, second = (line.partition(": ")[2] for line in text.splitlines()[:2])
        return yes(text) if len(first) > len(second) else no(text)

    forth, back = ([MINE], [THEIRS]), ([THEIRS], [MINE])
    engine = scripted(prefer=prefer)
    assert judge(ModelJudge(engine), forth, back) == judge(ModelJudge(engine), back, forth)
    assert judge(ModelJudge(engine), forth) == judge(ModelJudge(engine), back)
    assert [len(batch) for batch in engine.chosen] == [3, 3, 3, 3]


def test_log_probabilities_that_cannot_be_compared_are_a_failure(scripted):
    [found] = judge(ModelJudge(scripted(prefer=lambda text: (-math.inf, -math.inf))), ([MINE], [THEIRS]))
    assert isinstance(found, JudgeError)
    assert "no comparable log-probabilities" in str(found)


def test_one_calculation_in_two_notations_is_not_sent(scripted):
    engine = scripted(prefer=yes)
    judge(ModelJudge(engine), ([Step("Half?", "48*0.5", "24")], [THEIRS]))
    assert [len(batch) for batch in engine.chosen] == [1]


def test_missing_fields_are_not_sent(scripted):
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


def test_a_failed_question_is_sent_again_next_time(scripted):
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


def test_without_pairs_nothing_is_sent(scripted):
    engine = scripted(prefer=yes)
    assert judge(ModelJudge(engine)) == []
    assert judge(ModelJudge(engine), ([], [THEIRS])) == [[]]
    assert engine.chosen == []


def test_a_factorial_is_not_the_number_before_its_mark():
    assert not same_answer("5!", "5")
    assert same_answer("Five.", "five")


# Kept verdicts


def test_a_store_spares_the_questions_of_later_runs(scripted, tmp_path):
    path = tmp_path / "deep" / "verdicts.sqlite"
    engine = scripted(prefer=lambda text: no(text) if "worked out" in text else yes(text))
    first = judge(ModelJudge(engine, store=path), ([MINE], [THEIRS]))
    silent = scripted(prefer=lambda text: pytest.fail(f"asked: {text}"))
    assert judge(ModelJudge(silent, store=path), ([MINE], [THEIRS])) == first == [[Verdict(True, False, True)]]
    assert silent.chosen == []


def test_another_threshold_needs_no_new_request(scripted, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    engine = scripted(prefer=lambda text: (-1.0, -2.0))
    assert judge(ModelJudge(engine, threshold=0.5, store=path), ([MINE], [THEIRS])) == [[ALL_AGREE]]
    [[verdict]] = judge(ModelJudge(engine, threshold=1.5, store=path), ([MINE], [THEIRS]))
    assert verdict.meta is False
    assert len(engine.chosen) == 1


def test_replies_of_another_model_are_not_reused(scripted, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    judge(ModelJudge(scripted(prefer=yes, name="one"), store=path), ([MINE], [THEIRS]))
    other = scripted(prefer=no, name="other")
    assert judge(ModelJudge(other, store=path), ([MINE], [THEIRS])) == [[Verdict(False, None, None)]]
    assert len(other.chosen) == 1


def test_failures_are_not_stored(scripted, tmp_path):
    path = tmp_path / "verdicts.sqlite"
    broken = scripted(prefer=lambda text: EngineError("scripted", "timed out") if "sub-problem" in text else yes(text))
    [found] = judge(ModelJudge(broken, store=path), ([MINE], [THEIRS]))
    assert isinstance(found, JudgeError)
    mended = scripted(prefer=yes)
    assert judge(ModelJudge(mended, store=path), ([MINE], [THEIRS])) == [[ALL_AGREE]]
    assert [len(batch) for batch in mended.chosen] == [1]


def test_a_model_judge_with_a_store_pickles(tmp_path):
    from rlkd.engines import open_engine

    model = ModelJudge(open_engine("transformers:embedded"), threshold=1.0, store=tmp_path / "verdicts.sqlite")
    copy = pickle.loads(pickle.dumps(model))
    assert (copy.threshold, copy.engine.name, copy.store.cache.path) == (
        1.0,
        "transformers:embedded",
        model.store.cache.path,
    )


# Embedding


class FakeEncoder:
    """Texts with the same first letter mean the same; keeps what it was asked for."""

    def __init__(self, error=None):
        self.error = error
        self.calls = []

    async def encode(self, texts):
        self.calls.append(list(texts))
        if self.error:
            raise self.error
        vectors = torch.zeros(len(texts), 128)
        for row, text in zip(vectors, texts, strict=True):
            row[ord(text[0])] = 1.0
        return vectors


def embedding(error=None, **options):
    made = EmbeddingJudge("some/model", **options)
    made.encoder = FakeEncoder(error)
    return made


def test_embeddings_compare_purposes_and_numbers_decide_the_rest():
    pairs = [
        ([Step("Apples eaten", "48/2", "24")], [Step("All that was consumed", "48/3", "16")]),
        ([Step("Apples eaten", "48/2", "24")], [Step("Pears", "48/3", "16")]),
    ]
    assert judge(embedding(), *pairs) == [[Verdict(True, False, False)], [Verdict(False, None, None)]]


def test_steps_that_calculations_decide_are_not_embedded():
    made = embedding()
    same = Step("Apples eaten", "48/2", "24")
    later = Step("All in all", "48+24", "72")
    assert judge(made, ([same], [Step("Pears", "0.5*48", "24")]), ([same], [later])) == [
        [ALL_AGREE],
        [Verdict(False, None, None)],
    ]
    assert made.encoder.calls == [[]]


def test_all_texts_of_a_batch_are_embedded_in_one_call():
    made = embedding()
    steps = [Step("Apples eaten"), Step("Bananas peeled")]
    judge(made, (steps, steps[::-1]), (steps, [Step("Cherries"), Step("Dates")]))
    assert len(made.encoder.calls) == 1


def test_an_encoder_that_fails_costs_the_pairs_that_need_it():
    same = Step("Apples eaten", "48/2", "24")
    good, bad, none = judge(
        embedding(EngineError("embeddings", "no such model")),
        ([same], [same]),
        ([same], [Step("Pears")]),
        ([], [same]),
    )
    assert good == [ALL_AGREE]
    assert isinstance(bad, JudgeError)
    assert "no such model" in str(bad)
    assert none == []


def test_words_that_are_embedded_alike_still_need_the_same_numbers():
    mine, theirs = Step("Apples", "count 20 apples"), Step("Apples", "count 30 apples")
    [[verdict]] = judge(embedding(), ([mine], [theirs]))
    assert verdict == Verdict(True, False, True)


@pytest.mark.parametrize("threshold", [-1, 1.1])
def test_a_cosine_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="expected a cosine"):
        EmbeddingJudge(threshold=threshold)


def test_an_embedding_judge_pickles_as_its_settings():
    copy = pickle.loads(pickle.dumps(EmbeddingJudge("some/model", 0.9, device="cpu")))
    assert (copy.threshold, copy.encoder.model, copy.encoder.device) == (0.9, "some/model", "cpu")


@pytest.mark.skipif(
    "RLKD_TEST_MINILM" not in os.environ,
    reason="RLKD_TEST_MINILM is not set: name a folder with sentence-transformers/all-MiniLM-L6-v2 to run this test",
)
def test_minilm_takes_a_paraphrase_for_the_same_and_a_neighbour_for_another_step():
    made = EmbeddingJudge(os.environ["RLKD_TEST_MINILM"], device="cpu")
    teacher = Step("How many eggs does Janet sell?")
    [[same], [other]] = judge(
        made,
        ([Step("How many eggs are sold by Janet?")], [teacher]),
        ([Step("How many eggs does Janet eat for breakfast?")], [teacher]),
    )
    assert same.meta is True
    assert other.meta is False


def test_the_deterministic_judge_compares_thousands_of_pairs_a_second():
    structures = [Structure.from_list(row["structures"][0]) for row in sample_rows("gsrm")]
    pairs = [(mine, theirs) for mine in structures[:60] for theirs in structures[:60]]
    begin = time.process_time()
    asyncio.run(DeterministicJudge().judge(pairs))
    # Measured: 30,000 a second.
    assert len(pairs) / (time.process_time() - begin) > 2000
