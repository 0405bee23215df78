"""Rationale difficulty: taking out the answer, and the measure against a slow reference and between engines."""

import asyncio
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny import save_llama
from rlkd.cache import Cache
from rlkd.engines import EngineError, run
from rlkd.engines.server import ServerEngine
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.pipeline import select_stage, write_stage
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import NOT_MEASURED, SelectorError, apply, load_selector
from rlkd.rationales.select.engine import TEMPLATE
from rlkd.rationales.select.rationale_difficulty import DifficultySelector, RationaleDifficulty
from rlkd.rationales.select.stripping import leaks, strip_answer
from rlkd.rationales.write.writing import Writing
from tests.helpers.loopback import LoopbackServer

QUESTIONS = [
    ("Natalia sold clips to 48 friends in April, and half as many in May. How many in all?", "72"),
    ("Mary has a credit of $100 and has paid $15 and $23. What is left to pay?", "62"),
]
TEXTS = [
    "In May she sold 48/2 = 24 clips.\nIn all 48 + 24 = 72 clips.\n#### 72",
    "Half of 48 is 24.\n\nThe answer is 72.",
    "15 + 23 = <<15+23=38>>38 and 100 - 38 = <<100-38=62>>62.\n#### 62",
    "Nothing to the purpose, at some length: " + "and so on, " * 20 + "\n#### 5",
    "#### 72",
]


@pytest.fixture(scope="module")
def telling_model(tmp_path_factory):
    """The tiny model with weights so wide that what stands before an answer matters to it: by nats."""
    return save_llama(tmp_path_factory.mktemp("telling-model"), initializer_range=0.3)


@pytest.fixture(scope="module")
def student(telling_model):
    return TransformersEngine(telling_model, device="cpu")


def questions(texts=TEXTS):
    return [
        Question(str(number), text, answer, tuple(candidate(str(number), each, "ready") for each in texts))
        for number, (text, answer) in enumerate(QUESTIONS)
    ]


