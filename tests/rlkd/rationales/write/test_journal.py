"""The journal and its teacher: no answer is lost, no request is sent twice, failures are reported."""

import asyncio
import json
from pathlib import Path

import pytest

from rlkd.engines import Completion, Engine, EngineError, Sampling
from rlkd.engines.server import ServerEngine
from rlkd.errors import UsageError
from rlkd.rationales.write.journal import Journal, JournalError
from rlkd.rationales.write.teacher import RationaleTeacher, Request

SAMPLED = Sampling(max_new_tokens=8, temperature=0.7)
GREEDY = Sampling(max_new_tokens=8)


class Scripted(Engine):
    """An engine that answers with prompt, seed and index, and fails on prompts that say so."""

    name = "scripted"
    guided = False

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.broken: set[str] = set()

    async def generate(self, prompts, sampling, *, deadline=None):
        self.calls.append(list(prompts))
        return [
            EngineError("scripted", f"no answer to {prompt}.")
            if prompt in self.broken
            else Completion(f"{prompt}|{sampling.seed}|{index}", "stop", 3)
            for index, prompt in enumerate(prompts)
        ]


def requests(count: int, sampling: Sampling = SAMPLED, prompt: str = "p{}") -> list[Request]:
    return [Request(f"q{n}", "free", 0, prompt.format(n), sampling) for n in range(count)]


def send(path: Path, engine: Scripted, wanted: list[Request], **settings) -> list:
    with Journal(path) as journal:
        return asyncio.run(RationaleTeacher(engine, journal, **settings).ask(wanted))


def texts(answers: list) -> list[str | None]:
    return [answer.completion and answer.completion.text for answer in answers]


def test_answers_in_the_journal_are_not_requested_again(tmp_path) -> None:
    engine = Scripted()
    first = send(tmp_path / "j", engine, requests(10), batch=4)
    assert [len(call) for call in engine.calls] == [4, 4, 2]
    engine.calls.clear()
    assert send(tmp_path / "j", engine, requests(10), batch=4) == first
    assert engine.calls == []


def test_a_sampled_answer_depends_on_its_seed_and_not_on_what_was_answered_before(tmp_path) -> None:
    whole = send(tmp_path / "whole", Scripted(), requests(10), batch=4)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    # The first and the last call are there, the middle one is not.
    (tmp_path / "cut").write_bytes(lines[0] + lines[2])
    engine = Scripted()
    assert send(tmp_path / "cut", engine, requests(10), batch=4) == whole
    assert engine.calls == [["p4", "p5", "p6", "p7"]]
    other = send(tmp_path / "other", Scripted(), requests(10), batch=4, seed=43)
    assert not set(texts(other)) & set(texts(whole))


def test_numbers_and_stages_draw_apart(tmp_path) -> None:
    wanted = [Request("q", stage, n, "same", SAMPLED) for stage in ("free", "hinted") for n in (0, 1, 2)]
    assert len(set(texts(send(tmp_path / "j", Scripted(), wanted, batch=1)))) == 6


