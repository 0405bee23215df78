"""Columns, outcomes, equal samples, logs and pickling of rewards."""

import asyncio
import itertools
import logging
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl.rewards import think_format_reward

from rewards import BUILT_IN, Failed, Reward, RewardError, Scored
from tests.helpers import ROOT
from tests.helpers.reward_files import calls
from tests.helpers.rewards import BUILT_IN_PARAMETERS, build_reward, call, causes, chat, reused, statuses, wrap

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes


# Columns


def test_a_column_that_the_data_lacks_is_an_error_before_and_during_a_run(forms):
    reward = build_reward(f"{forms}:needs_level")
    message = r"reward 'needs_level' needs the column 'level', which the data does not have\. Did you mean 'levels'"
    with pytest.raises(RewardError, match=message):
        reward.check_columns(["levels"])
    with pytest.raises(RewardError, match="needs the column 'level'"):
        call(reward, "a")
    reward.check_columns(["level"])
    assert call(reward, "a", level=[3]) == [3.0]


def test_a_reward_gets_only_the_columns_that_it_names():
    seen = {}

    def narrow(completions, level):
        seen.update(completions=completions, level=level)
        return [0.0] * len(completions)

    call(wrap(narrow), "a", level=[1], other=[2])
    assert set(seen) == {"completions", "level"}


def test_a_reward_that_takes_anything_gets_everything():
    seen = {}

    def wide(**columns):
        seen.update(columns)
        return [0.0]

    call(wrap(wide), "a", level=[1], trainer_state="state")
    assert set(seen) == {"prompts", "completions", "completion_ids", "level", "trainer_state"}


# Outcomes


def test_the_three_outcomes_are_distinguished():
    def mixed(completions, **columns):
        return [0.0, None, Failed("server is down"), Scored(0.5, {"steps": 2})]

    reward = wrap(mixed)
    assert call(reward, *"abcd") == [0.0, None, None, 0.5]
    assert statuses(reward) == ["score", "not_applicable", "failed", "score"]
    assert reward.outcomes[2].cause == "server is down"
    assert reward.outcomes[3].detail == {"steps": 2}


def raising(completions, **columns):
    raise ConnectionError("judge is down")


async def raising_later(completions, **columns):
    raise ConnectionError("judge is down")


def raising_on_the_way(completions, **columns):
    yield 1.0
    raise ConnectionError("judge is down")


@pytest.mark.parametrize("function", [raising, raising_later, raising_on_the_way])
def test_a_body_that_raises_has_failed_on_every_sample_and_never_scores_zero(function):
    reward = wrap(function)
    assert call(reward, "a", "b") == [None, None]
    assert statuses(reward) == ["failed", "failed"]
    assert {outcome.cause for outcome in reward.outcomes} == {"ConnectionError: judge is down"}


def test_failures_and_what_does_not_apply_are_logged_as_shares():
    logged = {}

    def mixed(completions, **columns):
        return [1.0, None, Failed("x"), Failed("y")]

    call(wrap(mixed, "mine"), *"abcd", log_metric=logged.__setitem__)
    assert (logged["rewards/mine/failed"], logged["rewards/mine/not_applicable"]) == (0.5, 0.25)
    assert logged["rewards/mine/seconds_p95"] >= logged["rewards/mine/seconds_p50"] > 0
    logged.clear()
    call(wrap(raising, "mine"), *"ab", log_metric=logged.__setitem__)
    assert logged == {"rewards/mine/failed": 1.0, "rewards/mine/not_applicable": 0.0}


def test_a_cause_is_logged_once(caplog):
    reward = wrap(raising)
    with caplog.at_level(logging.WARNING):
        call(reward, "a", "b")
        call(reward, "c")
    assert [record.getMessage() for record in caplog.records] == [
        "reward 'raising' failed: ConnectionError: judge is down (counted as missing, never as 0)"
    ]


