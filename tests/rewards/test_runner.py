import asyncio
import logging
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

import rewards
from rewards import BUILT_IN, Failed, Reward, RewardError, Scored, build_reward, build_rewards
from rewards.runner import AsyncReward, wrap
from rlkd.registry import registry
from tests.helpers import ROOT

CODE = '''
"""Rewards as a user writes them."""
from dataclasses import dataclass

from rewards import Failed, Scored


def brevity(completions, *, limit=10, **columns):
    return [max(0.0, 1 - len(c[0]["content"]) / limit) for c in completions]


def needs_level(completions, level, bonus=0.0, **columns):
    return [float(n) + bonus for n in level]


def by_ids(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def only_columns(**columns):
    return [1.0] * len(columns["completions"])


async def later(completions, *, value=0.25, **columns):
    return [value] * len(completions)


@dataclass
class Constant:
    value: float
    factor: float = 1.0

    def __call__(self, completions, **columns):
        return [self.value * self.factor] * len(completions)


class Later:
    async def __call__(self, completions, **columns):
        return [0.75] * len(completions)


def make_constant(value, factor=1.0):
    return Constant(value, factor)


def make_nothing():
    return None


class NoReward:
    pass


class Picky:
    def __init__(self, size):
        if size < 0:
            raise ValueError(f"size {size} is negative")


number = 5
'''


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    return path


