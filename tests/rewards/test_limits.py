"""The runner around a reward: limits, equal samples, kept scores, options."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Failed, RewardError, RewardOptions, Scored, build_reward, build_rewards
from rewards.runner import ASYNC_CALLS, AsyncReward, wrap
from rlkd.workers.pool import IsolationError, WorkerPool
from tests.helpers import ROOT

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes

CODE = '''
import os, pathlib, sys, time
from dataclasses import dataclass

from rewards import Failed, RewardError, RewardOptions, Scored

SHARED = RewardOptions(per_sample=True, timeout=60.0)


def note(text):
    """Calls are counted in a file, which all processes share."""
    path = pathlib.Path(__file__).with_suffix(".calls")
    with path.open("a") as file:
        file.write(f"{text}\\n")


def act(text):
    note(text)
    what, _, rest = text.partition(" ")
    if what == "spin":
        9**9**9**9
    if what == "sleep":
        time.sleep(600)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise ConnectionError(f"no server for {rest}")
    if what == "failed":
        return Failed(rest)
    if what == "none":
        return None
    if what == "nan":
        return float("nan")
    if what == "pid":
        return float(os.getpid())
    if what == "detail":
        return Scored(0.5, {"words": rest.split()})
    if what == "twice":
        return Scored(0.5, {rest})
    if what == "mistake":
        return "a text"
    if what == "broken":
        raise Broken(1, 2)
    return float(len(text))


class Broken(RewardError):
    """Does not survive pickling."""

    def __init__(self, a, b):
        super().__init__(f"set up wrongly: {a}, {b}")


def alone(completions, *, factor=1, **columns):
    scores = [act(c) for c in completions]
    return [s * factor if isinstance(s, float) else s for s in scores]


alone.reward_options = SHARED


def together(completions, **columns):
    return [act(c) for c in completions]


together.reward_options = RewardOptions(timeout=60.0)


def with_answer(completions, answer, **columns):
    return [float(len(c) + len(a)) for c, a in zip(completions, answer)]


with_answer.reward_options = SHARED


def of_prompt(completions, **columns):
    return [float(len(prompt)) for prompt in columns["prompts"]]


of_prompt.reward_options = SHARED


def of_ids(completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


of_ids.reward_options = SHARED


def of_ids_unnamed(completions, **columns):
    return [float(len(ids)) for ids in columns["completion_ids"]]


of_ids_unnamed.reward_options = SHARED


def logging_all(completions, log_metric=None, log_extra=None, **columns):
    if log_extra:
        log_extra("seen", [c.upper() for c in completions])
        log_extra("too_short", [])
    if log_metric:
        log_metric("calls", 1.0)
    return [act(c) for c in completions]


logging_all.reward_options = SHARED


def by_step(completions, trainer_state=None, **columns):
    assert not hasattr(trainer_state, "log_history")
    return [trainer_state.global_step + trainer_state.epoch] * len(completions)


by_step.reward_options = RewardOptions(timeout=60.0)


class FirstWord:
    """Its score rests on the first word alone."""

    reward_options = SHARED
    fingerprint = "one"

    def __call__(self, completions, **columns):
        return [act(c) for c in completions]

    def keys(self, completions, **columns):
        return [c.split()[0] for c in completions]


class WrongKeys(FirstWord):
    def keys(self, completions, **columns):
        return ["a"]


class FailingKeys(FirstWord):
    def keys(self, completions, **columns):
        raise KeyError("no such column")


@dataclass
class Constant:
    value: float
    reward_options = SHARED

    def __call__(self, completions, **columns):
        return [self.value for c in completions]


def plain(value):
    return Constant(value)


def doubled(value):
    return Constant(2 * value)


one, two = Constant(1.0), Constant(2.0)


def only_here():
    lock = __import__("threading").Lock()

    def held(completions, **columns):
        lock.acquire(blocking=False)
        return [float(len(c)) for c in completions]

    return held


class Homebound:
    reward_options = RewardOptions(per_sample=True, timeout=60.0)

    def __init__(self):
        from rlkd.workers.pool import inside_worker

        if inside_worker():
            raise OSError("there is one such device")

    def __call__(self, completions, **columns):
        return [float(len(c)) for c in completions]
'''


@pytest.fixture
def file(tmp_path) -> Path:
    # A module of its own for each test, under the same text.
    path = tmp_path / f"rewards_{random.randrange(10**9)}.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def build(file, tmp_path):
    """Builds rewards of the file, and ends their processes."""
    built = []

    def make(name, arguments=None, *, keep=False, **options):
        place = tmp_path / "scores.sqlite" if keep is True else keep
        built.append(build_reward(f"{file}:{name}", arguments, options, cache=place))
        return built[-1]

    yield make
    for reward in built:
        reward.close()


def calls(file):
    """The texts that were scored, in order."""
    path = file.with_suffix(".calls")
    return path.read_text().splitlines() if path.exists() else []


def causes(reward):
    return [outcome.cause for outcome in reward.outcomes]


def reused(reward):
    return [outcome.reused for outcome in reward.outcomes]


# Limits

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


def test_of_samples_scored_alone_each_fails_alone_with_its_own_cause(build):
    reward = build("alone", timeout=1.0, workers=2)
    assert reward(completions=HANGS) == VALUES
    assert causes(reward) == CAUSES
    statuses = [outcome.status for outcome in reward.outcomes]
    assert statuses == ["score", *["failed"] * 1, "score", *["failed"] * 4, "not_applicable", "failed", "score"]


@pytest.mark.parametrize("where", ["thread", "asyncio"])
def test_limits_hold_off_the_main_thread(build, where):
    reward = build("alone", timeout=1.0, workers=2)
    if where == "asyncio":
        outcomes = asyncio.run(asyncio.to_thread(reward.judge, completions=HANGS))
    else:
        got = []
        thread = threading.Thread(target=lambda: got.append(reward.judge(completions=HANGS)))
        thread.start()
        thread.join()
        [outcomes] = got
    assert [outcome.value for outcome in outcomes] == VALUES


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
    reward = build("alone", keep=True)
    assert reward(completions=["detail a b", "twice x"]) == [0.5, 0.5]
    assert reward.outcomes[0].detail == {"words": ["a", "b"]}
    assert reward(completions=["detail a b", "twice x"]) == [0.5, 0.5]
    assert reused(reward) == ["cache", None]
    assert reward.outcomes[0].detail == {"words": ["a", "b"]}


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
def test_a_reward_that_is_named_by_a_spec_runs_in_a_worker_unless_told_otherwise(build, isolate, here):
    reward = build("together", isolate=isolate)
    assert (reward(completions=["pid"]) == [float(os.getpid())]) is here


def pid(completions, **columns):
    return [float(os.getpid())] * len(completions)


@pytest.mark.parametrize(("isolate", "here"), [(None, True), (True, False), (False, True)])
def test_a_reward_that_is_handed_over_runs_here_unless_told_otherwise(isolate, here):
    reward = wrap(pid, options={"isolate": isolate})
    assert (reward(completions=["a"]) == [float(os.getpid())]) is here
    reward.close()


def test_a_worker_is_started_when_a_run_checks_what_it_needs(build):
    reward = build("together")
    reward.check_ready()
    assert len(reward._pool._idle) == 1
    reward.close()
    assert reward(completions=["aa"]) == [2.0]


@pytest.mark.parametrize("ask", ["check_ready", "judge"])
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


@pytest.mark.parametrize("ask", ["check_ready", "judge"])
def test_a_reward_that_no_worker_can_load_is_an_error_where_isolation_is_asked_for(build, ask):
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


def test_a_call_in_this_process_that_takes_too_long_is_told_of_and_scored():
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
    assert "reward 'slow' has been at one call for 0.05 s, in this process" in told[0]


def test_of_samples_scored_alone_in_this_process_one_that_raises_takes_no_other_along():
    def picky(completions, **columns):
        return [1 / len(c) for c in completions]

    reward = wrap(picky, options={"per_sample": True})
    assert reward(completions=["aa", "", "a"]) == [0.5, None, 1.0]
    assert causes(reward)[1] == "ZeroDivisionError: division by zero"


def test_an_exception_that_cannot_be_told_is_a_failure():
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


# Equal samples


@pytest.mark.parametrize("isolate", [True, False])
def test_equal_samples_are_scored_once(build, file, isolate):
    reward = build("alone", isolate=isolate)
    assert reward(completions=["aa", "b", "aa", "aa", "b", "ccc"]) == [2.0, 1.0, 2.0, 2.0, 1.0, 3.0]
    assert sorted(calls(file)) == ["aa", "b", "ccc"]
    assert reused(reward) == [None, None, "batch", "batch", "batch", None]


def test_a_batch_that_is_scored_as_one_is_handed_over_whole(build, file):
    assert build("together", keep=True)(completions=["aa", "aa"]) == [2.0, 2.0]
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
    reward = build("alone", keep=True)
    assert reward(completions=["aa", "aa", "aa"], thing=[{1}, {1}, None]) == [2.0] * 3
    assert calls(file) == ["aa", "aa", "aa"]
    assert reused(reward) == [None] * 3


def test_a_reward_may_say_itself_what_its_scores_rest_on(build, file):
    reward = build("FirstWord", isolate=False, keep=True)
    assert reward(completions=["ab c", "ab d", "x"]) == [4.0, 4.0, 1.0]
    assert calls(file) == ["ab c", "x"]
    assert reward(completions=["ab e"]) == [4.0]
    assert calls(file) == ["ab c", "x"]


def test_keys_of_a_wrong_number_are_an_error(build):
    with pytest.raises(RewardError, match="reward 'WrongKeys': its `keys` returned 1 values for 2 completions"):
        build("WrongKeys")(completions=["a", "b"])


def test_where_keys_fail_everything_is_scored_and_told_once(build, caplog):
    reward = build("FailingKeys", isolate=False, keep=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert reward(completions=["aa", "aa"]) == [2.0, 2.0]
    [record] = caplog.records
    assert "nothing is reused, its `keys` failed: KeyError: 'no such column'" in record.getMessage()


def test_a_column_of_another_length_is_an_error_that_names_it(build):
    reward = build("alone")
    with pytest.raises(RewardError, match="reward 'alone': the column 'level' has 1 values for 2 completions"):
        reward(completions=["a", "b"], level=[1])


# Kept scores


def test_a_score_is_kept_for_later_batches_rewards_and_runs(build, file):
    logged = {}
    reward = build("alone", keep=True)
    assert reward(completions=["aa", "none", "b"]) == [2.0, None, 1.0]
    assert reward(completions=["b", "aa", "none", "ccc"]) == [1.0, 2.0, None, 3.0]
    assert reused(reward) == ["cache", "cache", "cache", None]
    again = build("alone", keep=True)
    assert again(completions=["aa", "aa", "none"], log_metric=logged.__setitem__) == [2.0, 2.0, None]
    assert [outcome.status for outcome in again.outcomes] == ["score", "score", "not_applicable"]
    assert logged["rewards/alone/reused_cache"] == 1.0
    assert len(calls(file)) == 4


def test_a_score_is_kept_for_other_processes(build, file, tmp_path):
    build("alone", keep=True)(completions=["aa"])
    code = """
    import pathlib, sys
    from rewards import build_reward
    reward = build_reward(sys.argv[1], cache=pathlib.Path(sys.argv[2]))
    print(reward(completions=["aa"]), [o.reused for o in reward.outcomes])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), f"{file}:alone", tmp_path / "scores.sqlite"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[2.0] ['cache']\n", done.stderr
    assert calls(file) == ["aa"]