def test_outcomes_are_those_of_the_last_call():
    replies = iter([[1.0, 2.0], [None]])
    reward = wrap(lambda completions, **columns: next(replies), "mine")
    call(reward, "a", "b")
    call(reward, "c")
    assert statuses(reward) == ["not_applicable"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_is_nobodys_failure(stop):
    def function(completions, **columns):
        raise stop

    reward = wrap(function)
    with pytest.raises(stop):
        reward(completions=chat("a"))
    assert reward.outcomes == []


def test_a_cancelled_asynchronous_reward_is_cancelled_inside_and_has_not_failed():
    ended = []

    async def slow(completions, **columns):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    reward = wrap(slow)

    async def cancel():
        task = asyncio.ensure_future(reward(completions=chat("a")))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # the inner one ends in the next turn of the loop

    asyncio.run(cancel())
    assert ended == [True]
    assert reward.outcomes == []


@pytest.mark.parametrize("returned", [[], [1.0], [1.0] * 3])
def test_a_wrong_number_of_scores_is_an_error_that_names_the_reward(returned):
    reward = wrap(lambda completions, **columns: returned, "mine")
    with pytest.raises(RewardError, match=rf"reward 'mine' returned {len(returned)} values for 2 completions"):
        call(reward, "a", "b")


@pytest.mark.parametrize("returned", [None, 1.0])
def test_a_single_value_is_no_list_of_scores(returned):
    with pytest.raises(RewardError, match=rf"reward 'mine' returned {returned}; expected a list of 2"):
        call(wrap(lambda completions, **columns: returned, "mine"), "a", "b")


def test_a_text_in_a_scores_place_ends_the_run():
    with pytest.raises(RewardError, match=r"reward 'mine' returned '0.5' .* for sample 1"):
        call(wrap(lambda completions, **columns: [0.5, "0.5"], "mine"), "a", "b")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_has_failed_for_its_sample_only(bad):
    reward = wrap(lambda completions, **columns: [0.5, bad], "mine")
    assert call(reward, "a", "b") == [0.5, None]
    assert statuses(reward) == ["score", "failed"]


def test_a_reward_error_of_the_reward_itself_ends_the_run():
    def confused(completions, **columns):
        raise RewardError("set up wrongly")

    with pytest.raises(RewardError, match="set up wrongly"):
        call(wrap(confused), "a")


def test_an_empty_batch_has_no_outcomes_and_no_metrics():
    logged = {}
    reward = build_reward("tag_count")
    assert call(reward, log_metric=logged.__setitem__) == []
    assert logged == {}


def test_a_lazy_result_whose_body_raises_has_failed():
    class Lazy:
        def __iter__(self):
            return self

        def __next__(self):
            return 1 / 0

    reward = wrap(lambda completions, **columns: Lazy(), "lazy")
    assert reward(completions=["a", "b"]) == [None, None]
    assert [outcome.cause for outcome in reward.outcomes] == ["ZeroDivisionError: division by zero"] * 2


def test_outcomes_of_a_reward_in_this_process_may_hold_anything():
    lock = threading.Lock()
    reward = wrap(lambda completions, **columns: [Scored(0.5, {"lock": lock}), Failed("x")], "mine")
    assert reward(completions=["a", "b"]) == [0.5, None]
    assert reward.outcomes[0].detail["lock"] is lock


def test_a_reward_that_calls_exit_has_failed():
    def leaves(completions, **columns):
        raise SystemExit(3)

    reward = wrap(leaves, cache=False)
    assert reward(completions=["a"]) == [None]
    assert "SystemExit" in reward.outcomes[0].cause


# Equal samples


@pytest.mark.parametrize("isolate", [True, False])
def test_equal_samples_are_scored_once(build, file, isolate):
    reward = build("alone", isolate=isolate)
    assert reward(completions=["aa", "b", "aa", "aa", "b", "ccc"]) == [2.0, 1.0, 2.0, 2.0, 1.0, 3.0]
    assert sorted(calls(file)) == ["aa", "b", "ccc"]
    assert reused(reward) == [None, None, "batch", "batch", "batch", None]


def test_a_batch_that_is_scored_as_one_is_handed_over_whole(build, file):
    assert build("together", cached=True)(completions=["aa", "aa"]) == [2.0, 2.0]
    assert calls(file) == ["aa", "aa"]


def test_equal_failures_are_one_failure(build, file):
    reward = build("alone")
    reward(completions=["failed x", "raise y", "failed x", "raise y"])
    assert causes(reward) == ["x", "ConnectionError: no server for y"] * 2
    assert len(calls(file)) == 2


def test_samples_with_different_columns_are_different(build):
    reward = build("with_answer", isolate=False)
    assert reward(completions=["a", "a", "a"], answer=["1", "22", "1"]) == [2.0, 3.0, 2.0]
    assert reused(reward) == [None, None, "batch"]


def test_samples_with_different_prompts_are_different_to_one_who_may_look(build):
    assert build("of_prompt", isolate=False)(prompts=["a", "bb"], completions=["x", "x"]) == [1.0, 2.0]


def test_token_ids_count_where_they_are_named(build):
    ids = [[1], [1, 2]]
    assert build("of_ids", isolate=False)(completions=["x", "x"], completion_ids=ids) == [1.0, 2.0]


def test_token_ids_that_are_not_named_are_withheld_and_never_taken_for_equal(build):
    reward = build("of_ids_unnamed", isolate=False)
    assert reward(completions=["x", "x"], completion_ids=[[1], [1, 2]]) == [None, None]
    assert causes(reward) == ["KeyError: 'completion_ids'"] * 2
    whole = build("of_ids_unnamed", isolate=False, per_sample=False)
    assert whole(completions=["x", "x"], completion_ids=[[1], [1, 2]]) == [1.0, 2.0]


def test_samples_that_hold_what_no_text_says_are_all_scored(build, file):
    reward = build("alone", cached=True)
    assert reward(completions=["aa", "aa", "aa"], thing=[{1}, {1}, None]) == [2.0] * 3
    assert calls(file) == ["aa", "aa", "aa"]
    assert reused(reward) == [None] * 3


def test_a_reward_may_say_itself_what_its_scores_rest_on(build, file):
    reward = build("FirstWord", isolate=False, cached=True)
    assert reward(completions=["ab c", "ab d", "x"]) == [4.0, 4.0, 1.0]
    assert calls(file) == ["ab c", "x"]
    assert reward(completions=["ab e"]) == [4.0]
    assert calls(file) == ["ab c", "x"]


def test_a_provisional_score_is_never_cached(build, file):
    reward = build("alone", cached=True)
    for _ in range(2):
        assert reward(completions=["provisional x", "aa", "provisional x"]) == [0.25, 2.0, 0.25]
        assert reused(reward)[2] == "batch"
    assert sorted(calls(file)) == ["aa", "provisional x", "provisional x"]


def test_keys_of_a_wrong_number_are_an_error(build):
    with pytest.raises(RewardError, match="reward 'WrongKeys': its `keys` returned 1 values for 2 completions"):
        build("WrongKeys")(completions=["a", "b"])


def test_where_keys_fail_everything_is_scored_and_one_warning_is_logged(build, caplog):
    reward = build("FailingKeys", isolate=False, cached=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert reward(completions=["aa", "aa"]) == [2.0, 2.0]
    [record] = caplog.records
    assert "no score is reused, its `keys` failed: KeyError: 'no such column'" in record.getMessage()


def test_a_column_of_another_length_is_an_error_that_names_it(build):
    reward = build("alone")
    with pytest.raises(RewardError, match="reward 'alone': the column 'level' has 1 values for 2 completions"):
        reward(completions=["a", "b"], level=[1])


# What rewards log, and what they see of the trainer


@pytest.mark.parametrize("isolate", [True, False])
def test_what_a_reward_logs_arrives_with_a_value_for_every_sample(build, isolate):
    metrics, extras = [], {}
    reward = build("logging_all", cached=True, isolate=isolate, workers=2)

    def call(completions):
        metrics.clear()
        extras.clear()
        return reward(
            completions=completions,
            log_metric=lambda name, value: metrics.append((name, value)),
            log_extra=extras.__setitem__,
        )

    assert call(["aa", "b", "aa", "exit" if isolate else "raise x"]) == [2.0, 1.0, 2.0, None]
    assert extras == {"seen": ["AA", "B", "AA", None]}
    assert metrics[0] == ("calls", 1.0)
    assert call(["b", "ccc", "ccc"]) == [1.0, 3.0, 3.0]
    assert extras == {"seen": [None, "CCC", "CCC"]}, "what was not called has logged nothing"
    assert metrics.count(("calls", 1.0)) == 1


def test_a_worker_sees_the_plain_values_of_the_trainers_state(build):
    state = types.SimpleNamespace(global_step=7, epoch=0.5, log_history=[{"loss": 1.0}], callbacks=threading.Lock())
    assert build("by_step")(completions=["a", "b"], trainer_state=state) == [7.5, 7.5]


def test_any_trainer_state_reaches_a_worker(build):
    assert build("together")(completions=["aa"], trainer_state="a text") == [2.0]


# Invariance

TEXTS = ["", "a", "bb", "ccc", "none", "failed x", "raise y", "nan", "detail u v"]
settings_here = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def facts(outcomes):
    return [(o.status, o.value, o.cause, o.detail) for o in outcomes]


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("cache", [True, False])
@settings_here
@given(data=st.data())
def test_an_outcome_depends_neither_on_the_order_nor_on_the_batch(build, tmp_path, isolate, cache, data):
    texts = data.draw(st.lists(st.sampled_from(TEXTS), max_size=12))
    order = data.draw(st.permutations(range(len(texts))))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(texts)), max_size=4)))
    reward = reward_of(build, isolate, cache)
    expected = facts([reward.score(completions=[text])[0] for text in texts])
    assert facts(reward.score(completions=texts)) == expected
    assert facts(reward.score(completions=[texts[i] for i in order])) == [expected[i] for i in order]
    parts = [texts[start:end] for start, end in itertools.pairwise([0, *cuts, len(texts)])]
    assert facts(itertools.chain.from_iterable(reward.score(completions=part) for part in parts)) == expected


