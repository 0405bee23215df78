"""Rewards from specs, parameters and options."""

import pytest
import trl.rewards
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

import rewards
from rewards import BUILT_IN, RewardError, RewardOptions, build_rewards
from rewards.runner import AsyncReward
from rlkd.registry import registry
from tests.helpers.rewards import BUILT_IN_PARAMETERS, build_reward, call, chat, statuses, wrap

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes


# Building


def test_a_function_in_a_file_is_a_reward(forms):
    reward = build_reward(f"{forms}:brevity")
    assert reward.__name__ == "brevity"
    assert call(reward, "12345", "1234567890123") == [0.5, 0.0]


def test_parameters_with_a_default_are_set_by_the_config(forms):
    assert call(build_reward(f"{forms}:brevity", {"limit": 20}), "12345") == [0.75]


def test_an_alias_is_the_name_in_metrics(forms):
    assert build_reward(f"short={forms}:brevity").__name__ == "short"


def test_a_wrong_parameter_is_answered_with_what_was_meant(forms):
    with pytest.raises(RewardError, match=r"reward 'brevity' has no parameter 'limt'\. Did you mean 'limit'\?"):
        build_reward(f"{forms}:brevity", {"limt": 20})


def test_a_parameter_without_a_default_is_a_column_and_cannot_be_set(forms):
    with pytest.raises(
        RewardError, match=r"reward 'needs_level': 'level' has no default, so it is a column of the data"
    ):
        build_reward(f"{forms}:needs_level", {"level": 3})


def test_what_trl_passes_cannot_be_set(forms):
    with pytest.raises(RewardError, match="has no parameter 'completions'"):
        build_reward(f"{forms}:brevity", {"completions": []})


def test_a_parameter_that_a_column_would_replace_is_an_error(forms):
    reward = build_reward(f"{forms}:brevity", {"limit": 20})
    with pytest.raises(RewardError, match=r"'limit' is set in the config, but the data have a column of that name"):
        reward.check_columns(["answer", "limit"])
    with pytest.raises(RewardError, match="Rename the column"):
        call(reward, "12345", limit=[5])


def test_a_class_is_built_with_its_parameters(forms):
    assert call(build_reward(f"{forms}:Constant", {"value": 2.0}), "a", "b") == [2.0, 2.0]


def test_a_function_that_makes_a_reward_is_called_with_the_parameters(forms):
    assert call(build_reward(f"{forms}:make_constant", {"value": 2, "factor": 3}), "a") == [6.0]


@pytest.mark.parametrize("name", ["Constant", "make_constant"])
def test_a_missing_parameter_of_a_factory_is_an_error(forms, name):
    with pytest.raises(
        RewardError, match=rf"reward '{name}' needs the parameter 'value'\. Parameters: value, factor=1"
    ):
        build_reward(f"{forms}:{name}", {"factor": 2})


@pytest.mark.parametrize("name", ["make_nothing", "NoReward"])
def test_a_factory_that_makes_no_reward_is_refused(forms, name):
    with pytest.raises(RewardError, match=f"reward '{name}' is not a callable"):
        build_reward(f"{forms}:{name}")


def test_a_value_that_a_factory_refuses_is_shown_with_its_reason(forms):
    with pytest.raises(RewardError, match=r"my_rewards\.py:Picky' with \{'size': -1\}: size -1 is negative"):
        build_reward(f"{forms}:Picky", {"size": -1})


def test_what_is_no_function_is_refused(forms):
    with pytest.raises(RewardError, match="reward 'number' is not a function or class, but 5"):
        build_reward(f"{forms}:number")


def test_a_function_of_token_ids_alone_is_a_reward(forms):
    assert call(build_reward(f"{forms}:by_ids"), "abc", "de") == [3.0, 2.0]


def test_a_function_of_nothing_but_keywords_is_a_reward(forms):
    assert call(build_reward(f"{forms}:only_columns"), "abc", "de") == [1.0, 1.0]


