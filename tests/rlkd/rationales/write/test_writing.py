"""Writing: what the teacher is shown, how its replies are read, and what feeds the bank."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.embedders import open_embedder
from rlkd.engines import Completion, Engine, EngineError
from rlkd.errors import UsageError
from rlkd.rationales.bank.routing import Route
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.write.journal import Journal
from rlkd.rationales.write.prompts import EXAMPLE, SCHEMA, read_object, read_reply, step_prompt
from rlkd.rationales.write.teacher import RationaleTeacher
from rlkd.rationales.write.writing import Writer, Writing, seed_set
from tests.helpers.scripted_teacher import ScriptedTeacher, mark

TOPICS = {
    "buying": ("price of apples in the shop", ["FindUnitPrice", "MultiplyByQuantity"]),
    "travel": ("distance of the train on its way", ["FindSpeed", "MultiplyByTime"]),
}


def question(n: int, topic: str = "buying") -> Question:
    words = TOPICS[topic][0]
    return Question(f"{topic}-{n}", f"What is the {words}, number {n}?", str(7000 + n), columns={"topic": topic})


def questions(count: int) -> list[Question]:
    return [question(n, sorted(TOPICS)[n % 2]) for n in range(count)]


def number_of(prompt: list[dict[str, str]]) -> int:
    return int(re.search(r"number (\d+)\?", prompt[-1]["content"])[1])


def reply(prompt: list[dict[str, str]], *, right: bool = True, path: list[str] | None = None) -> str:
    """A step-keyed reply by topic, with the right answer or another."""
    n = number_of(prompt)
    topic = "buying" if "shop" in prompt[-1]["content"] else "travel"
    intent, names = TOPICS[topic]
    names = path or names
    answer = 7000 + n if right else 1
    texts = {name: f"{i} + {n} = {i + n}" for i, name in enumerate(names)}
    route = {"category": topic, "intents": [" ".join(intent.split()[:2])], "difficulty": 1, "budget": 2}
    return json.dumps({**route, "path": names, "rationale": texts, "answer": str(answer)})


class Scripted(Engine):
    name = "scripted"
    guided = False

    def __init__(self, answer: Callable[[list[dict[str, str]], int], str | EngineError]):
        self.answer = answer
        self.prompts: list[list[dict[str, str]]] = []

    async def generate(self, prompts, sampling, *, deadline=None) -> list[Any]:
        self.prompts += prompts
        found = [self.answer(prompt, place) for place, prompt in enumerate(prompts)]
        return [Completion(text, "stop", len(text)) if isinstance(text, str) else text for text in found]

    def sent(self) -> str:
        return json.dumps(self.prompts)


@pytest.fixture
def written(tmp_path):
    """Write with a scripted engine; the writer, its questions and what was discarded."""

    def write(engine: Scripted, wanted: list[Question], settings: Writing, name: str = "journal", **more: Any):
        with Journal(tmp_path / name) as journal:
            embedder = open_embedder("hashed-ngrams") if "bank" in settings.writers else None
            # As a rule every question is near enough: calibration is the bank's business.
            more = {"route_threshold": 0.05, **more}
            teacher = RationaleTeacher(engine, journal, batch=4, max_failure_rate=more.pop("max_failure_rate", 0.1))
            writer = Writer(settings, teacher, embedder=embedder, **more)
            found = list(writer.write(wanted))
        return writer, [each for each, _ in found], [item for _, discarded in found for item in discarded]

    return write


STEPS = Writing(("steps",), candidates=1, temperature=0.0)
BANK = Writing(("bank",), candidates=1, temperature=0.0, seed_share=0.2, wave=4)


# Reading replies


def test_the_few_shot_example_keeps_its_own_contract() -> None:
    found = read_reply(json.dumps(EXAMPLE[1]))
    assert found is not None
    assert found.path == tuple(EXAMPLE[1]["path"])
    assert len(found.path) <= EXAMPLE[1]["budget"]
    assert set(SCHEMA["required"]) == set(EXAMPLE[1])
    assert [step.answer for step in found.structure()] == ["12", "27"]
    assert found.text().endswith("\n#### 27")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"rationale": {"Add": "1 + 2 = 3"}, "answer": "3"}', "3"),
        ('```json\n{"rationale": {"Add": "1 + 2 = 3"}, "answer": 3}\n```', "3"),
        ('Here it is: {"rationale": {"Add": "1 + 2 = 3"}, "answer": 3/4} I hope it helps.', "3/4"),
        ('{"rationale": {"Add": "1 + 2 = 3",}, "answer": 3.50,}', "3.50"),
        ('<think>{not this}</think>{"rationale": {"Add": "1 + 2 = 3"}, "ans": -1/2}', "-1/2"),
        ('{"rationale": "{\\"Add\\": \\"1 + 2 = 3\\"}", "answer": "3"}', "3"),
        ('{"rationale": [{"Add": "1 + 2 = 3"}], "answer": "3"}', "3"),
        ('{"rationale": [{"step": "Add", "text": "1 + 2 = 3"}], "answer": "3"}', "3"),
        ('{"rationale": {"Add:": "1 +\n2 = 3"}, "answer": "3"}', "3"),
        ('{"rationale": {"Add": "1 + 2 = 3", "Empty": ""}}', None),
    ],
)
def test_replies_are_read_leniently(text, answer) -> None:
    found = read_reply(text)
    assert found is not None
    assert found.steps == (("Add", "1 + 2 = 3"),)
    assert found.answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is 3.",
        "{",
        "}{",
        '{"rationale": {}}',
        '{"rationale": {"Add": "1 + 2',
        '{"answer": 3}',
        "[1]",
        "{" * 9999,
    ],
)
def test_what_cannot_be_used_is_none(text) -> None:
    assert read_reply(text) is None


def test_fractions_and_commas_inside_texts_stay_as_they_are() -> None:
    found = read_object('{"Half": "take 3/4, }", "value": 3/4 }')
    assert found == {"Half": "take 3/4, }", "value": "3/4"}
    assert read_object(r'{"a": "\frac{1}{2} of it"}') == {"a": r"\frac{1}{2} of it"}


@given(st.text(alphabet='{}[]",:\\/ 019aé\n', max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_reply_breaks_the_reader(text) -> None:
    found = read_reply('{"rationale": {"Add": ' + text)
    assert found is None or all(name and line for name, line in found.steps)
    read_reply(text)


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=20), min_size=1, max_size=3))
def test_valid_replies_are_read_as_json_means_them(rationale) -> None:
    found = read_object(json.dumps({"rationale": rationale}, ensure_ascii=False))
    assert found is not None
    # LaTeX aside: a tab before "imes" is a command for this reader.
    if "\\" not in json.dumps(rationale, ensure_ascii=False):
        assert found["rationale"] == rationale


# What the teacher is shown


def test_the_gold_answer_is_in_no_first_request(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 3 != 0))
    wanted = questions(20)
    for manner in ("free", "steps", "bank"):
        written(engine, wanted, Writing((manner,), candidates=2, seed_share=0.2), name=manner)
    assert len(engine.prompts) > 100
    assert not re.search(r"70\d\d", engine.sent())


def test_the_answer_is_a_hint_only_where_nothing_was_right_and_the_result_is_marked(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 4 != 0 or "7000" in str(prompt)))
    setting = Writing(("steps",), hinted_retry=True, candidates=1)
    writer, found, discarded = written(engine, questions(8), setting)
    hinted = [each.id for each in found if any(c.source == "hinted" for c in each.candidates)]
    assert hinted == ["buying-0"]
    assert writer.counts.requests == {"steps": 8, "hinted": 2}
    assert sorted(re.findall(r"70\d\d", engine.sent())) == ["7000", "7004"]
    assert [c.answer for c in found[0].candidates] == ["1", "7000"]
    # The hint did not help with the other one: the same wrong text again.
    assert [c.source for c in found[4].candidates] == ["generated"]
    assert len(discarded) == 1


def test_without_a_bank_the_request_differs_by_the_plan_alone() -> None:
    plan = Route("buying", "total cost", (("FindUnitPrice", "AddCosts"), ("AddAll",)), 0.5)
    with_plan, without = step_prompt("What?", plan), step_prompt("What?")
    assert with_plan[:-1] == without[:-1]
    assert with_plan[-1]["content"].startswith("What?\n\n")
    assert "1. FindUnitPrice -> AddCosts\n2. AddAll\n" in with_plan[-1]["content"]
    assert without[-1]["content"] == "What?"


# What becomes of the replies


def test_a_step_keyed_reply_becomes_a_line_a_step_with_its_structure(written) -> None:
    _, [one], _ = written(Scripted(lambda prompt, place: reply(prompt)), [question(3)], STEPS)
    [made] = one.candidates
    assert made.text == "FindUnitPrice: 0 + 3 = 3\nMultiplyByQuantity: 1 + 3 = 4\n#### 7003"
    assert made.path == ("FindUnitPrice", "MultiplyByQuantity")
    assert [step.meta for step in made.structure] == ["Find Unit Price", "Multiply By Quantity"]
    assert [step.answer for step in made.structure] == ["3", "4"]
    assert made.tokens > 0


def test_unusable_json_stays_as_text_and_is_counted(written) -> None:
    engine = Scripted(lambda prompt, place: "So it is 7003.\n#### 7003" if number_of(prompt) == 3 else reply(prompt))
    writer, found, _ = written(engine, [question(n) for n in range(5)], STEPS)
    assert writer.counts.unusable == 1
    assert [c.text for c in found[3].candidates] == ["So it is 7003.\n#### 7003"]
    assert found[3].candidates[0].path == ()
    assert writer.counts.right == 5


def test_exact_duplicates_are_discarded_with_their_reason_and_the_first_stays(written) -> None:
    engine = Scripted(lambda prompt, place: "2 + 2 = 4\n#### 7001" if place < 3 else f"draw {place}\n#### 7001")
    text = "2 + 2 = 4\n#### 7001"
    one = Question("q", "What, number 1?", "7001", (candidate("q", text, "human"), candidate("q", " ", "human")))
    writer, [found], discarded = written(engine, [one], Writing(("ready", "free"), candidates=4))
    assert [c.source for c in found.candidates] == ["human", "generated"]
    assert [each.reason for each in discarded] == ["empty", "exact duplicate", "exact duplicate", "exact duplicate"]
    assert writer.counts.discarded == {"empty": 1, "exact duplicate": 3}
    assert writer.counts.tokens["free"] == sum(len(c) for c in [text] * 3 + ["draw 3\n#### 7001"])


def test_a_request_that_fails_leaves_its_question_with_what_else_there_is(written) -> None:
    def answer(prompt, place):
        return EngineError("scripted", "no.") if number_of(prompt) == 2 else reply(prompt)

    writer, found, _ = written(Scripted(answer), [question(n) for n in range(30)], STEPS)
    assert [len(each.candidates) for each in found] == [1, 1, 0] + [1] * 27
    assert writer.counts.failed == {"steps": 1}


def test_a_prompt_of_halved_characters_does_not_reach_the_files(written) -> None:
    _, [one], _ = written(Scripted(lambda prompt, place: "half \ud83d\n#### 3"), [question(3)], STEPS)
    assert one.candidates[0].text == "half ?\n#### 3"


# The bank


def test_the_seed_round_makes_a_bank_and_the_others_are_offered_its_paths(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt))
    writer, found, _ = written(engine, questions(20), BANK)
    assert writer.counts.requests == {"seed": 4, "guided": 16}
    seeds = seed_set(questions(20), 0.2)
    offered = [prompt for prompt in engine.prompts if "FindUnitPrice -> Mult" in prompt[-1]["content"]]
    assert len(offered) >= 8
    assert {each.candidates[0].source for each in found if each.id in seeds} == {"generated"}
    assert "bank" in {each.candidates[0].source for each in found}
    assert all(len(each.candidates) == 1 for each in found)
    coverage = writer.coverage()
    assert coverage.share == 1
    assert coverage.message() is None


def test_wrong_answers_never_feed_the_bank(written) -> None:
    def answer(prompt, place):
        asked_along_a_plan = "Problems like this one" in prompt[-1]["content"]
        return reply(prompt, right=not asked_along_a_plan, path=["GuessBoldly"] if asked_along_a_plan else None)

    writer, _, _ = written(Scripted(answer), questions(40), BANK)
    assert {p.names for c, i in writer.bank.intents() for p in writer.bank.paths(c, i)} == {
        tuple(path) for _, path in TOPICS.values()
    }
    assert writer.bank.pending == 0
    assert writer.counts.wrong == 32


def test_right_answers_along_new_paths_wait_in_the_bank(written) -> None:
    def answer(prompt, place):
        along = "Problems like this one" in prompt[-1]["content"]
        return reply(prompt, path=["CompareRates", "ScaleUp"] if along else None)

    writer, found, _ = written(Scripted(answer), questions(20), BANK)
    assert writer.bank.pending > 0
    assert {c.source for each in found for c in each.candidates} == {"generated"}


def test_a_right_answer_that_breaks_the_contract_stays_out_of_the_bank_and_is_counted(written) -> None:
    def answer(prompt, place):
        along = "Problems like this one" in prompt[-1]["content"]
        return reply(prompt, path=["StepOne", "StepTwo", "StepThree", "StepFour"] if along else None)

    writer, found, _ = written(Scripted(answer), questions(20), BANK)
    assert writer.bank.pending == 0
    assert writer.counts.barred == {"... steps with a budget of ...": 16}
    assert len(found[0].candidates) == 1


def test_without_a_right_seed_solution_the_bank_is_empty_and_a_warning_is_logged(written, caplog) -> None:
    engine = Scripted(lambda prompt, place: "I do not know.")
    writer, found, _ = written(engine, questions(60), BANK)
    assert "the bank begins empty" in caplog.text
    assert len(writer.bank) == 0
    assert writer.coverage().share == 0
    assert writer.coverage().message()
    assert all(len(each.candidates) == 1 for each in found)


def test_the_result_does_not_depend_on_the_wave_that_was_interrupted(written, tmp_path) -> None:
    class Stops(Exception):
        pass

    def answer(prompt, place):
        path = ["CompareRates", "ScaleUp"] if number_of(prompt) % 3 else None
        return reply(prompt, right=number_of(prompt) % 5 != 0, path=path)

    setting = Writing(("bank",), candidates=3, seed_share=0.2, wave=4)
    wanted = questions(24)
    whole_engine = Scripted(lambda prompt, place: answer(prompt, place) + " " * place)
    _, whole, _ = written(whole_engine, wanted, setting, name="whole")
    total = len(whole_engine.prompts)
    for stop_after in (3, 11, 30):
        name = f"cut-{stop_after}"

        def stopping(prompt, place, left=[stop_after]):  # noqa: B006 (a counter)
            left[0] -= 1
            if left[0] < 0:
                raise Stops
            return answer(prompt, place) + " " * place

        with pytest.raises(BaseExceptionGroup):
            written(Scripted(stopping), wanted, setting, name=name)
        with Journal(tmp_path / name) as journal:
            known = len(journal)
        assert known >= stop_after - 3
        engine = Scripted(lambda prompt, place: answer(prompt, place) + " " * place)
        _, again, _ = written(engine, wanted, setting, name=name)
        assert again == whole
        assert len(engine.prompts) == total - known


def test_an_answer_that_came_late_does_not_feed_the_bank(written) -> None:
    fails = {"on": True}

    def answer(prompt, place):
        along = "Problems like this one" in prompt[-1]["content"]
        if along and number_of(prompt) == 5 and fails["on"]:
            return EngineError("scripted", "no.")
        return reply(prompt, path=["CompareRates", "ScaleUp"] if along and number_of(prompt) == 5 else None)

    first, _, _ = written(Scripted(answer), questions(24), BANK)
    fails["on"] = False
    engine = Scripted(answer)
    second, found, _ = written(engine, questions(24), BANK)
    assert len(engine.prompts) == 1
    assert found[5].candidates[0].path == ("CompareRates", "ScaleUp")
    assert second.bank.pending == first.bank.pending == 0


def test_a_seed_solution_that_came_late_leaves_the_bank_as_it_was(written) -> None:
    wanted = questions(24)
    late = sorted(seed_set(wanted, BANK.seed_share))[0]
    fails = {"on": True}

    def answer(prompt, place):
        along = "Problems like this one" in prompt[-1]["content"]
        if fails["on"] and not along and f"number {late.split('-')[1]}?" in prompt[-1]["content"]:
            return EngineError("scripted", "no.")
        return reply(prompt, path=["CompareRates", "ScaleUp"] if along else None)

    first, found, _ = written(Scripted(answer), wanted, BANK)
    assert any(late in line["questions"] for line in first.bank.to_json()["record"])
    fails["on"] = False
    engine = Scripted(answer)
    second, again, _ = written(engine, wanted, BANK)
    assert len(engine.prompts) == 1
    assert second.bank.to_json() == first.bank.to_json()
    # What came late is one more candidate; nothing else is different.
    place = [each.id for each in wanted].index(late)
    assert {c.text for c in found[place].candidates} < {c.text for c in again[place].candidates}
    assert found[:place] + found[place + 1 :] == again[:place] + again[place + 1 :]


def test_coverage_counts_the_questions_of_guided_requests(written) -> None:
    writer, _, _ = written(Scripted(lambda prompt, place: reply(prompt)), questions(20), BANK)
    assert writer.counts.requests == {"seed": 4, "guided": 16}
    assert writer.coverage().questions == 16


def test_one_late_answer_costs_one_request_however_requests_are_put_together(written) -> None:
    fails = {"on": True}

    def answer(prompt, place):
        if number_of(prompt) == 0 and fails["on"]:
            return EngineError("scripted", "no.")
        return reply(prompt, right="result is known" in prompt[-1]["content"])

    setting = Writing(("steps",), candidates=1, hinted_retry=True, wave=24)
    written(Scripted(answer), questions(24), setting)
    fails["on"] = False
    engine = Scripted(answer)
    written(engine, questions(24), setting)
    assert [number_of(prompt) for prompt in engine.prompts] == [0, 0]


def test_an_answer_of_endless_length_is_wrong_and_not_compared(written, monkeypatch) -> None:
    from rlkd.rationales.write import writing

    compared = []
    monkeypatch.setattr(
        writing, "equal_pairs", lambda pairs: compared.extend(pairs) or [left == right for left, right in pairs]
    )
    engine = Scripted(lambda prompt, place: "#### " + "1" * (100_000 if number_of(prompt) == 2 else 1))
    wanted = [Question(f"q{n}", f"What, number {n}?", "1") for n in (1, 2)]
    writer, found, _ = written(engine, wanted, Writing(("free",)))
    assert (writer.counts.right, writer.counts.wrong) == (1, 1)
    assert max(len(left) for left, _ in compared) == 1
    assert all(each.candidates for each in found)


def test_faithful_is_one_greedy_candidate_along_the_best_path_question_by_question() -> None:
    setting = Writing(("bank",), candidates=4, temperature=1.0, paths_offered=3, faithful=True)
    assert (setting.candidates, setting.temperature, setting.paths_offered, setting.wave) == (1, 0.0, 1, 1)


def test_a_faithful_bank_offers_a_path_to_every_question_and_keeps_wrong_answers(written) -> None:
    setting = Writing(("bank",), faithful=True, seed_share=0.2)
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 2 == 0))
    strange = Question("x", "Zzz qqq, number 99?", "1")
    writer, found, _ = written(engine, [*questions(10), strange], setting)
    assert writer.coverage().share == 1
    assert found[-1].candidates
    assert writer.bank.rules.faithful
    assert all(prompt[-1]["content"].count(" -> ") <= 1 for prompt in engine.prompts)


# The seed set


def test_the_seed_set_is_proportional_by_largest_remainder() -> None:
    sizes = {"a": 60, "b": 30, "c": 10}
    many = [Question(f"{t}{n}", "?", columns={"t": t}) for t, count in sizes.items() for n in range(count)]
    chosen = seed_set(many, 0.05, "t")
    assert sorted(each[0] for each in chosen) == ["a", "a", "a", "b", "b"]
    assert seed_set(list(reversed(many)), 0.05, "t") == chosen
    assert seed_set(many, 0.05, "t", seed=7) != chosen
    assert len(seed_set(many[:3], 0.05)) == 1
    assert seed_set([], 0.5) == frozenset()


def test_a_category_that_no_question_has_is_refused_before_any_request(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt))
    with pytest.raises(UsageError, match=r"category='topci': no question has .* Did you mean 'topic'"):
        written(engine, questions(8), Writing(("bank",), category="topci"))
    assert engine.prompts == []


# Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"route_threshold": 5.0}, "route_threshold=5.0"),
        ({"bank_size": 0}, "bank_size=0.*expected at least 1"),
    ],
)
def test_an_impossible_bank_is_refused_before_any_request(written, changed, message) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt))
    with pytest.raises(UsageError, match=message):
        written(engine, questions(8), BANK, **changed)
    assert engine.prompts == []


@pytest.mark.parametrize(
    ("setting", "changed", "message"),
    [
        (BANK, {"route_threshold": 0.99}, r"route_threshold=0.99.*route \(0.05, expected 0.99\).*rederived"),
        (BANK, {"bank_size": 50}, r"bank_size=50.*cap \(75, expected 50\)"),
        (
            Writing(("bank",), faithful=True),
            {},
            r"faithful \(False, expected True\), cap \(75, expected None\)",
        ),
    ],
)
def test_a_bank_that_is_brought_along_and_other_settings_contradict_each_other(
    written, setting, changed, message
) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt))
    bank = written(engine, questions(8), BANK)[0].bank
    engine.prompts.clear()
    written(engine, questions(8), BANK, bank=bank)
    written(engine, questions(8), BANK, bank=bank, route_threshold=None)
    with pytest.raises(UsageError, match=message):
        written(engine, questions(8), setting, bank=bank, **changed)


def test_one_greedy_retry_beside_ready_rationales_is_no_contradiction(written) -> None:
    setting = Writing(("ready",), candidates=4, temperature=0.0, hinted_retry=True)
    writer, _, _ = written(Scripted(lambda prompt, place: "#### 7001"), [question(1)], setting)
    assert writer.counts.requests == {"hinted": 1}


def test_a_reply_to_a_plan_of_one_step_fits_the_schema() -> None:
    assert SCHEMA["properties"]["budget"]["minimum"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"writers": ("bnak",)}, "writers=.*expected one or more of ready, free, steps, bank"),
        ({"writers": ()}, "writers="),
        ({"writers": ("free", "free")}, "each once"),
        ({"candidates": 0}, "candidates=0: expected at least 1"),
        ({"candidates": 3, "temperature": 0.0}, "3 times the same text"),
        ({"seed_share": 0.0}, "seed_share=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message) -> None:
    with pytest.raises(UsageError, match=message):
        Writing(**changed)


def test_only_writers_that_send_requests_need_a_teacher() -> None:
    with pytest.raises(UsageError, match="need a teacher"):
        Writer(Writing(("free",)))
    [(found, _)] = Writer(Writing(("ready",))).write([Question("q", "?", "1", (candidate("q", "#### 1", "ready"),))])
    assert len(found.candidates) == 1


def test_a_writer_can_be_used_inside_another_event_loop(written) -> None:
    async def inside():
        return written(Scripted(lambda prompt, place: reply(prompt)), [question(1)], STEPS)

    _, [one], _ = asyncio.run(inside())
    assert one.candidates


# Kills

DRIVER = """
import sys
from pathlib import Path
from rlkd.engines import open_engine
from rlkd.embedders import open_embedder
from rlkd.rationales.pipeline import write_stage
from rlkd.rationales.questions import load_questions
from rlkd.rationales.write.writing import Writing