def chat(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def call(reward, *texts, **columns):
    """Call a reward as TRL does."""
    given = {
        "prompts": ["?"] * len(texts),
        "completions": chat(*texts),
        "completion_ids": [[1] * len(t) for t in texts],
    }
    returned = reward(**(given | columns))
    return asyncio.run(returned) if asyncio.iscoroutine(returned) else returned


def statuses(reward):
    return [outcome.status for outcome in reward.outcomes]


# Building


def test_a_function_in_a_file_is_a_reward(file):
    reward = build_reward(f"{file}:brevity")
    assert reward.__name__ == "brevity"
    assert call(reward, "12345", "1234567890123") == [0.5, 0.0]


def test_parameters_with_a_default_are_set_by_the_config(file):
    assert call(build_reward(f"{file}:brevity", {"limit": 20}), "12345") == [0.75]


def test_an_alias_is_the_name_in_metrics(file):
    assert build_reward(f"short={file}:brevity").__name__ == "short"


def test_a_wrong_parameter_is_answered_with_what_was_meant(file):
    with pytest.raises(RewardError, match=r"reward 'brevity' has no parameter 'limt'\. Did you mean 'limit'\?"):
        build_reward(f"{file}:brevity", {"limt": 20})


def test_a_parameter_without_a_default_is_a_column_and_cannot_be_set(file):
    with pytest.raises(
        RewardError, match=r"reward 'needs_level': 'level' has no default, so it is a column of the data"
    ):
        build_reward(f"{file}:needs_level", {"level": 3})


def test_what_trl_passes_cannot_be_set(file):
    with pytest.raises(RewardError, match="has no parameter 'completions'"):
        build_reward(f"{file}:brevity", {"completions": []})


def test_a_parameter_that_a_column_would_replace_is_an_error(file):
    reward = build_reward(f"{file}:brevity", {"limit": 20})
    with pytest.raises(RewardError, match=r"'limit' is set in the config, but the data have a column of that name"):
        reward.check_columns(["answer", "limit"])
    with pytest.raises(RewardError, match="Rename the column"):
        call(reward, "12345", limit=[5])


def test_a_class_is_built_with_its_parameters(file):
    assert call(build_reward(f"{file}:Constant", {"value": 2.0}), "a", "b") == [2.0, 2.0]


def test_a_function_that_makes_a_reward_is_called_with_the_parameters(file):
    assert call(build_reward(f"{file}:make_constant", {"value": 2, "factor": 3}), "a") == [6.0]


@pytest.mark.parametrize("name", ["Constant", "make_constant"])
def test_a_parameter_that_a_factory_needs_is_asked_for(file, name):
    with pytest.raises(
        RewardError, match=rf"reward '{name}' needs the parameter 'value'\. Parameters: value, factor=1"
    ):
        build_reward(f"{file}:{name}", {"factor": 2})


@pytest.mark.parametrize("name", ["make_nothing", "NoReward"])
def test_a_factory_that_makes_no_reward_is_refused(file, name):
    with pytest.raises(RewardError, match=f"reward '{name}' is no callable"):
        build_reward(f"{file}:{name}")


def test_a_value_that_a_factory_refuses_is_shown_with_its_reason(file):
    with pytest.raises(RewardError, match=r"my_rewards\.py:Picky' with \{'size': -1\}: size -1 is negative"):
        build_reward(f"{file}:Picky", {"size": -1})


def test_what_is_no_function_is_refused(file):
    with pytest.raises(RewardError, match="reward 'number' is no function or class, but 5"):
        build_reward(f"{file}:number")


def test_a_function_of_token_ids_alone_is_a_reward(file):
    assert call(build_reward(f"{file}:by_ids"), "abc", "de") == [3.0, 2.0]


def test_a_function_of_nothing_but_keywords_is_a_reward(file):
    assert call(build_reward(f"{file}:only_columns"), "abc", "de") == [1.0, 1.0]


@pytest.mark.parametrize(("name", "value"), [("later", 0.25), ("Later", 0.75)])
def test_an_asynchronous_reward_stays_asynchronous(file, name, value):
    reward = build_reward(f"{file}:{name}")
    assert isinstance(reward, AsyncReward)
    assert call(reward, "a", "b") == [value, value]


def test_parameters_of_an_asynchronous_reward_are_set(file):
    reward = build_reward(f"{file}:later", {"value": 0.5})
    assert isinstance(reward, AsyncReward)
    assert call(reward, "a") == [0.5]


def test_a_typo_in_a_name_is_a_reward_error():
    with pytest.raises(RewardError, match=r"unknown reward 'acuracy'\. Did you mean 'accuracy'\?"):
        build_reward("acuracy")


def test_a_registered_function_is_a_reward(monkeypatch):
    monkeypatch.setattr(registry("reward"), "_objects", {})

    @rewards.reward("always_half")
    def always_half(completions, **columns):
        return [0.5] * len(completions)

    assert call(build_reward("always_half"), "a") == [0.5]


def test_wrapping_a_reward_twice_changes_nothing():
    reward = build_reward("tag_count")
    assert wrap(reward) is reward


def test_trl_takes_ours_for_what_they_are(file):
    from trl.trainer.utils import is_async_callable

    assert is_async_callable(build_reward(f"{file}:later"))
    assert not is_async_callable(build_reward(f"{file}:brevity"))


# TRL's own


def test_trls_accuracy_reward_runs_as_it_does_by_itself():
    reward = build_reward("trl.rewards.accuracy_reward")
    texts = [r"so \boxed{\frac{1}{3}}", r"so \boxed{\frac{1}{2}}", r"so \boxed{1}"]
    solution = [r"$\frac{1}{3}$", r"$\frac{1}{3}$", "no gold"]
    assert reward.required_columns == ("solution",)
    assert call(reward, *texts, solution=solution) == accuracy_reward(chat(*texts), solution) == [1.0, 0.0, None]
    assert statuses(reward) == ["score", "score", "not_applicable"]


def test_trls_think_format_reward_runs_as_it_does_by_itself():
    reward = build_reward("trl.rewards.think_format_reward")
    texts = ["<think>a</think>b", "b"]
    assert call(reward, *texts) == think_format_reward(chat(*texts)) == [1.0, 0.0]


def test_trls_factory_is_built_with_its_parameters():
    parameters = {"max_completion_len": 10, "soft_punish_cache": 4}
    reward = build_reward("overlong=trl.rewards.get_soft_overlong_punishment", parameters)
    assert reward.__name__ == "overlong"
    ids = [[1] * n for n in (5, 8, 11)]
    expected = get_soft_overlong_punishment(**parameters)(completion_ids=ids)
    assert reward(prompts=["?"] * 3, completions=chat(*"abc"), completion_ids=ids) == expected == [0.0, -0.5, -1.0]


# Columns


def test_a_column_that_the_data_lacks_is_an_error_before_and_during_a_run(file):
    reward = build_reward(f"{file}:needs_level")
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


def test_the_three_outcomes_are_kept_apart():
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


def test_a_cause_is_told_once(caplog):
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


# Several


def test_parameters_go_by_name_alias_or_spec(file):
    specs = [f"{file}:Constant", f"more={file}:Constant", f"most={file}:make_constant"]
    by_name = {"Constant": {"value": 1}, "more": {"value": 2}, specs[2]: {"value": 3}}
    built = build_rewards(specs, by_name)
    assert [reward.__name__ for reward in built] == ["Constant", "more", "most"]
    assert [call(reward, "a")[0] for reward in built] == [1.0, 2.0, 3.0]
    assert set(by_name) == {"Constant", "more", specs[2]}, "the config is left as it was"


def test_two_rewards_of_one_name_are_refused(file):
    with pytest.raises(RewardError, match=r"two rewards are called 'tag_count'; give one of them an alias"):
        build_rewards(["tag_count", "tag_count"])
    assert len(build_rewards(["tag_count", "again=tag_count"])) == 2


def test_parameters_of_no_reward_are_an_error():
    with pytest.raises(RewardError, match=r"reward_kwargs names 'tag_cuont', .*Did you mean 'tag_count'\?"):
        build_rewards(["tag_count"], {"tag_cuont": {}})


# Pickling

PARAMETERS = {
    "accuracy": {"fallback": "last_number"},
    "get_soft_overlong_punishment": {"max_completion_len": 10, "soft_punish_cache": 4},
    "soft_overlong": {"max_completion_len": 10, "soft_punish_cache": 4},
    "soft_overlong_punishment": {"max_completion_len": 10, "soft_punish_cache": 4},
    "get_cosine_scaled_reward": {"max_len": 100},
    "structure": {"alignment": "f1"},
    "think_format": {"answer_tags": True},
}


def specs(file):
    built_in = [(name, PARAMETERS.get(name, {})) for name in BUILT_IN]
    mine = [(f"{file}:brevity", {"limit": 20}), (f"short={file}:Constant", {"value": 2.0}), (f"{file}:later", {})]
    return [*built_in, *mine, ("fmt=trl.rewards.think_format_reward", {})]


COLUMNS = {
    "answer": ["2", "3"],
    "rationales": [["1 + 1 = 2"], ["1 + 2 = 3"]],
    "structures": [[], []],
}
TEXTS = ("<think>1 + 1 = 2</think><answer>2</answer>", "It is 4.")


def test_every_reward_survives_pickling(file):
    for spec, parameters in specs(file):
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


def test_every_reward_reaches_another_process(file):
    import json

    built = [build_reward(spec, parameters) for spec, parameters in specs(file)]
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
    assert isinstance(copy, Reward)
    assert copy.function is think_format_reward


# Built in


def test_every_built_in_reward_can_be_built_by_its_name():
    for name in BUILT_IN:
        assert build_reward(name, PARAMETERS.get(name, {})).__name__ == name


@pytest.mark.parametrize(
    ("spec", "parameters", "message"),
    [
        ("accuracy", {"fallback": "first"}, "fallback 'first': expected 'none' or 'last_number'"),
        ("accuracy", {"fallbak": "none"}, "Did you mean 'fallback'"),
        ("soft_overlong", {"max_completion_len": 10}, "needs the parameter 'soft_punish_cache'"),
        ("soft_overlong", {"max_completion_len": 10, "soft_punish_cache": 11}, "must lie between 0 and"),
        ("structure", {"alignment": "max"}, "unknown alignment 'max'. Known: answers, f1, ordered, sum, teacher"),
        ("structure", {"decomposer": "rule"}, "unknown decomposer 'rule'. Did you mean 'rules'?"),
        ("structure", {"judge": "human"}, "unknown judge 'human'. Known: deterministic, embedding, model"),
        ("structure", {"decomposer": "prompted"}, "needs an engine"),
        ("structure", {"judge": "model"}, "needs an engine"),
        ("structure", {"teacher": "hub"}, "teacher 'hub': expected 'rows' or 'decompose'"),
        ("think_format", {"answer_tag": True}, "Did you mean 'answer_tags'"),
    ],
)
def test_a_wrong_parameter_of_a_built_in_reward_is_explained(spec, parameters, message):
    with pytest.raises(RewardError) as raised:
        build_reward(spec, parameters)
    assert message in str(raised.value)
    assert spec in str(raised.value)


def test_a_reward_of_a_relative_file_pickles_for_a_process_with_another_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def one(completions, **columns):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(build_reward("always=mine.py:one"))
    code = "import pickle, sys; r = pickle.loads(sys.stdin.buffer.read()); print(r.__name__, r(completions=['a']))"
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, cwd="/", check=True)
    assert done.stdout.decode().strip() == "always [1.0]"


def test_a_lazy_result_whose_body_raises_has_failed():
    class Lazy:
        def __iter__(self):
            return self

        def __next__(self):
            return 1 / 0

    reward = rewards.runner.wrap(lambda completions, **columns: Lazy(), "lazy")
    assert reward(completions=["a", "b"]) == [None, None]
    assert [outcome.cause for outcome in reward.outcomes] == ["ZeroDivisionError: division by zero"] * 2
