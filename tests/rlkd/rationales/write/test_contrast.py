"""Contrastive writing: which prompts meet, what becomes of the answers, and which teachers cannot do it."""

from dataclasses import replace

import pytest

from rlkd.engines.transformers import TransformersEngine
from rlkd.errors import UsageError
from rlkd.lab.teacher import StrategyTeacher
from rlkd.rationales.records import Question
from rlkd.rationales.write.contrast import contrasted_prompts, other_answer
from rlkd.rationales.write.journal import Journal
from rlkd.rationales.write.prompts import HINT, free_prompt
from rlkd.rationales.write.teacher import RationaleTeacher
from rlkd.rationales.write.writer import Writer
from rlkd.rationales.write.writing import Writing

QUESTIONS = [
    Question("number", "How many are 3 and 4?", "7"),
    Question("word", "Is it raining?", "yes"),
    Question("none", "Why?", None),
]


def last(prompt) -> str:
    return prompt[-1]["content"]


def test_the_gold_answer_and_another_change_places() -> None:
    towards, away = contrasted_prompts(QUESTIONS[0], 1)
    other = other_answer("number", "7", 1)
    assert last(towards).endswith(HINT.format(answer="7"))
    assert last(away).endswith(HINT.format(answer=other))
    assert contrasted_prompts(QUESTIONS[0], 1, counterfactual=True) == (away, towards)


def test_the_prompt_away_can_show_no_answer() -> None:
    right, wrong = contrasted_prompts(QUESTIONS[0], 1)
    plain = free_prompt(QUESTIONS[0].question)
    assert contrasted_prompts(QUESTIONS[0], 1, empty=True) == (right, plain)
    assert contrasted_prompts(QUESTIONS[0], 1, counterfactual=True, empty=True) == (wrong, plain)


def test_an_answer_without_a_neighbour_is_contrasted_with_none() -> None:
    towards, away = contrasted_prompts(QUESTIONS[1], 1)
    assert last(towards).endswith(HINT.format(answer="yes"))
    assert away == free_prompt("Is it raining?")
    assert contrasted_prompts(QUESTIONS[1], 1, counterfactual=True) is None
    assert contrasted_prompts(QUESTIONS[2], 1) is None


@pytest.mark.parametrize("gold", ["0", "2", "1,000", "2.5", "-4"])
def test_another_answer_is_a_near_number(gold) -> None:
    value = float(gold.replace(",", ""))
    others = [float(other_answer(str(n), gold, 3)) for n in range(50)]
    assert {abs(other - value) for other in others} == {1.0, 2.0, 3.0}
    assert value < 0 or min(others) >= 0


def test_candidates_are_written_in_pairs_and_found_in_the_journal_again(tiny_model, tmp_path) -> None:
    settings = Writing(("contrast", "counterfactual"), candidates=2, temperature=1.0, max_new_tokens=8)
    teacher = TransformersEngine(tiny_model, device="cpu")

    def write() -> tuple[Writer, RationaleTeacher, list[Question]]:
        with Journal(tmp_path / "journal.jsonl") as journal:
            asked = RationaleTeacher(teacher, journal)
            writer = Writer(settings, asked)
            return writer, asked, [question for question, _ in writer.write(QUESTIONS)]

    writer, asked, found = write()
    sources = [[each.source for each in question.candidates] for question in found]
    assert sources == [["contrast"] * 2 + ["counterfactual"] * 2, ["contrast"] * 2, []]
    assert writer.counts.requests == {"contrast": 4, "counterfactual": 2}
    assert asked.sent == 6
    _, again, same = write()
    assert (again.sent, again.known) == (0, 6)
    assert same == found


def test_the_contrast_is_part_of_a_request(tiny_model, tmp_path) -> None:
    teacher = TransformersEngine(tiny_model, device="cpu")
    settings = Writing(("contrast",), temperature=0.0, max_new_tokens=2)
    changes = [{"contrast_weight": 0.9}, {"contrast_plausibility": 0.9}, {"contrast_answer": "empty"}, {}]
    with Journal(tmp_path / "journal.jsonl") as journal:
        for change in changes:
            asked = RationaleTeacher(teacher, journal)
            list(Writer(replace(settings, **change), asked).write(QUESTIONS[:1]))
            assert (asked.sent, asked.known) == (1, 0)


def test_a_teacher_without_contrastive_decoding_is_refused_with_the_way_out(tmp_path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        teacher = RationaleTeacher(StrategyTeacher(), journal)
        with pytest.raises(
            UsageError, match=r"does not give them. Name a teacher in this process \(--teacher transformers"
        ):
            Writer(Writing(("contrast",)), teacher)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("contrast_weight", 1.5, "contrast_weight=1.5: expected a number from 0 to 1"),
        ("contrast_plausibility", -1, "contrast_plausibility=-1: expected a number from 0 to 1"),
        ("contrast_answer", "none", "contrast_answer='none': expected wrong or empty"),
    ],
)
def test_settings_out_of_range_are_refused(key, value, message) -> None:
    with pytest.raises(UsageError, match=message):
        Writing(("contrast",), **{key: value})