rows, folder, teacher = sys.argv[1:]
write_stage(
    Path(folder),
    load_questions(rows),
    Writing(("free", "bank"), candidates=2, hinted_retry=True, seed_share=0.2, wave=8),
    engine=open_engine(teacher, concurrency=4),
    embedder=open_embedder("hashed-ngrams"),
    route_threshold=0.05,
    concurrency=4,
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_writer_that_is_killed_again_and_again_repeats_nothing_it_knew_and_ends_with_the_same_files(
    tmp_path, kills
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": f"r{n}", "question": f"What is {n} and {3 * n + 1} together?", "answer": str(4 * n + 1)})
            + "\n"
            for n in range(40)
        )
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    names = ["written.jsonl", "dropped.jsonl", "bank.json", "summary.json", "summary.md"]

    def start(folder: str, teacher: ScriptedTeacher) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, str(rows), str(tmp_path / folder), teacher.spec]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)

    whole = ScriptedTeacher()
    assert start("whole", whole).wait(timeout=300) == 0
    whole.shut_down()
    total = len(whole.requests)
    assert len(set(whole.requests)) == total > 150

    teacher = ScriptedTeacher(delay=0.02)
    moments = random.Random(7)
    journal = tmp_path / "cut" / "journal.jsonl"
    repeats_allowed = 0
    try:
        for _ in range(kills):
            process = start("cut", teacher)
            target = teacher.answered + moments.randint(1, total // 12)
            limit = time.monotonic() + 120
            while teacher.answered < target and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(moments.random() * 0.02)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
            time.sleep(0.3)  # what it had sent still arrives
            assert not (tmp_path / "cut" / "written.jsonl").exists()
            known = journal.read_bytes().rpartition(b"\n")[0].decode() if journal.exists() else ""
            with teacher.lock:
                in_flight = {body for body in teacher.requests if mark(body) not in known}
            assert len(in_flight) <= 4
            repeats_allowed += len(in_flight)
        assert start("cut", teacher).wait(timeout=300) == 0
    finally:
        teacher.shut_down()
    assert set(teacher.requests) == set(whole.requests)
    assert len(teacher.requests) - total <= repeats_allowed
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(json.loads(line)["id"] for line in (tmp_path / "cut/written.jsonl").open()) == sorted(
        f"r{n}" for n in range(40)
    )


# Programs


def test_a_program_is_written_without_the_words_around_it(written) -> None:
    engine = Scripted(lambda prompt, place: "Here it is:\n```py\nprint(3 * 4)\n\n```\nIt prints 12.")
    writer, found, _ = written(engine, questions(2), Writing(("program",), temperature=0.0))
    assert [[each.text for each in question.candidates] for question in found] == [
        ["```python\nprint(3 * 4)\n```"]
    ] * 2
    assert {each.source for question in found for each in question.candidates} == {"program"}
    assert (writer.counts.right, writer.counts.wrong) == (0, 0)
    assert "7000" not in engine.sent()


def test_a_hinted_retry_of_programs_is_refused() -> None:
    with pytest.raises(UsageError, match="a program has none before the selector 'program' runs it"):
        Writing(("program",), hinted_retry=True)


# The student's own rationales


def test_the_student_writes_behind_the_prompt_of_its_training(tmp_path) -> None:
    teacher = Scripted(lambda prompt, place: f"#### {7000 + number_of(prompt)}")
    student = Scripted(lambda prompt, place: "#### 1")
    student.name = "pupil"
    settings = Writing(("student", "free"), temperature=0.0)
    with Journal(tmp_path / "journal") as journal:
        writer = Writer(
            settings,
            RationaleTeacher(teacher, journal),
            student=RationaleTeacher(student, journal),
            prompt_style={"system_prompt": "Be short."},
        )
        found = [question for question, _ in writer.write(questions(3))]
    assert [[each.source for each in question.candidates] for question in found] == [["student", "generated"]] * 3
    assert student.prompts == [
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": question.question}]
        for question in found
    ]
    assert len(teacher.prompts) == 3
    assert (writer.counts.right, writer.counts.wrong) == (3, 3)


def test_the_student_alone_needs_no_teacher() -> None:
    assert not Writing(("ready", "student")).needs_teacher
    with pytest.raises(UsageError, match="--student SPEC names it"):
        Writer(Writing(("student",)))