def test_equal_greedy_requests_are_sent_once(tmp_path) -> None:
    engine = Scripted()
    answers = send(tmp_path / "j", engine, requests(5, GREEDY, "same"), batch=2)
    assert [prompt for call in engine.calls for prompt in call] == ["same"]
    assert len(set(texts(answers))) == 1


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_torn_last_line_is_removed_and_only_that_is_requested_again(tmp_path, lost) -> None:
    path = tmp_path / "j"
    whole = send(path, Scripted(), requests(6), batch=2)
    path.write_bytes(path.read_bytes()[:-lost])
    engine = Scripted()
    assert send(path, engine, requests(6), batch=2) == whole
    assert engine.calls == [["p4", "p5"]]
    assert [len(json.loads(line)["answers"]) for line in path.read_text().splitlines()] == [2, 2, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path) -> None:
    path = tmp_path / "j"
    send(path, Scripted(), requests(6), batch=2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"answers": {"ab\n' + lines[2])
    with pytest.raises(JournalError, match=r"j, line 2: not a line of a journal .*Delete that line"):
        Journal(path)
    path.write_bytes(lines[0] + b'{"other": 1}\n' + lines[2])
    with pytest.raises(JournalError, match=r"line 2: .*neither answers"):
        Journal(path)


@pytest.mark.parametrize(
    "content",
    [
        '{"my": "only copy"}\n',
        "notes without an end",
        '["answers"]\n',
        '{"answers": 5}\n',
        '{"answers": ["a"]}\n',
        '{"passed_over": 3}\n',
        '{"answers": {"a": {"nope": 1}}}\n',
        '{"answers": {"%s": {"nope": 1}}}\n' % ("0" * 64),
        '{"answers": {"%s": {"text": "a", "finish_reason": "stop", "n_tokens": "1"}}}\n' % ("0" * 64),
        '{"passed_over": {"%s": 1}}\n' % ("0" * 64),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, content) -> None:
    path = tmp_path / "j"
    path.write_text(content)
    with pytest.raises(JournalError, match="j, line 1: not a line of a journal"):
        Journal(path)
    assert path.read_text() == content


def test_two_processes_do_not_write_one_journal(tmp_path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(JournalError, match="another process"):
        Journal(tmp_path / "j")
    with Journal(tmp_path / "j"):
        pass


def test_a_failure_costs_its_own_request_and_is_sent_again_by_the_next_start(tmp_path) -> None:
    engine = Scripted()
    engine.broken = {"p3"}
    path = tmp_path / "j"
    answers = send(path, engine, requests(30), batch=1)
    assert [n for n, answer in enumerate(answers) if answer.completion is None] == [3]
    assert "no answer to p3" in answers[3].error
    engine.broken.clear()
    engine.calls.clear()
    again = send(path, engine, requests(30), batch=1)
    assert engine.calls == [["p3"]]
    # The run went on without it, and may not change its mind.
    assert [n for n, answer in enumerate(again) if answer.late] == [3]
    assert [a for n, a in enumerate(again) if n != 3] == [a for n, a in enumerate(answers) if n != 3]
    assert send(path, engine, requests(30), batch=1) == again


class Slow(Scripted):
    """Fails at once, and takes its time for an answer."""

    async def generate(self, prompts, sampling, *, deadline=None):
        if not set(prompts) & self.broken:
            for _ in range(50):
                await asyncio.sleep(0)
        return await super().generate(prompts, sampling, deadline=deadline)


@pytest.mark.parametrize("broken", [{"p0"}, {"p0", "p1", "p2"}])
def test_a_failure_that_comes_before_all_answers_costs_no_other_request(tmp_path, broken) -> None:
    engine = Slow()
    engine.broken = broken
    answers = send(tmp_path / "j", engine, requests(64), batch=1, concurrency=16)
    assert {f"p{n}" for n, answer in enumerate(answers) if answer.completion is None} == broken
    assert all(answer.error for answer in answers if answer.completion is None)
    assert sorted(prompt for call in engine.calls for prompt in call) == sorted(f"p{n}" for n in range(64))


def test_requests_that_waited_while_too_many_failed_are_sent_once_answers_come(tmp_path) -> None:
    engine = Slow()
    # Twenty quick failures stop what waits; the answers that were under way make them few.
    engine.broken = {f"p{n}" for n in range(190, 210)}
    answers = send(tmp_path / "j", engine, requests(400), batch=1, concurrency=300)
    assert sum(map(len, engine.calls)) == 400
    assert [answer.error is None for answer in answers] == [n not in range(190, 210) for n in range(400)]


def test_a_request_that_always_fails_does_not_keep_a_run_from_starting_again(tmp_path) -> None:
    engine = Scripted()
    engine.broken = {"p3"}
    path = tmp_path / "j"
    for _ in range(2):
        with Journal(path) as journal:
            teacher = RationaleTeacher(engine, journal, batch=1)
            for start in range(0, 200, 10):
                answers = asyncio.run(teacher.ask(requests(200)[start : start + 10]))
                assert [answer.completion is None for answer in answers] == [start + n == 3 for n in range(10)]
            teacher.check()
    assert engine.calls.count(["p3"]) == 2
    assert len(engine.calls) == 201


def test_a_run_that_was_killed_before_its_failure_was_noted_starts_again_too(tmp_path) -> None:
    engine = Scripted()
    path = tmp_path / "j"
    send(path, engine, requests(60)[1:], batch=1)
    engine.broken = {"p0"}
    assert [answer.error is None for answer in send(path, engine, requests(60), batch=1)] == [False] + [True] * 59


def test_more_requests_and_other_batches_send_only_new_requests(tmp_path) -> None:
    def wanted(questions: range, candidates: int) -> list[Request]:
        return [Request(f"q{q}", "free", n, f"p{q}", SAMPLED) for q in questions for n in range(candidates)]

    def new(settings: list[Request], batch: int) -> int:
        engine = Scripted()
        found.append(texts(send(tmp_path / "j", engine, settings, batch=batch)))
        return sum(map(len, engine.calls))

    found: list[list] = []
    assert new(wanted(range(24), 2), 8) == 48
    assert new(wanted(range(24), 3), 8) == 24
    assert [text for n, text in enumerate(found[1]) if n % 3 < 2] == found[0]
    assert len(set(found[1])) == 72
    assert new(wanted(range(1, 24), 2), 8) == 0
    assert new(wanted(range(24), 3), 5) == 0
    assert new(wanted(range(26), 3), 8) == 6


def test_a_part_of_a_call_that_is_sent_again_repeats_no_draw(tmp_path) -> None:
    engine = Scripted()
    wanted = [Request("q", "free", n, f"p{n}", SAMPLED) for n in range(4)]
    engine.broken = {"p3"}
    first = send(tmp_path / "j", engine, wanted, batch=4, max_failure_rate=0.5)
    engine.broken.clear()
    again = send(tmp_path / "j", engine, wanted, batch=4)
    drawn = {text.partition("|")[2] for text in texts(again)}
    assert len(drawn) == 4
    assert texts(again)[:3] == texts(first)[:3]


def test_too_many_failures_stop_the_run_and_pass_nothing_over(tmp_path) -> None:
    engine = Scripted()
    engine.broken = {f"p{n}" for n in range(0, 30, 2)}
    path = tmp_path / "j"
    with pytest.raises(UsageError, match=r"of \d+ requests failed, more than max_failure_rate 0.1.*no answer to p"):
        send(path, engine, requests(30), batch=1)
    engine.broken.clear()
    assert not any(answer.late for answer in send(path, engine, requests(30), batch=1))


def test_a_server_that_is_away_is_given_up_before_everything_has_been_tried(tmp_path) -> None:
    engine = Scripted()
    engine.broken = {f"p{n}" for n in range(500)}
    with pytest.raises(UsageError, match="the same command again"):
        send(tmp_path / "j", engine, requests(500), batch=1, concurrency=4)
    assert len(engine.calls) < 30


def test_few_failures_among_few_requests_are_reported_at_the_end(tmp_path) -> None:
    engine = Scripted()
    engine.broken = {"p1"}
    with Journal(tmp_path / "j") as journal:
        teacher = RationaleTeacher(engine, journal, batch=1)
        asyncio.run(teacher.ask(requests(4)))
        with pytest.raises(UsageError, match="1 of 4 requests failed"):
            teacher.check()


def test_a_server_that_moved_is_the_same_teacher(tmp_path) -> None:
    with Journal(tmp_path / "j") as journal:
        names = {
            RationaleTeacher(ServerEngine(f"http://127.0.0.1:{port}/v1", "teacher"), journal).name
            for port in (8000, 8001)
        }
    assert names == {"teacher"}


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"batch": 0}, {"max_failure_rate": 1.5}])
def test_settings_out_of_range_are_refused(tmp_path, settings) -> None:
    with Journal(tmp_path / "j") as journal, pytest.raises(UsageError, match="expected"):
        RationaleTeacher(Scripted(), journal, **settings)