def test_failures_are_never_kept(build, file):
    bad = ["failed x", "raise y", "exit", "nan", "sleep"]
    for _ in range(2):
        reward = build("alone", keep=True, timeout=1.0, workers=2)
        reward(completions=bad)
        assert reused(reward) == [None] * 5
    assert sorted(calls(file)) == sorted(bad * 2)


@pytest.mark.parametrize("change", ["parameters", "version", "source", "answer"])
def test_a_score_is_not_kept_for_what_it_does_not_say(build, file, tmp_path, change):
    reward = build("alone", {"factor": 2}, keep=True, isolate=False)
    assert reward(completions=["aa"], answer=["1"]) == [4.0]
    arguments, options, answer = {"factor": 2}, {}, "1"
    if change == "parameters":
        arguments = {"factor": 3}
    elif change == "version":
        options = {"version": "2"}
    elif change == "answer":
        answer = "2"
    else:
        file.write_text(CODE + "\n# changed\n")  # the module in memory is the old one, but its key is not
    other = build("alone", arguments, keep=True, isolate=False, **options)
    assert other(completions=["aa"], answer=[answer]) == [6.0 if change == "parameters" else 4.0]
    assert reused(other) == [None]


def test_rewards_of_one_source_that_differ_by_how_they_are_made_keep_their_scores_apart(build):
    assert build("plain", {"value": 1.0}, keep=True)(completions=["a"]) == [1.0]
    assert build("doubled", {"value": 1.0}, keep=True)(completions=["a"]) == [2.0]
    assert build("Constant", {"value": 1.0}, keep=True)(completions=["a"]) == [1.0]
    assert build("one", keep=True)(completions=["a"]) == [1.0]
    assert build("two", keep=True)(completions=["a"]) == [2.0]
    assert build("two", keep=True)(completions=["a"]) == [2.0]


