"""Asynchronous rewards."""

import asyncio
import contextlib
import gc
import logging

import pytest

from rewards import RewardError, RewardOptions
from rewards.runner import ASYNC_CALLS, AsyncReward
from tests.helpers.rewards import causes, reused, wrap

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes


def run(reward, completions):
    return asyncio.run(reward(completions=completions))


def test_an_asynchronous_batch_that_takes_too_long_has_failed_and_is_cancelled():
    cancelled = []

    async def slow(completions, **columns):
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    reward = wrap(slow, options={"timeout": 0.1})
    assert run(reward, ["a", "b"]) == [None, None]
    assert causes(reward) == ["took more than 0.1 s"] * 2
    assert cancelled == [True]


def test_of_asynchronous_samples_scored_alone_each_has_the_limit_to_itself():
    async def mixed(completions, **columns):
        if "slow" in completions:
            await asyncio.sleep(600)
        if "bad" in completions:
            raise ConnectionError("no server")
        return [float(len(c)) for c in completions]

    reward = wrap(mixed, options={"timeout": 0.5, "per_sample": True})
    assert isinstance(reward.reward, AsyncReward)
    assert run(reward, ["aa", "slow", "b", "bad", "aa"]) == [2.0, None, 1.0, None, 2.0]
    assert causes(reward) == [None, "took more than 0.5 s", None, "ConnectionError: no server", None]
    assert reused(reward)[-1] == "batch"


@pytest.mark.parametrize(("workers", "most"), [(3, 3), (None, ASYNC_CALLS)])
def test_no_more_asynchronous_calls_run_at_a_time_than_allowed(workers, most):
    now, peak = 0, 0

    async def count(completions, **columns):
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.01)
        now -= 1
        return [1.0]

    reward = wrap(count, options={"per_sample": True, "workers": workers})
    assert run(reward, [str(i) for i in range(100)]) == [1.0] * 100
    assert peak == most


@pytest.mark.parametrize("per_sample", [False, True])
def test_cancellation_from_outside_passes_and_cancels_what_was_running(per_sample):
    ends = []

    async def slow(completions, **columns):
        try:
            await asyncio.sleep(600)
        finally:
            ends.append(completions)

    reward = wrap(slow, options={"per_sample": per_sample})

    async def main():
        task = asyncio.ensure_future(reward(completions=["a", "b"]))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(5):
            await asyncio.sleep(0)
        return len(ends)

    assert asyncio.run(main()) == (2 if per_sample else 1)
    assert reward.outcomes == []


@pytest.mark.slow
def test_an_asynchronous_reward_that_swallows_its_cancellation_stalls_nothing():
    over = []

    async def deaf(completions, **columns):
        while not over:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    reward = wrap(deaf, options={"timeout": 0.1})

    async def main():
        values = await reward(completions=["a"])
        over.append(True)  # for asyncio.run, which waits for whatever is left
        return values

    assert asyncio.run(main()) == [None]
    assert causes(reward) == ["took more than 0.1 s"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_an_asynchronous_reward_passes(stop):
    async def stopped(completions, **columns):
        await asyncio.sleep(0)
        raise stop

    with pytest.raises(stop):
        run(wrap(stopped, options={"per_sample": True}), ["a", "b"])


def test_an_asynchronous_reward_that_breaks_the_contract_ends_the_run_and_its_other_calls():
    ends = []

    async def mixed(completions, **columns):
        try:
            await asyncio.sleep(0.05 if completions == ["bad"] else 600)
        finally:
            ends.append(completions)
        return []

    with pytest.raises(RewardError, match="returned 0 values for 1 completions"):
        run(wrap(mixed, options={"per_sample": True}), ["a", "bad", "b"])
    assert len(ends) == 3


def test_an_asynchronous_reward_that_fails_before_it_begins_has_failed():
    class Broken:
        async def __call__(self, completions, *, needed, **columns):
            return [1.0]

    reward = wrap(Broken())
    reward.reward.required_columns = ()
    assert run(reward, ["a"]) == [None]
    assert causes(reward)[0].startswith("TypeError: ")


def test_an_asynchronous_reward_says_nothing_of_what_nobody_waits_for(caplog):
    async def late(completions, **columns):
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise ValueError("while it cleaned up") from None

    with caplog.at_level(logging.ERROR):
        assert run(wrap(late, options={"timeout": 0.05}), ["a"]) == [None]
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_cached_scores_spare_asynchronous_calls_too(build, file, tmp_path):
    asked = []

    async def judge(completions, **columns):
        asked.extend(completions)
        return [float(len(c)) for c in completions]

    globals()["judge_of_the_module"] = judge
    judge.__qualname__ = "judge_of_the_module"
    try:
        for _ in range(2):
            reward = AsyncReward(
                judge,
                "judge",
                origin=(f"{__name__}.judge_of_the_module", {}),
                options=RewardOptions(per_sample=True),
                cache=tmp_path / "scores.sqlite",
            )
            assert run(reward, ["aa", "b", "aa"]) == [2.0, 1.0, 2.0]
    finally:
        del globals()["judge_of_the_module"]
    assert sorted(asked) == ["aa", "b"]


def test_what_is_cancelled_from_within_has_failed():
    shared = {}

    async def judge(completions, **columns):
        future = shared.setdefault("future", asyncio.get_running_loop().create_future())
        future.cancel()
        await future
        return [1.0]

    reward = wrap(judge, cache=False)
    assert asyncio.run(reward(completions=["a"])) == [None]
    assert reward.outcomes[0].cause == "it was cancelled from within"
