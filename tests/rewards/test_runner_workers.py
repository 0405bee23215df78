"""Rewards in worker processes and in this one, and their limits."""

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from rewards import RewardError
from rlkd.workers.pool import IsolationError, WorkerPool
from tests.helpers import ROOT
from tests.helpers.rewards import build_reward, causes, reused, wrap

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes


HANGS = ["aa", "spin", "b", "sleep", "exit", "raise x", "failed why", "none", "nan", "ccc"]
VALUES = [2.0, None, 1.0, None, None, None, None, None, None, 3.0]
CAUSES = [
    None,
    "took more than 1 s",
    None,
    "took more than 1 s",
    "the worker process died (exit code 3)",
    "ConnectionError: no server for x",
    "why",
    None,
    "returned nan, which is no score",
    None,
]


@pytest.mark.slow
def test_of_samples_scored_alone_each_fails_alone_with_its_own_cause(build):
    reward = build("alone", timeout=1.0, workers=2)
    assert reward(completions=HANGS) == VALUES
    assert causes(reward) == CAUSES
    statuses = [outcome.status for outcome in reward.outcomes]
    assert statuses == ["score", *["failed"] * 1, "score", *["failed"] * 4, "not_applicable", "failed", "score"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["thread", "asyncio"])
def test_limits_hold_off_the_main_thread(build, where):
    reward = build("alone", timeout=1.0, workers=2)
    if where == "asyncio":
        outcomes = asyncio.run(asyncio.to_thread(reward.score, completions=HANGS))
    else:
        got = []
        thread = threading.Thread(target=lambda: got.append(reward.score(completions=HANGS)))
        thread.start()
        thread.join()
        [outcomes] = got
    assert [outcome.value for outcome in outcomes] == VALUES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "cause"), [("spin", "took more than 1 s"), ("exit", "the worker process died (exit code 3)")]
)
def test_of_a_batch_that_is_scored_as_one_all_have_failed(build, bad, cause):
    reward = build("together", timeout=1.0)
    assert reward(completions=["aa", bad, "b"]) == [None] * 3
    assert causes(reward) == [cause] * 3
    assert reward(completions=["aa", "b"]) == [2.0, 1.0]


def test_a_mistake_in_a_worker_ends_the_run(build):
    reward = build("alone")
    with pytest.raises(RewardError, match=r"reward 'alone' returned 'a text' \(str\) for sample 0"):
        reward(completions=["aa", "mistake"])
    with pytest.raises(RewardError, match="set up wrongly: 1, 2"):
        reward(completions=["broken"])
    assert reward(completions=["aa"]) == [2.0]


def test_a_detail_that_does_not_pickle_or_is_no_mapping_ends_nothing(build):
    reward = build("alone", cached=True)
    assert reward(completions=["detail a b", "twice x"]) == [0.5, 0.5]
    assert reward.outcomes[0].detail == {"words": ["a", "b"]}
    assert reward(completions=["detail a b", "twice x"]) == [0.5, 0.5]
    assert reused(reward) == ["cache", None]
    assert reward.outcomes[0].detail == {"words": ["a", "b"]}


@pytest.mark.slow
def test_latencies_are_those_of_the_samples(build):
    logged = {}
    reward = build("alone", timeout=1.0, workers=2)
    reward(completions=["a", "sleep", "b", "a"], log_metric=logged.__setitem__)
    assert logged["rewards/alone/failed"] == 0.25
    assert logged["rewards/alone/reused_batch"] == 0.25
    assert logged["rewards/alone/reused_cache"] == 0.0
    assert 0 <= logged["rewards/alone/seconds_p50"] < logged["rewards/alone/seconds_p95"] <= 1.0


# Where a reward runs


@pytest.mark.parametrize(("isolate", "here"), [(None, False), (True, False), (False, True)])
def test_a_reward_that_is_named_by_a_spec_runs_in_a_worker_by_default(build, isolate, here):
    reward = build("together", isolate=isolate)
    assert (reward(completions=["pid"]) == [float(os.getpid())]) is here


def pid(completions, **columns):
    return [float(os.getpid())] * len(completions)


@pytest.mark.parametrize(("isolate", "here"), [(None, True), (True, False), (False, True)])
def test_a_reward_that_is_handed_over_runs_here_by_default(isolate, here):
    reward = wrap(pid, options={"isolate": isolate})
    assert (reward(completions=["a"]) == [float(os.getpid())]) is here
    reward.close()


def test_a_worker_is_started_when_a_run_checks_what_it_needs(build):
    reward = build("together")
    reward.check_ready()
    assert len(reward._pool._idle) == 1
    reward.close()
    assert reward(completions=["aa"]) == [2.0]


