"""Completions by an engine: the same after any interruption, one by one or in batches, and failures keep the rest."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rlkd.engines import Sampling
from rlkd.errors import UsageError
from rlkd.evaluation.completing import Plan, complete_rows
from rlkd.evaluation.folder import EvaluationFolder, row_record
from tests.helpers.drawn_answers import DrawnAnswers

ROWS = [(f"r{i}", f"question {i}") for i in range(7)]
LINES = [row_record({"id": name, "answer": "2"}, prompt) for name, prompt in ROWS]
PLAN = Plan(Sampling(8, temperature=1.0), samples=2, seed=3, batch=3)


async def completed(path: Path, engine: Any, plan: Plan = PLAN) -> dict[tuple[str, int], Any]:
    with EvaluationFolder(path, {"model": engine.name}, LINES) as folder:
        await complete_rows(engine, ROWS, plan, folder)
        return dict(folder.written)


def in_loop(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


@pytest.mark.parametrize("remote", [False, True])
def test_every_row_has_its_greedy_completion_and_its_samples(tmp_path, remote) -> None:
    engine = DrawnAnswers("m", remote=remote)
    written = in_loop(completed(tmp_path, engine))
    assert set(written) == {(name, number) for name, _ in ROWS for number in range(3)}
    assert engine.log == ([1] * 21 if remote else [3, 3, 1] * 3)
    assert len({each.completion for each in written.values()}) > 1
    for each in written.values():
        assert each.tokens == (8 if each.ended else 9)  # the end token does not count


@pytest.mark.parametrize("remote", [False, True])
def test_an_evaluation_interrupted_at_any_call_ends_as_an_uninterrupted_one(tmp_path, remote) -> None:
    whole = in_loop(completed(tmp_path / "whole", DrawnAnswers("m", remote=remote)))
    for calls in range(9):
        engine = DrawnAnswers("m", remote=remote)
        engine.stop_after = calls
        with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
            in_loop(completed(tmp_path / str(calls), engine))
        engine = DrawnAnswers("m", remote=remote)
        assert in_loop(completed(tmp_path / str(calls), engine)) == whole
        assert len(engine.log) <= (21 if remote else 9)


def test_a_call_of_which_a_kill_left_a_part_is_made_again_and_the_part_stays(tmp_path) -> None:
    whole = in_loop(completed(tmp_path, DrawnAnswers("m")))
    path = tmp_path / "completions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]) + lines[8][:20])  # in the second of three greedy calls of samples
    engine = DrawnAnswers("m")
    assert in_loop(completed(tmp_path, engine)) == whole
    assert engine.log == [3, 3, 1, 3, 3, 1]


def test_more_samples_later_leave_the_earlier_ones_as_they_are(tmp_path) -> None:
    first = in_loop(completed(tmp_path, DrawnAnswers("m")))
    engine = DrawnAnswers("m")
    more = in_loop(completed(tmp_path, engine, Plan(PLAN.sampling, samples=4, seed=3, batch=3)))
    assert {key: more[key] for key in first} == first
    assert sum(engine.log) == 14


def test_failed_requests_are_named_and_sent_again_by_the_next_start(tmp_path) -> None:
    engine = DrawnAnswers("m")
    engine.fails = {"question 4"}
    with pytest.raises(UsageError, match=r"3 of 21 completions are missing, .*no answer"):
        in_loop(completed(tmp_path, engine))
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 18
    assert len(in_loop(completed(tmp_path, DrawnAnswers("m")))) == 21


def test_an_engine_that_only_fails_is_not_asked_for_everything(tmp_path) -> None:
    engine = DrawnAnswers("m", remote=True)
    engine.fails = {"question"}
    plan = Plan(PLAN.sampling, samples=20, concurrency=1)
    with pytest.raises(UsageError, match="147 of 147"):
        in_loop(completed(tmp_path, engine, plan))
    assert len(engine.log) < 30


def test_a_server_that_goes_down_later_ends_the_evaluation_too(tmp_path) -> None:
    in_loop(completed(tmp_path, DrawnAnswers("m", remote=True), Plan(PLAN.sampling, samples=10)))
    engine = DrawnAnswers("m", remote=True)
    engine.fails = {"question"}
    with pytest.raises(UsageError, match="210 of 287"):
        in_loop(completed(tmp_path, engine, Plan(PLAN.sampling, samples=40, concurrency=1)))
    assert len(engine.log) < 30


def test_greedy_completions_can_be_left_out(tmp_path) -> None:
    written = in_loop(completed(tmp_path, DrawnAnswers("m"), Plan(PLAN.sampling, samples=1, greedy=False)))
    assert {number for _, number in written} == {1}
