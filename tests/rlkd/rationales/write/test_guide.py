"""What feeds the bank, and whom it guides."""

import pytest

from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.rationales.records import Question
from rlkd.rationales.write.seeds import seed_set
from rlkd.rationales.write.writing import Writing
from tests.helpers.scripted_writing import BANK, TOPICS, Scripted, number_of, questions, reply


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


def test_a_faithful_bank_offers_a_path_to_every_question_and_keeps_wrong_answers(written) -> None:
    setting = Writing(("bank",), faithful=True, seed_share=0.2)
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 2 == 0))
    strange = Question("x", "Zzz qqq, number 99?", "1")
    writer, found, _ = written(engine, [*questions(10), strange], setting)
    assert writer.coverage().share == 1
    assert found[-1].candidates
    assert writer.bank.rules.faithful
    assert all(prompt[-1]["content"].count(" -> ") <= 1 for prompt in engine.prompts)


def test_a_category_that_no_question_has_is_refused_before_any_request(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt))
    with pytest.raises(UsageError, match=r"category='topci': no question has .* Did you mean 'topic'"):
        written(engine, questions(8), Writing(("bank",), category="topci"))
    assert engine.prompts == []


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