def test_an_alias_does_not_matter_to_kept_scores(build, file, tmp_path):
    build("alone", keep=True)(completions=["aa"])
    other = build_reward(f"other={file}:alone", cache=tmp_path / "scores.sqlite")
    assert other(completions=["aa"]) == [2.0]
    assert reused(other) == ["cache"]


def test_what_a_reward_is_derived_from_or_wrapped_in_counts(build, file, tmp_path, monkeypatch):
    base = tmp_path / f"base_{random.randrange(10**9)}.py"
    base.write_text(
        "class Base:\n    def __call__(self, completions, **columns):\n        return [1.0] * len(completions)"
    )
    user = tmp_path / f"user_{random.randrange(10**9)}.py"
    user.write_text(
        "import functools\n"
        f"from {base.stem} import Base\n"
        "from statistics import mean\n"
        "class Mine(Base):\n    pass\n"
        "def wrapped(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"per_sample": True, "isolate": False}

    def basis(name):
        return build_reward(f"{user}:{name}", options=options, cache=tmp_path / "s.sqlite")._basis

    before = basis("Mine"), basis("wrapped")
    base.write_text(base.read_text() + "\n\n# changed\n")
    assert basis("Mine") != before[0]
    assert basis("wrapped") == before[1]


def test_the_source_of_a_decorated_reward_counts(tmp_path):
    path = tmp_path / f"decorated_{random.randrange(10**9)}.py"
    path.write_text("from contextlib import ContextDecorator, nullcontext\n"
                    "class Quiet(ContextDecorator):\n"
                    "    def __enter__(self): pass\n"
                    "    def __exit__(self, *error): pass\n"
                    "@Quiet()\n"
                    "def mine(completions, **columns):\n    return [1.0] * len(completions)\n")  # fmt: skip
    options = {"per_sample": True, "isolate": False}
    before = build_reward(f"{path}:mine", options=options)._basis  # the wrapper's file is the standard library's
    path.write_text(path.read_text() + "# changed\n")
    assert build_reward(f"{path}:mine", options=options)._basis != before


def module_level(completions, **columns):
    return [1.0] * len(completions)


def test_functions_whose_name_may_be_anothers_keep_nothing(tmp_path):
    cache = tmp_path / "scores.sqlite"
    options = {"per_sample": True}
    for value in (1.0, 2.0):
        # One name, one file, and no closure.
        reward = wrap(
            lambda completions, value=value, **columns: [value] * len(completions), options=options, cache=cache
        )
        assert reward(completions=["a", "a"]) == [value] * 2
        assert reused(reward) == [None, "batch"]
    for _ in range(2):
        reward = wrap(module_level, options=options, cache=cache)
        reward(completions=["a"])
    assert reused(reward) == ["cache"]


def test_positional_parameters_of_a_partial_count(tmp_path):
    from functools import partial

    for value in (1.0, 2.0):
        reward = wrap(partial(constant, value), options={"per_sample": True}, cache=tmp_path / "scores.sqlite")
        assert reward(completions=["a"]) == [value]


def constant(value, completions, **columns):
    return [value] * len(completions)


def test_objects_that_are_handed_over_keep_nothing(tmp_path):
    class Counting:
        reward_options = RewardOptions(per_sample=True)

        def __init__(self, value):
            self.value = value

        def __call__(self, completions, **columns):
            return [self.value] * len(completions)

    for value in (1.0, 2.0):
        assert wrap(Counting(value), cache=tmp_path / "scores.sqlite")(completions=["a"]) == [value]
    assert not (tmp_path / "scores.sqlite").exists()


@pytest.mark.parametrize("off", ["option", "flag", "batch"])
def test_keeping_scores_can_be_switched_off(build, file, tmp_path, off):
    options = {"option": {"cache": False}, "batch": {"per_sample": False}}.get(off, {})
    for _ in range(2):
        reward = build("alone", keep=off != "flag", **options)
        assert reward(completions=["aa"]) == [2.0]
    assert calls(file) == ["aa", "aa"]
    assert not (tmp_path / "scores.sqlite").exists()


def test_a_cache_that_cannot_be_used_stops_nothing(build, tmp_path, caplog):
    (tmp_path / "folder.sqlite").mkdir()
    reward = build("alone", keep=tmp_path / "folder.sqlite")
    for _ in range(2):
        assert reward(completions=["aa", "aa"]) == [2.0, 2.0]
    assert "The run goes on" in caplog.text


# What rewards log, and what they see of the trainer


@pytest.mark.parametrize("isolate", [True, False])
def test_what_a_reward_logs_arrives_with_a_value_for_every_sample(build, isolate):
    metrics, extras = [], {}
    reward = build("logging_all", keep=True, isolate=isolate, workers=2)

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


# Asynchronous rewards


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
    assert isinstance(reward, AsyncReward)
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
    reward.required_columns = ()
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


def test_kept_scores_spare_asynchronous_calls_too(build, file, tmp_path):
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
    expected = facts([reward.judge(completions=[text])[0] for text in texts])
    assert facts(reward.judge(completions=texts)) == expected
    assert facts(reward.judge(completions=[texts[i] for i in order])) == [expected[i] for i in order]
    parts = [texts[start:end] for start, end in itertools.pairwise([0, *cuts, len(texts)])]
    assert facts(itertools.chain.from_iterable(reward.judge(completions=part) for part in parts)) == expected


def reward_of(build, isolate, cache):
    """One reward for all examples of a test."""
    made = build.__dict__
    if "shared" not in made:
        made["shared"] = build("alone", isolate=isolate, keep=cache, workers=2)
    return made["shared"]


def test_a_reward_may_be_asked_from_several_threads_at_once(build):
    reward = build("alone", keep=True, timeout=1.0, workers=2)
    results = {}

    def ask(number):
        texts = ["a" * (i + 1) for i in range(number, number + 20)] + ["exit", "sleep" if number == 3 else "none"]
        results[number] = (texts, reward.judge(completions=texts))

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


@pytest.mark.parametrize("used", [False, True])
def test_a_reward_pickles_before_and_after_it_was_used(build, file, used):
    reward = build("alone", {"factor": 2}, keep=True, workers=2)
    if used:
        reward(completions=["aa", "failed x"])
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.options == reward.options
    assert copy.is_isolated
    assert copy(completions=["aa", "b"]) == [4.0, 2.0]
    assert reused(copy) == ["cache" if used else None, None]
    copy.close()


def test_a_reward_that_is_handed_over_pickles_with_its_options(tmp_path):
    reward = wrap(module_level, options={"per_sample": True, "timeout": 5.0}, cache=tmp_path / "scores.sqlite")
    reward(completions=["a"])
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.options == reward.options
    assert copy(completions=["a"]) == [1.0]
    assert reused(copy) == ["cache"]


# Options


def test_the_configs_options_stand_in_the_place_of_the_rewards_own(build):
    assert build("alone").options == RewardOptions(per_sample=True, timeout=60.0)
    assert build("alone", timeout=None, workers=3).options == RewardOptions(per_sample=True, timeout=None, workers=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeuot": 3}, r"reward_options of 'alone': no option 'timeuot'\. Did you mean 'timeout'"),
        ({"timeout": 0}, "reward_options of 'alone': timeout 0: expected seconds above 0, or null for no limit"),
        ({"timeout": -1.5}, r"reward_options of 'alone': timeout -1\.5: expected seconds above 0"),
        ({"timeout": "soon"}, "reward_options of 'alone': .*"),
        ({"workers": 0}, "reward_options of 'alone': workers 0: expected at least 1"),
    ],
)
def test_options_that_make_no_sense_are_explained(file, options, message):
    with pytest.raises(RewardError, match=message):
        build_reward(f"{file}:alone", options=options)