def reward_of(build, isolate, cache):
    """One reward for all examples of a test."""
    made = build.__dict__
    if "shared" not in made:
        made["shared"] = build("alone", isolate=isolate, cached=cache, workers=2)
    return made["shared"]


@pytest.mark.slow
def test_a_reward_may_be_called_from_several_threads_at_once(build):
    reward = build("alone", cached=True, timeout=1.0, workers=2)
    results = {}

    def ask(number):
        texts = ["a" * (i + 1) for i in range(number, number + 20)] + ["exit", "sleep" if number == 3 else "none"]
        results[number] = (texts, reward.score(completions=texts))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for texts, outcomes in results.values():
        assert [o.value for o in outcomes[:20]] == [float(len(text)) for text in texts[:20]]
        assert [o.status for o in outcomes[20:]] == ["failed", "failed" if texts[21] == "sleep" else "not_applicable"]


# Pickling


def specs(forms, process_models):
    parameters = BUILT_IN_PARAMETERS | {"prm": {"model": process_models["token"]}}
    built_in = [(name, parameters.get(name, {})) for name in BUILT_IN]
    mine = [(f"{forms}:brevity", {"limit": 20}), (f"short={forms}:Constant", {"value": 2.0}), (f"{forms}:later", {})]
    return [*built_in, *mine, ("fmt=trl.rewards.think_format_reward", {})]