@pytest.mark.parametrize(("name", "value"), [("later", 0.25), ("Later", 0.75)])
def test_an_asynchronous_reward_stays_asynchronous(forms, name, value):
    reward = build_reward(f"{forms}:{name}")
    assert isinstance(reward.reward, AsyncReward)
    assert call(reward, "a", "b") == [value, value]


def test_parameters_of_an_asynchronous_reward_are_set(forms):
    reward = build_reward(f"{forms}:later", {"value": 0.5})
    assert isinstance(reward.reward, AsyncReward)
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
    assert wrap(reward.reward).reward is reward.reward


def test_trl_takes_ours_for_what_they_are(forms):
    from trl.trainer.utils import is_async_callable

    assert is_async_callable(build_reward(f"{forms}:later").reward)
    assert not is_async_callable(build_reward(f"{forms}:brevity").reward)


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


# Several


def test_parameters_go_by_name_alias_or_spec(forms):
    specs = [f"{forms}:Constant", f"more={forms}:Constant", f"most={forms}:make_constant"]
    by_name = {"Constant": {"value": 1}, "more": {"value": 2}, specs[2]: {"value": 3}}
    built = build_rewards(specs, by_name)
    assert [reward.__name__ for reward in built] == ["Constant", "more", "most"]
    assert [call(reward, "a")[0] for reward in built] == [1.0, 2.0, 3.0]
    assert set(by_name) == {"Constant", "more", specs[2]}, "the config is left as it was"


def test_two_rewards_of_one_name_are_refused(forms):
    with pytest.raises(RewardError, match=r"two rewards are called 'tag_count'; give one of them an alias"):
        build_rewards(["tag_count", "tag_count"])
    assert len(build_rewards(["tag_count", "again=tag_count"])) == 2


def test_parameters_of_no_reward_are_an_error():
    with pytest.raises(RewardError, match=r"reward_kwargs names 'tag_cuont', .*Did you mean 'tag_count'\?"):
        build_rewards(["tag_count"], {"tag_cuont": {}})


# Built in


def test_every_built_in_reward_can_be_built_by_its_name():
    for name in BUILT_IN:
        logged = AS_TRL_LOGS.get(name, (name, {}))[0]
        assert build_reward(name, BUILT_IN_PARAMETERS.get(name, {})).__name__ == logged


# TRL's factories: the name of what they make is the name of its metrics.
AS_TRL_LOGS = {
    "get_cosine_scaled_reward": ("cosine_scaled_reward", {"max_len": 9}),
    "get_repetition_penalty_reward": ("repetition_penalty_reward", {}),
    "get_soft_overlong_punishment": (
        "soft_overlong_punishment_reward",
        {"max_completion_len": 9, "soft_punish_cache": 4},
    ),
}


@pytest.mark.parametrize("factory", AS_TRL_LOGS)
def test_trls_factories_log_under_trls_names_and_take_their_parameters_by_their_own(factory):
    logged, parameters = AS_TRL_LOGS[factory]
    theirs = getattr(trl.rewards, factory)(**parameters)
    assert theirs.__name__ == logged
    assert build_reward(factory, parameters).__name__ == logged
    assert build_reward(f"trl.rewards.{factory}", parameters).__name__ == logged
    assert build_reward(f"mine={factory}", parameters).__name__ == "mine"
    [built] = build_rewards([factory], {factory: parameters})
    assert built.__name__ == logged
    assert type(built.function).__name__ in ("CosineScaledReward", "TokenRepetition", "SoftOverlong")


@pytest.mark.parametrize("spec", ["org/reward-model", "good=org/reward-model", "runs/reward-model"])
def test_a_reward_model_is_named_as_what_it_is_where_it_cannot_be_built(spec):
    with pytest.raises(RewardError, match=r"is a model of the hub or a folder\. Only RLKDTrainer"):
        build_reward(spec)


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
