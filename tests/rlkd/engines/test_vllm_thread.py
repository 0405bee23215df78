"""The thread that owns a model under vLLM, with vLLM's engine played by a small object: whatever breaks, callers get
an error and the next call an answer. `GUARD` ends a test that would wait for ever."""

import asyncio
import multiprocessing
from types import SimpleNamespace

import pytest

from rlkd.engines import EngineError
from rlkd.engines.vllm import VLLMEngine
from rlkd.engines.vllm_thread import PromptPart, VLLMJob, VLLMModel

GUARD = 20.0


class FakeEngine:
    """Answers each request at the next step, with its ids, unless it is `stuck`; `abort_fails` as after a crash."""

    def __init__(self, stuck: bool = False, abort_fails: bool = False) -> None:
        self.stuck = stuck
        self.abort_fails = abort_fails
        self.waiting: dict[str, list[int]] = {}

    def add_request(self, name, given, params, lora_request=None):
        self.waiting[name] = given["prompt_token_ids"]

    def abort_request(self, names):
        if self.abort_fails:
            raise RuntimeError("the engine core is dead")

    def step(self):
        if self.stuck:
            return []
        waiting, self.waiting = self.waiting, {}
        return [SimpleNamespace(request_id=name, finished=True, ids=ids) for name, ids in waiting.items()]


@pytest.fixture
def loads(monkeypatch):
    """What the next loads give: an engine, or an exception to raise. Once they are used up, a good engine."""
    coming: list = []

    def load(settings):
        given = coming.pop(0) if coming else FakeEngine()
        if isinstance(given, BaseException):
            raise given
        return VLLMModel(given, None, 100, None)

    monkeypatch.setattr("rlkd.engines.vllm_thread.load", load)
    return coming


def ask(engine, *ids, deadline=GUARD):
    """One request for each of the ids, which a good engine answers with the same ids."""
    jobs = [VLLMJob(lambda loaded, one=one: PromptPart([one], None), lambda part, output: output.ids) for one in ids]
    return engine._answer(jobs, False, deadline)


@pytest.mark.parametrize("error", [RuntimeError("no driver"), OSError("no file"), SystemExit(1)], ids=repr)
def test_a_load_that_raises_anything_fails_the_calls_and_the_next_one_loads_again(loads, error):
    loads.append(error)
    engine = VLLMEngine("some/model")

    async def calls():
        first = await ask(engine, 1, 2)
        return first, await ask(engine, 3)

    first, second = asyncio.run(calls())
    assert all(isinstance(item, EngineError) and type(error).__name__ in str(item) for item in first), first
    assert second == [[3]]
    asyncio.run(engine.close())


@pytest.mark.slow
def test_an_engine_that_cannot_even_abort_fails_what_runs_and_is_replaced(loads):
    loads.append(FakeEngine(stuck=True, abort_fails=True))
    engine = VLLMEngine("some/model")

    async def calls():
        others = asyncio.create_task(ask(engine, 1, 2))
        await ask(engine, 3, deadline=0.2)  # its requests are aborted when it has gone
        return await others, await ask(engine, 4)

    others, after = asyncio.run(calls())
    assert all("vLLM failed (RuntimeError: the engine core is dead)" in str(item) for item in others)
    assert after == [[4]]
    asyncio.run(engine.close())


def test_a_thread_that_has_ended_is_replaced(loads):
    engine = VLLMEngine("some/model")
    assert asyncio.run(ask(engine, 1)) == [[1]]
    engine._thread.inbox.put(None)
    engine._thread.thread.join(GUARD)
    assert asyncio.run(ask(engine, 2)) == [[2]]
    asyncio.run(engine.close())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads
def test_a_forked_process_has_a_thread_of_its_own(loads):
    engine = VLLMEngine("some/model")
    assert asyncio.run(ask(engine, 1)) == [[1]]

    def answer() -> None:
        assert asyncio.run(ask(engine, 2)) == [[2]]

    child = multiprocessing.get_context("fork").Process(target=answer)
    child.start()
    child.join(2 * GUARD)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    asyncio.run(engine.close())