def test_options_of_no_reward_are_an_error(file):
    with pytest.raises(RewardError, match=r"reward_options names 'alnoe', .*Did you mean 'alone'"):
        build_rewards([f"{file}:alone"], options={"alnoe": {"timeout": 3}})


def test_options_go_by_name_alias_or_spec(file):
    specs = [f"{file}:alone", f"short={file}:alone", f"long={file}:together"]
    options = {"alone": {"timeout": 1}, "short": {"timeout": 2}, specs[2]: {"timeout": 3}}
    assert [reward.options.timeout for reward in build_rewards(specs, options=options)] == [1, 2, 3]


def test_what_a_reward_declares_must_be_options():
    def mine(completions, **columns):
        return [1.0]

    mine.reward_options = {"timeout": 3}
    with pytest.raises(RewardError, match=r"reward_options is \{'timeout': 3\}; expected rewards\.RewardOptions"):
        wrap(mine)


def test_outcomes_of_a_reward_in_this_process_may_hold_anything():
    lock = threading.Lock()
    reward = wrap(lambda completions, **columns: [Scored(0.5, {"lock": lock}), Failed("x")], "mine")
    assert reward(completions=["a", "b"]) == [0.5, None]
    assert reward.outcomes[0].detail["lock"] is lock


def test_a_file_that_changes_during_the_run_has_no_more_scores_kept(tmp_path, caplog):
    path, cache = tmp_path / "mine.py", tmp_path / "scores.sqlite"
    source = """
from rewards import RewardOptions

def mine(completions, **columns):
    return [{value} for _ in completions]

mine.reward_options = RewardOptions(per_sample=True, workers=1)
"""
    path.write_text(source.format(value=1.0))
    first = build_reward(f"{path}:mine", cache=cache)
    assert first(completions=["a"]) == [1.0]
    path.write_text(source.format(value=2.0))
    first.close()  # as where a worker is killed: the next one loads the new file
    assert first(completions=["a", "b"])[0] == 1.0
    assert "its source was changed during the run" in caplog.text
    path.write_text(source.format(value=1.0))
    again = build_reward(f"{path}:mine", cache=cache)
    again(completions=["a", "b"])
    assert [outcome.reused for outcome in again.outcomes] == ["cache", None]
    assert [outcome.value for outcome in again.outcomes] == [1.0, 1.0]


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


def test_a_reward_that_calls_exit_has_failed():
    def leaves(completions, **columns):
        raise SystemExit(3)

    reward = wrap(leaves, cache=False)
    assert reward(completions=["a"]) == [None]
    assert "SystemExit" in reward.outcomes[0].cause


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
