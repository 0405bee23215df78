"""Replicas that die, hang, lie or dawdle: each request is answered once and rightly, or named, in bounded time.

The servers are real processes, so that killing and stopping them is real. `GUARD` ends a test that would wait for
ever; no test depends on how fast the machine is.
"""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlkd.engines import EngineError, Sampling, open_engine, run
from rlkd.engines.server import ServerEngine
from tests.helpers import HELPERS
from tests.helpers.ports import free_port
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.scripted_server import answer_to

pytestmark = pytest.mark.slow

SERVER = HELPERS / "scripted_server.py"
SAMPLING = Sampling(max_new_tokens=8)
PROMPTS = [f"question {number}" for number in range(60)]
GUARD = 60.0


class Process:
    """A scripted server, its port and its log."""

    def __init__(self, folder: Path, name: str, port: int = 0, **settings):
        self.log = folder / f"{name}.log"
        self.log.touch()
        arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, str(SERVER), str(port), str(self.log), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def noted(self, event: str) -> list[str]:
        return [prompt for what, prompt in map(json.loads, self.log.read_text().splitlines()) if what == event]

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start scripted servers; all are ended after the test. Pauses between attempts are cut short."""
    shorten_pauses(monkeypatch, 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = []

    def begin(name: str, port: int = 0, **settings) -> Process:
        started.append(Process(tmp_path, name, port, **settings))
        return started[-1]

    yield begin
    for server in started:
        server.kill()


def engine_of(*servers, **options) -> ServerEngine:
    options = {"concurrency": 4, "timeout": GUARD / 2} | options
    return open_engine(",".join(server.url for server in servers) + "#scripted", **options)


def wait_until(condition) -> None:
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


def in_background(action) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def texts(results) -> list[str]:
    return [str(item) if isinstance(item, EngineError) else item.text for item in results]


EXPECTED = [answer_to(prompt) for prompt in PROMPTS]


def test_replicas_share_the_requests_and_each_is_sent_once(start):
    servers = [start("a", delay=0.01), start("b", delay=0.01), start("c", delay=0.01)]
    assert texts(run(engine_of(*servers).generate(PROMPTS, SAMPLING, deadline=GUARD))) == EXPECTED
    arrived = [server.noted("arrived") for server in servers]
    assert sorted(prompt for log in arrived for prompt in log) == sorted(PROMPTS)
    assert min(map(len, arrived)) >= 10


def test_a_replica_killed_in_mid_batch_costs_nothing(start):
    doomed, other = start("doomed", delay=0.05), start("other", delay=0.05)

    def kill():
        wait_until(lambda: len(doomed.noted("answered")) >= 4)
        doomed.kill()

    killer = in_background(kill)
    results = run(engine_of(doomed, other).generate(PROMPTS, SAMPLING, deadline=GUARD))
    killer.join()
    assert texts(results) == EXPECTED
    # The survivor answered each of its requests once, and what the other finished it was not asked again.
    assert len(set(other.noted("arrived"))) == len(other.noted("arrived"))
    assert set(other.noted("answered")) | set(doomed.noted("answered")) == set(PROMPTS)
    # A request whose answer was on its way when the process died may be in both logs: at most one a slot.
    assert len(set(other.noted("answered")) & set(doomed.noted("answered"))) <= 4


def test_a_replica_that_comes_back_is_used_again(start):
    first, other = start("first", delay=0.02), start("other", delay=0.02)
    engine = engine_of(first, other)
    first.kill()
    assert texts(run(engine.generate(PROMPTS, SAMPLING, deadline=GUARD))) == EXPECTED
    assert first.noted("arrived") == []
    again = start("again", port=first.port, delay=0.02)

    async def until_it_is_used():
        while not again.noted("answered"):
            assert texts(await engine.generate(PROMPTS[:20], SAMPLING, deadline=GUARD)) == EXPECTED[:20]

    run(asyncio.wait_for(until_it_is_used(), GUARD))


def test_a_replica_that_hangs_is_found_out_by_its_silence_and_its_requests_move(start, monkeypatch):
    monkeypatch.setattr("rlkd.engines.replicas._CHECK_EVERY", 0.2)
    monkeypatch.setattr("rlkd.engines.replicas._CHECK_TIMEOUT", 0.3)
    hung, other = start("hung", delay=0.05), start("other", delay=0.05)

    def stop():
        wait_until(lambda: len(hung.noted("answered")) >= 4)
        hung.send(signal.SIGSTOP)

    stopper = in_background(stop)
    # An attempt may take far longer than the test: only the health checks can move the requests.
    engine = engine_of(hung, other, timeout=10 * GUARD)
    results = run(engine.generate(PROMPTS, SAMPLING, deadline=GUARD))
    stopper.join()
    hung.send(signal.SIGCONT)
    assert texts(results) == EXPECTED
    assert len(set(other.noted("arrived"))) == len(other.noted("arrived"))


def test_a_replica_that_hangs_from_the_first_request_is_found_out_without_any_answer(start, monkeypatch):
    monkeypatch.setattr("rlkd.engines.replicas._CHECK_EVERY", 0.2)
    monkeypatch.setattr("rlkd.engines.replicas._CHECK_TIMEOUT", 0.3)
    other, mute = start("other"), start("mute", manner="mute")
    engine = engine_of(other, mute, timeout=10 * GUARD)  # the first is asked for its models, so the second is next
    # One request: nothing but the health checks of the replica that has it can happen meanwhile.
    assert texts(run(engine.generate(PROMPTS[:1], SAMPLING, deadline=GUARD))) == EXPECTED[:1]
    assert mute.noted("arrived") == PROMPTS[:1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_reply_that_the_server_broke_off_is_requested_again(start, count):
    servers = [start("ending", manner="abort"), start("other")][:count]
    assert texts(run(engine_of(*servers).generate(PROMPTS[:8], SAMPLING, deadline=GUARD))) == EXPECTED[:8]
    assert sum(len(server.noted("arrived")) for server in servers) == 9


def test_a_replica_that_hangs_while_it_still_answers_health_checks_costs_one_time_out(start):
    stuck, other = start("stuck", delay=10 * GUARD), start("other", delay=0.01)
    results = run(engine_of(stuck, other, timeout=1.0).generate(PROMPTS, SAMPLING, deadline=GUARD))
    assert texts(results) == EXPECTED
    # After its first time-outs it gets one request at a time, with growing pauses between.
    assert len(stuck.noted("arrived")) <= 8


@pytest.mark.parametrize("manner", ["garbage", "busy", "other"])
def test_a_replica_that_answers_nonsense_or_is_not_a_model_server_costs_nothing(start, manner):
    odd, good = start("odd", manner=manner), start("good", delay=0.01)
    assert texts(run(engine_of(odd, good).generate(PROMPTS, SAMPLING, deadline=GUARD))) == EXPECTED
    assert sorted(good.noted("arrived")) == sorted(PROMPTS)
    assert len(odd.noted("arrived")) < len(PROMPTS) / 2


def test_a_replica_with_another_model_costs_nothing(start):
    other, good = start("other", model="another"), start("good", delay=0.01)
    assert texts(run(engine_of(other, good).generate(PROMPTS, SAMPLING, deadline=GUARD))) == EXPECTED


def test_a_slow_replica_gets_fewer_requests(start):
    slow, fast = start("slow", delay=0.5), start("fast", delay=0.01)
    assert texts(run(engine_of(slow, fast).generate(PROMPTS, SAMPLING, deadline=GUARD))) == EXPECTED
    assert len(slow.noted("arrived")) < len(fast.noted("arrived"))
    assert sorted(slow.noted("arrived") + fast.noted("arrived")) == sorted(PROMPTS)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "another"}, "404: no such model"),
        ({"manner": "garbage"}, "does not follow the protocol"),
        ({"manner": "other"}, "is it a model server, and does the URL end in /v1?"),
        ({"manner": "busy"}, "503: warming up"),
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 2])
def test_where_every_server_fails_each_request_says_why(start, settings, reason, count):
    servers = [start(f"bad-{number}", **settings) for number in range(count)]
    results = run(asyncio.wait_for(engine_of(*servers, retries=2).generate(PROMPTS[:6], SAMPLING), GUARD))
    assert all(isinstance(item, EngineError) and reason in str(item) for item in results), texts(results)
    assert count == 1 or "http://127.0.0.1" in results[0].what  # of several, it is named


def test_where_every_replica_is_gone_the_requests_end_without_a_deadline_too(start):
    servers = [start("a"), start("b")]
    for server in servers:
        server.kill()
    results = run(asyncio.wait_for(engine_of(*servers, retries=2).generate(PROMPTS, SAMPLING), GUARD))
    assert all("no connection" in text for text in texts(results))


def test_a_request_that_is_refused_is_not_carried_from_replica_to_replica(start):
    servers = [start("a"), start("b")]
    results = run(engine_of(*servers).generate(["half a pair: \ud83d", "question"], SAMPLING, deadline=GUARD))
    assert "not valid text" in str(results[0])
    assert results[1].text == answer_to("question")


def test_a_restart_in_mid_batch_is_waited_out_where_the_deadline_allows(start):
    server = start("before", delay=0.05)
    # Without patience, no retry at all: all the waiting comes from the deadline.
    engine = engine_of(server, retries=0)

    def restart():
        wait_until(lambda: len(server.noted("answered")) >= 4)
        server.kill()
        time.sleep(2.0)
        start("after", port=server.port, delay=0.01)

    restarter = in_background(restart)
    results = run(engine.generate(PROMPTS, SAMPLING, deadline=GUARD))
    restarter.join()
    assert texts(results) == EXPECTED


def test_a_server_that_is_still_starting_is_waited_for_where_the_deadline_allows(start):
    port = free_port()
    engine = open_engine(f"http://127.0.0.1:{port}/v1", retries=0)  # its model's name is asked for as well

    def later():
        time.sleep(1.0)
        start("late", port=port)

    starter = in_background(later)
    results = run(engine.generate(PROMPTS[:5], SAMPLING, deadline=GUARD))
    starter.join()
    assert texts(results) == EXPECTED[:5]


def test_an_overloaded_server_is_waited_out_where_the_deadline_allows(start):
    busy = start("busy", manner="busy")
    engine = engine_of(busy, retries=0)

    def recover():
        time.sleep(1.0)
        busy.kill()
        start("well", port=busy.port)

    doctor = in_background(recover)
    results = run(engine.generate(PROMPTS[:5], SAMPLING, deadline=GUARD))
    doctor.join()
    assert texts(results) == EXPECTED[:5]


def test_patience_ends_before_the_deadline_where_it_is_shorter(start):
    engine = open_engine(f"http://127.0.0.1:{free_port()}/v1#scripted", retries=1, patience=0.5)
    results = run(engine.generate(PROMPTS[:5], SAMPLING, deadline=10 * GUARD))
    assert all("no connection" in text for text in texts(results))


def test_a_deadline_that_passes_in_an_outage_names_the_outage(start):
    engine = open_engine(f"http://127.0.0.1:{free_port()}/v1#scripted", retries=0)
    run(engine.generate(PROMPTS[:1], SAMPLING))  # the libraries are loaded
    results = run(engine.generate(PROMPTS[:5], SAMPLING, deadline=1.0))
    assert all("the deadline of 1 s passed" in text and "no connection" in text for text in texts(results))


def test_an_engine_that_gave_a_server_up_tries_it_again_at_the_next_call(start):
    port = free_port()
    engine = open_engine(f"http://127.0.0.1:{port}/v1#scripted", retries=1)
    assert "no connection" in texts(run(engine.generate(["a"], SAMPLING)))[0]
    start("now", port=port)
    assert texts(run(engine.generate(["a"], SAMPLING))) == [answer_to("a")]


def test_the_models_of_replicas_are_those_that_all_have(start, caplog):
    same, gone, another = start("same"), start("gone"), start("another", model="another")
    assert run(engine_of(same, another).models()) == []
    gone.kill()
    assert run(engine_of(same, gone).models()) == ["scripted"]
    assert f"{gone.url}: no connection" in caplog.text
    with pytest.raises(EngineError, match="no connection"):
        run(engine_of(gone, start("a-tmp", manner="busy")).models())


def test_cancelling_a_call_leaves_nothing_running(start):
    servers = [start("a", delay=0.3), start("b", delay=0.3)]
    engine = engine_of(*servers)

    async def cancel():
        task = asyncio.create_task(engine.generate(PROMPTS, SAMPLING))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        busy = [replica.in_flight for replica in engine._connection().all]
        await engine.close()
        return left, busy

    assert asyncio.run(cancel()) == ([], [0, 0])


def test_several_addresses_are_one_spec_one_name_and_one_pickle():
    spec = "http://a:1/v1,http://b:2/v1#teacher"
    engine = open_engine(spec, patience=7.0)
    assert (engine.urls, engine.model, engine.name) == (("http://a:1/v1", "http://b:2/v1"), "teacher", spec)
    again = pickle.loads(pickle.dumps(engine))
    assert (again.name, again.patience) == (spec, 7.0)
    with pytest.raises(ValueError, match="base_url"):
        open_engine("http://a:1/v1,b:2/v1#teacher")
    with pytest.raises(ValueError, match="once"):
        open_engine("http://a:1/v1,http://a:1/v1/#teacher")
    with pytest.raises(ValueError, match="patience"):
        open_engine(spec, patience=-1)