COLUMNS = {
    "answer": ["2", "3"],
    "rationales": [["1 + 1 = 2"], ["1 + 2 = 3"]],
    "structures": [[], []],
}
TEXTS = ("<think>1 + 1 = 2</think><answer>2</answer>", "It is 4.")


def test_every_reward_survives_pickling(forms, process_models):
    for spec, parameters in specs(forms, process_models):
        reward = build_reward(spec, parameters)
        copy = pickle.loads(pickle.dumps(reward))
        assert type(copy) is type(reward)
        assert copy.__name__ == reward.__name__
        assert call(copy, *TEXTS, **COLUMNS) == call(reward, *TEXTS, **COLUMNS), spec


UNPICKLE = """
import asyncio, json, pickle, sys
rewards, given = pickle.load(sys.stdin.buffer)
for reward in rewards:
    returned = reward(**given)
    print(json.dumps([reward.__name__, asyncio.run(returned) if asyncio.iscoroutine(returned) else returned]))
"""


@pytest.mark.slow
def test_every_reward_reaches_another_process(forms, process_models):
    import json

    built = [build_reward(spec, parameters).reward for spec, parameters in specs(forms, process_models)]
    given = {"prompts": ["?"] * 2, "completions": chat(*TEXTS), "completion_ids": [[1], [2]], **COLUMNS}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(UNPICKLE)],
        input=pickle.dumps((built, given)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    there = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert there == [[r.__name__, call(r, *TEXTS, completion_ids=[[1], [2]], **COLUMNS)] for r in built]


def test_a_wrapped_function_of_a_module_pickles_by_its_name():
    copy = pickle.loads(pickle.dumps(wrap(think_format_reward)))
    assert isinstance(copy.reward, Reward)
    assert copy.function is think_format_reward


def test_a_reward_of_a_relative_file_pickles_for_a_process_with_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(build_reward("always=mine.py:one").reward)
    code = "import pickle, sys; r = pickle.loads(sys.stdin.buffer.read()); print(r.__name__, r(completions=['a']))"
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, cwd="/", check=True)
    assert done.stdout.decode().strip() == "always [1.0]"


@pytest.mark.parametrize("used", [False, True])
def test_a_reward_pickles_before_and_after_it_was_used(build, file, used):
    reward = build("alone", {"factor": 2}, cached=True, workers=2)
    if used:
        reward(completions=["aa", "failed x"])
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.options == reward.options
    assert copy.is_isolated
    assert copy(completions=["aa", "b"]) == [4.0, 2.0]
    assert reused(copy) == ["cache" if used else None, None]
    copy.close()


def module_level(completions, **columns):
    return [1.0] * len(completions)


def test_a_reward_that_is_handed_over_pickles_with_its_options(tmp_path):
    reward = wrap(module_level, options={"per_sample": True, "timeout": 5.0}, cache=tmp_path / "scores.sqlite")
    reward(completions=["a"])
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.options == reward.options
    assert copy(completions=["a"]) == [1.0]
    assert reused(copy) == ["cache"]