def slow_log_rds(model_folder, meter, question):
    """One pair at a time, one forward pass each, the answer's tokens by hand."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model_folder).eval(),
        AutoTokenizer.from_pretrained(model_folder),
    )

    def nll(context, answer):
        start, end = tokenizer(context)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            table = model(torch.tensor([start + end])).logits[0].log_softmax(-1)
        return -sum(float(table[len(start) - 1 + place, token]) for place, token in enumerate(end)) / len(end)

    if meter.template is None:
        messages = [{"role": "user", "content": question.question}]
        before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        bare = before + meter.cue.lstrip()
    else:
        before = meter.template.replace("{question}", question.question)
        bare = before.rstrip() + meter.cue
    answer = f" {question.answer}"
    stripped = [strip_answer(each.text) for each in question.candidates]
    contexts = [(before + text).rstrip() + meter.cue if text else bare for text in stripped]
    return [nll(context, answer) - nll(bare, answer) for context in contexts]


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        (TEXTS[0], "In May she sold 48/2 = 24 clips.\nIn all 48 + 24 ="),
        (TEXTS[1], "Half of 48 is 24."),
        ("Half of 48 is 24.\nA: $72 in all.", "Half of 48 is 24."),
        ("A: 5 + 3 = 8 apples.\nB: 8 + 2 = 10 apples.\n#### 10", "A: 5 + 3 = 8 apples.\nB: 8 + 2 ="),
        ("A: Buy 5.\nB: Eat 2, so that some are left.", "A: Buy 5.\nB: Eat 2, so that some are left."),
        ("Steps.\nA:\n#### 7", "Steps."),
        ("Steps. <answer>7</ANSWER> So much <answer>8</answer>for that.\n<answer>9", "Steps.  So much for that."),
        ("3 + 4 = 7 =", "3 + 4 ="),
        ("3 + 4 = 7\nx = ...", "3 + 4 =\nx = ..."),
        ("3 + 4 = 7...), and so on... x", "3 + 4 = x"),
        (TEXTS[2], "15 + 23 = 38 and 100 - 38 ="),
        ("She makes 9 * 2 = $18 every day. That is all.\n#### 18", "She makes 9 * 2 = That is all."),
        ("3*4 = 12*2 = 24", "3*4 = 12*2 ="),
        ("So it costs 0.5 * 3 = $1.50 a day.\nA: 1.5", "So it costs 0.5 * 3 ="),
        ("We get\n\\[ 9 \\times 2 = 18 \\]\nTherefore it is \\boxed{18}.", "We get\n\\[ 9 \\times 2 ="),
        ("Let x >= 3. The total equals 12. So be it.", "Let x >= 3. The total equals So be it."),
        ("<think>no</think>Steps.\n<answer>\n7\n</answer>", "Steps."),
        ("The final answer is 7. Check: 3 + 4 = 7.", "Check: 3 + 4 ="),
        ("no calculation at all", "no calculation at all"),
        ("x =\n", "x ="),
        ("#### 72", ""),
        ("", ""),
    ],
)
def test_the_announced_answer_and_the_last_result_go_and_nothing_else(text, stripped):
    assert strip_answer(text) == stripped


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", ["= ", ".", '."', "equals ", "=\n", "A: 1 a ", "A:", "<answer>", "</answer>", "a.\n", " ", "\\boxed{"]
)
@pytest.mark.slow
def test_an_answer_is_taken_out_in_linear_time(unit):
    text = unit * (400_000 // len(unit))
    assert len(strip_answer(text)) <= len(text)
    assert len(strip_answer(text + "x")) <= len(text) + 1


def test_what_has_been_stripped_is_not_stripped_to_nothing_by_doing_it_again():
    for text in TEXTS:
        once = strip_answer(text)
        assert len(strip_answer(once)) <= len(once)
        assert "####" not in once


@pytest.mark.parametrize(
    ("text", "answer", "still"),
    [
        ("48 + 24 =", "72", False),
        ("She had 72 clips.", "72", True),
        ("It is 1,200 in all.", "$1200", True),
        ("It is 172 or 7.2.", "72", False),
        ("minus 5", "-5", True),
        ("So yes, it does.", "Yes", True),
        ("Yesterday.", "yes", False),
        ("a man and a plan", "A", False),
        ("option A", "A", True),
        ("anything", "", False),
    ],
)
def test_an_answer_leaks_where_it_stands_as_a_number_or_a_word(text, answer, still):
    assert leaks(text, answer) is still


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_measure_is_that_of_one_pair_at_a_time(telling_model, student, template):
    meter = DifficultySelector(student, template=template)
    # Beginnings of several lengths in one batch, so that there is padding between a question and its rationales.
    texts = ["?" * more + text for text, _ in QUESTIONS for more in range(3)]
    given = [
        Question(str(number), text, "72", tuple(candidate(str(number), each, "ready") for each in TEXTS))
        for number, text in enumerate(texts)
    ]
    found = run(meter.measure(given))
    for question, row in zip(given, found, strict=True):
        assert [item.log_rd for item in row] == pytest.approx(slow_log_rds(telling_model, meter, question), abs=1e-4)
        assert row[-1].log_rd == pytest.approx(0, abs=1e-5)  # nothing is left of a rationale that only answers
        assert [item.leaks for item in row] == [False] * 5
        assert len({round(item.nll, 2) for item in row}) > 3  # the model does tell them apart
    assert max(abs(item.log_rd) for row in found for item in row) > 0.5


def test_requests_lack_the_answer_and_the_first_lacks_a_rationale(student):
    first, *others = DifficultySelector(student, template=TEMPLATE).requests(questions()[0])
    assert first == (f"Question: {QUESTIONS[0][0]}\nAnswer:\n####", " 72")
    assert all(context.endswith("\n####") and "72" not in context for context, _ in others)


@pytest.mark.slow
@pytest.mark.parametrize("vllm", [True, False])
def test_the_engines_agree(student, telling_model, vllm, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = LoopbackServer(student)
    server.vllm = vllm
    try:
        tokenizer = None if vllm else telling_model
        remote = ServerEngine(server.url, "tiny", tokenizer=tokenizer)
        here, there = (
            run(DifficultySelector(engine, template=TEMPLATE).measure(questions())) for engine in (student, remote)
        )
    finally:
        server.shut_down()
    for mine, theirs in zip(here, there, strict=True):
        assert [item.log_rd for item in mine] == pytest.approx([item.log_rd for item in theirs], abs=1e-3)
    assert max(abs(item.log_rd) for row in here for item in row) > 0.5


class Counting:
    """The student, counting what it is asked; `fails` says which contexts it cannot score."""

    def __init__(self, engine, fails=lambda context: False):
        self.engine, self.fails = engine, fails
        self.name, self.tokenizer, self.guided = engine.name, engine.tokenizer, False
        self.requests = []

    async def score(self, requests, *, deadline=None):
        self.requests += requests
        scored = await self.engine.score(requests, deadline=deadline)
        return [
            EngineError("counting", "out of order.") if self.fails(context) else item
            for item, (context, _) in zip(scored, requests, strict=True)
        ]


def test_the_term_without_a_rationale_is_requested_once_per_question_and_equal_texts_once(student):
    counting = Counting(student)
    twice = questions([*TEXTS, *TEXTS])
    run(DifficultySelector(counting).measure(twice))
    # Nothing is left of "#### 72": that is the question alone.
    assert len(counting.requests) == 2 * len(TEXTS)
    assert len(set(counting.requests)) == len(counting.requests)


def test_cached_values_are_not_requested_again_and_failures_are_not_cached(student, tmp_path):
    cache = Cache(tmp_path / "kept.sqlite")
    failing = Counting(student, fails=lambda context: "Half of 48" in context)
    first = run(DifficultySelector(failing, cache=cache).measure(questions()))
    assert [isinstance(item, EngineError) for item in first[0]] == [False, True, False, False, False]
    sound = Counting(student)
    second = run(DifficultySelector(sound, cache=cache).measure(questions()))
    assert len(sound.requests) == 2
    assert all("Half of 48" in context for context, _ in sound.requests)
    assert second[0][2:] == first[0][2:]
    other = Counting(student)
    other.name = "another student"
    run(DifficultySelector(other, cache=cache).measure(questions()))
    assert len(other.requests) == 2 * len(TEXTS)


def test_the_measure_does_not_depend_on_order_or_company(student):
    whole = run(DifficultySelector(student).measure(questions()))
    alone = [run(DifficultySelector(student).measure([question]))[0] for question in reversed(questions(TEXTS[::-1]))]
    for mine, theirs in zip(whole, reversed(alone), strict=True):
        assert [item.log_rd for item in mine] == pytest.approx([item.log_rd for item in reversed(theirs)], abs=1e-5)


def test_a_question_without_a_right_answer_has_no_difficulty_and_its_candidates_go(student):
    bare = Question("x", "What?", None, (candidate("x", TEXTS[0], "ready"),))
    assert run(DifficultySelector(student).measure([bare])) == [[None]]
    _, dropped = asyncio.run(apply(load_selector("difficulty", {"student": student}), [bare]))
    assert [each.reason for each in dropped] == ["the question has no right answer"]


def test_the_selector_keeps_the_easiest_and_as_a_control_the_hardest(student):
    measured = [item.log_rd for item in run(DifficultySelector(student).measure(questions()[:1]))[0]]
    order = sorted(range(len(TEXTS)), key=lambda place: measured[place])
    for worst, expected in ((False, order[:2]), (True, order[-2:])):
        selector = load_selector("difficulty", {"student": student, "keep": 2, "worst": worst})
        kept, dropped = asyncio.run(apply(selector, questions()[:1]))
        assert {each.text for each in kept[0].candidates} == {TEXTS[place] for place in expected}
        assert len({each.reason for each in dropped}) == 1
        for each in [*kept[0].candidates, *(item.candidate for item in dropped)]:
            assert each.scores["log_rd"] == pytest.approx(measured[TEXTS.index(each.text)], abs=1e-5)
            assert each.scores["leaks"] == 0


def test_candidates_that_the_student_fails_on_are_dropped_and_the_cause_is_logged(student, caplog):
    some = Counting(student, fails=lambda context: "Half of 48" in context)
    _, dropped = asyncio.run(apply(load_selector("difficulty", {"student": some}), questions()))
    assert [(each.candidate.text, each.reason) for each in dropped] == [(TEXTS[1], "could not be measured")] * 2
    everything = Counting(student, fails=lambda context: True)
    with caplog.at_level(logging.WARNING):
        kept, dropped = asyncio.run(apply(load_selector("difficulty", {"student": everything}), questions()))
    assert kept == []
    assert {each.reason for each in dropped} == {NOT_MEASURED}
    assert "10 of 10 candidates could not be measured" in caplog.text
    assert "out of order" in caplog.text


def one_step(name, text):
    return Question(name, text, "7", (candidate(name, "3 + 4 = 7\n#### 7", "ready"),))


@pytest.mark.parametrize("place", [0, 256])
def test_a_question_too_long_for_the_student_ends_no_selection_wherever_it_stands(student, tmp_path, place):
    many = [one_step(str(number), "3 and 4?") for number in range(256)]
    many.insert(place, one_step("long", "3 and 4? " * 600))
    write_stage(tmp_path, many, Writing(("ready",)), log=logging.info)
    part = select_stage(tmp_path, [load_selector("difficulty", {"student": student})])
    assert part["kept"] == 256
    assert part["stages"][0]["dropped"] == {NOT_MEASURED: 1}


def test_a_student_that_can_measure_nothing_at_all_ends_the_selection(student, tmp_path):
    write_stage(tmp_path, [one_step("long", "3 and 4? " * 600)], Writing(("ready",)), log=logging.info)
    with pytest.raises(SelectorError, match="'difficulty' could measure none of 1 candidates"):
        select_stage(tmp_path, [load_selector("difficulty", {"student": student})])


def test_difficulty_is_a_difference_of_logarithms():
    item = RationaleDifficulty(nll=1.0, nll_without=3.0, leaks=False)
    assert math.exp(item.log_rd) == pytest.approx(math.exp(1.0) / math.exp(3.0))