@pytest.mark.parametrize("ask", ["check_ready", "score"])
def test_a_reward_that_no_worker_can_load_runs_here_with_one_warning(build, ask, caplog):
    reward = build("Homebound")
    with caplog.at_level(logging.WARNING):
        if ask == "check_ready":
            reward.check_ready()
        for _ in range(2):
            assert reward(completions=["aa", "b"]) == [2.0, 1.0]
    [record] = caplog.records
    assert "reward 'Homebound' runs in this process" in record.getMessage()
    assert "does not load in a worker process" in record.getMessage()
    assert "there is one such device" in record.getMessage()


@pytest.mark.parametrize("ask", ["check_ready", "score"])
def test_a_reward_that_no_worker_can_load_is_an_error_where_isolation_is_requested(build, ask):
    reward = build("Homebound", isolate=True)
    with pytest.raises(
        RewardError, match=r"reward 'Homebound' cannot run in a worker process: .*one such device"
    ) as e:
        reward.check_ready() if ask == "check_ready" else reward(completions=["aa"])
    assert "reward_options: {Homebound: {isolate: false}}" in str(e.value)


def test_arguments_that_no_worker_can_have_let_a_reward_run_here(build, caplog):
    reward = build("together")
    with caplog.at_level(logging.WARNING):
        assert reward(completions=["aa"], environments=[threading.Lock()]) == [2.0]
    assert "an argument cannot be sent to a worker process" in caplog.text


def test_a_spec_takes_what_does_not_pickle_to_a_worker(build):
    assert build("only_here", isolate=True)(completions=["aa", "b"]) == [2.0, 1.0]


@pytest.mark.parametrize("imported", [False, True])
def test_a_reward_that_the_main_script_or_a_module_of_it_registers_runs_in_a_worker(tmp_path, imported):
    definition = """
    import os
    from rewards import RewardOptions, reward
    OFFSET = 1

    @reward("worker_id")
    def worker_id(completions, *, more=0, **columns):
        return [float(os.getpid() + OFFSET - 1 + more)] * len(completions)
    """
    use = """
    import os
    from rewards import build_reward
    for parameters in ({}, {"more": 10**9}):
        built = build_reward("worker_id", parameters, {"isolate": True}, cache=False)
        [value] = built(completions=["a"])
        assert value != os.getpid() and (value > 10**9) == bool(parameters), value
    print("in a worker")
    """
    definition, use = textwrap.dedent(definition), textwrap.dedent(use)
    (tmp_path / "mine.py").write_text(definition)
    (tmp_path / "script.py").write_text((f"import mine\n{use}") if imported else definition + use)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "in a worker\n", done.stderr


def test_a_call_in_this_process_that_takes_too_long_is_logged_and_scored():
    told, released = [], threading.Event()

    def slow(completions, **columns):
        released.wait(60)
        return [1.0] * len(completions)

    class Telling(logging.Handler):
        def emit(self, record):
            told.append(record.getMessage())
            released.set()

    handler = Telling()
    logging.getLogger("rewards.runner").addHandler(handler)
    try:
        assert wrap(slow, options={"timeout": 0.05})(completions=["a"]) == [1.0]
    finally:
        logging.getLogger("rewards.runner").removeHandler(handler)
    assert "reward 'slow': one call has been running for 0.05 s in this process" in told[0]


def test_of_samples_scored_alone_in_this_process_one_that_raises_takes_no_other_along():
    def picky(completions, **columns):
        return [1 / len(c) for c in completions]

    reward = wrap(picky, options={"per_sample": True})
    assert reward(completions=["aa", "", "a"]) == [0.5, None, 1.0]
    assert causes(reward)[1] == "ZeroDivisionError: division by zero"


def test_an_exception_that_cannot_be_printed_is_a_failure():
    class RudeError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def rude(completions, **columns):
        raise RudeError

    async def rude_later(completions, **columns):
        raise RudeError

    reward = wrap(rude)
    assert reward(completions=["a"]) == [None]
    assert causes(reward) == ["RudeError"]
    reward = wrap(rude_later)
    assert asyncio.run(reward(completions=["a"])) == [None]
    assert causes(reward) == ["RudeError"]


def test_once_isolated_a_reward_never_comes_back_to_this_process(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("def mine(completions, **columns):\n    return [1.0] * len(completions)\n")
    reward = build_reward(f"{path}:mine", cache=False)
    assert reward(completions=["a"]) == [1.0]

    def no_worker(*arguments, **settings):
        raise IsolationError("no process can be started")

    monkeypatch.setattr(WorkerPool, "map", no_worker)
    assert reward(completions=["a"]) == [None]
    assert reward.outcomes[0].cause == "no process can be started"
    assert reward.is_isolated
