"""The teacher of the strategy problems: follows a plan, mixes strategies without one, errs as often as it says."""

import json
from collections import Counter

import pytest

from rlkd.answers import extract_answer
from rlkd.embedders import open_embedder
from rlkd.engines import EngineError, Sampling, open_engine, run
from rlkd.errors import UsageError
from rlkd.lab.solutions import STEP_NAMES
from rlkd.lab.strategies import strategy_rows
from rlkd.lab.teacher import StrategyTeacher
from rlkd.rationales.bank.routing import Route
from rlkd.rationales.pipeline import load_questions, write_stage
from rlkd.rationales.write.prompts import SCHEMA, free_prompt, read_reply, step_prompt
from rlkd.rationales.write.writing import Writing

SPEC = "rlkd.lab.teacher.StrategyTeacher"
ROWS = strategy_rows("train", 80)


def replies(engine, prompts, *, steps=True, seed=5):
    sampling = Sampling(temperature=1.0, seed=seed, json_schema=SCHEMA if steps else None)
    return [each.text for each in run(engine.generate(prompts, sampling))]


def test_without_a_plan_strategies_and_names_are_mixed_and_all_answers_right() -> None:
    engine = open_engine(f"{SPEC}#mixed")
    read = [read_reply(text) for text in replies(engine, [step_prompt(row["question"]) for row in ROWS])]
    assert [reply.answer for reply in read] == [row["answer"] for row in ROWS]
    assert len({reply.path for reply in read}) > 30


def test_a_teacher_with_one_strategy_always_names_its_steps_so() -> None:
    read = [read_reply(text) for text in replies(StrategyTeacher("parts"), [step_prompt(r["question"]) for r in ROWS])]
    assert len({reply.path for reply in read}) == 4
    assert {name for reply in read for name in reply.path} <= STEP_NAMES.keys()


def test_it_takes_the_first_path_of_a_plan_that_solves_the_problem() -> None:
    question = next(row["question"] for row in ROWS if row["kind"] == "gap")
    paths = (("AddSizes", "ScaleSum"), ("FindGap", "ScaleGap"), ("WriteGap",))
    plan = Route("comparing", "how many more", paths, 0.5)
    [text] = replies(StrategyTeacher(), [step_prompt(question, plan)])
    assert json.loads(text)["path"] == ["FindGap", "ScaleGap"]


def test_a_free_solution_has_no_names_and_the_share_of_wrong_ones_is_the_given_one() -> None:
    prompts = [free_prompt(row["question"]) for row in ROWS] * 5
    texts = replies(open_engine(f"{SPEC}?wrong=0.25#mixed"), prompts, steps=False)
    assert not any(":" in text for text in texts)
    right = Counter(extract_answer(text) == row["answer"] for text, row in zip(texts, ROWS * 5, strict=True))
    assert right[False] / len(texts) == pytest.approx(0.25, abs=0.07)


def test_the_seed_of_a_request_decides_its_solution() -> None:
    prompts = [step_prompt(row["question"]) for row in ROWS[:20]]
    assert replies(StrategyTeacher(), prompts) == replies(StrategyTeacher(), prompts)
    assert replies(StrategyTeacher(), prompts) != replies(StrategyTeacher(), prompts, seed=6)


@pytest.mark.slow
def test_along_a_bank_solutions_become_alike(tmp_path) -> None:
    paths = {}
    for writer in ("steps", "bank"):
        out = tmp_path / writer
        out.mkdir()
        questions = load_questions("lab-strategies", max_rows=80)
        embedder = open_embedder() if writer == "bank" else None
        settings = Writing((writer,), temperature=1.0, seed_share=0.1)
        part = write_stage(
            out, questions, settings, engine=StrategyTeacher(), embedder=embedder, log=lambda text: None
        )
        assert part["counts"]["right"] == 80
        paths[writer] = part["paths"]
    assert paths["bank"]["entropy_bits"] < paths["steps"]["entropy_bits"] - 1


def test_another_question_and_other_settings_are_refused() -> None:
    [error] = run(StrategyTeacher().generate(["How are you?"], Sampling()))
    assert isinstance(error, EngineError)
    with pytest.raises(UsageError, match="expected mixed or one of parts"):
        StrategyTeacher("best")
    with pytest.raises(UsageError, match="wrong=1"):
        StrategyTeacher(wrong=1)
