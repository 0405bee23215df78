"""Builds rewards from the specs, parameters and options of a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rewards.contract import RewardError, RewardOptions
from rewards.identity import Origin, name_of, unwrapped
from rewards.runner import AsyncReward, Reward, SyncReward, declared_options
from rlkd.models import cache_folder
from rlkd.registry import absolute, build, split_alias, suggestion

# TRL logs what these make under the name of the function inside.
TRL_FACTORIES = ("get_cosine_scaled_reward", "get_repetition_penalty_reward", "get_soft_overlong_punishment")


def names_model(spec: Any) -> bool:
    """Whether a reward is given as the hub id or the folder of a reward model: a text with a slash, and no `.py`.

    >>> [names_model(spec) for spec in ("org/model", "mine=runs/rm", "rewards/mine.py:short", "my.module.short")]
    [True, True, False, False]
    """
    return isinstance(spec, str) and "/" in (rest := split_alias(spec)[1]) and ".py" not in rest


def default_cache() -> Path:
    """The file that caches scores across runs."""
    return cache_folder() / "rewards.sqlite"


def build_reward(
    spec: str,
    arguments: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    cache: Path | bool = True,
) -> Reward:
    """Build the reward that a spec names, with parameters from the config.

    Args:
        spec: a registered name, `package.module.attribute` or `path/to/file.py:name`, with an optional `alias=` in
            front. It may name a reward function, a class whose instances are rewards, or a function that makes a
            reward (one that takes neither `prompts`, `completions` nor `completion_ids`).
        arguments: its parameters.
        options: fields of `RewardOptions` that override those that the reward declares.
        cache: the file that caches scores, True for `default_cache()`, False for no cache.

    Raises `RewardError` that names the spec, the parameter and the known ones.
    """
    arguments = dict(arguments or {})
    if names_model(spec):
        raise RewardError(
            f"reward {spec!r} is a model of the hub or a folder. Only RLKDTrainer and recipes/rlkd.py take reward "
            "models; elsewhere, call a served one from a reward of your own (docs/rewards.md)"
        )
    built = build("reward", spec, arguments, error=RewardError)
    name = name_of(built.bound) if built.name in TRL_FACTORIES else built.name
    return wrap(built.bound, name, origin=(absolute(spec), arguments), options=options, cache=cache)


def build_rewards(
    specs: Sequence[str | Callable[..., Any]],
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    cache: Path | bool = True,
) -> list[Reward]:
    """Build the rewards of a run; names must be unique, since two rewards of one name would share their metrics.

    Args:
        specs: specs, and reward callables as they are.
        arguments, options: reward name (the alias, if there is one) or spec -> its parameters, its options. Options
            may also go to a callable, by its name. An entry that fits no reward is an error.
    """
    parameters_of, options_of = dict(arguments or {}), dict(options or {})
    rewards: list[Reward] = []
    for spec in specs:
        if isinstance(spec, str):
            name = short_name(spec)
            own = [entries.pop(name if name in entries else spec, None) for entries in (parameters_of, options_of)]
            reward = build_reward(spec, *own, cache=cache)
        elif isinstance(spec, Reward):
            reward = spec
        else:
            reward = wrap(spec, options=options_of.pop(name_of(spec), None), cache=cache)
        if reward.__name__ in [other.__name__ for other in rewards]:
            way_out = f"give one of them an alias: other_name={spec}" if isinstance(spec, str) else "rename one"
            raise RewardError(f"two rewards are called {reward.__name__!r}; {way_out}")
        rewards.append(reward)
    for key, entries in (("reward_kwargs", parameters_of), ("reward_options", options_of)):
        for name in entries:
            raise RewardError(
                f"{key} names {name!r}, which is no reward of this run."
                f"{suggestion(name, [reward.__name__ for reward in rewards])}"
            )
    return rewards


def wrap(
    function: Callable[..., Any],
    name: str | None = None,
    *,
    origin: Origin | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Path | bool = True,
) -> Reward:
    """Make a `Reward` of any TRL reward callable; a `Reward` is returned as it is. Arguments: see `build_reward`."""
    if isinstance(function, Reward):
        return function
    if not callable(function):
        raise RewardError(f"reward {name!r} is not a callable, but {function!r}")
    inner = unwrapped(function)
    name = name or name_of(function)
    is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
    path = (default_cache() if cache else None) if isinstance(cache, bool) else Path(cache)
    chosen = _overridden(declared_options(function), options or {}, name)
    return (AsyncReward if is_async else SyncReward)(function, name, origin=origin, options=chosen, cache=path)


def _overridden(declared: RewardOptions, options: Mapping[str, Any], name: str) -> RewardOptions:
    known = [option.name for option in fields(RewardOptions)]
    for option in options:
        if option not in known:
            raise RewardError(f"reward_options of {name!r}: no option {option!r}.{suggestion(option, known)}")
    try:
        return replace(declared, **options)
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward_options of {name!r}: {error}") from error


def short_name(spec: str) -> str:
    """The name that a spec goes by in the config: its alias, or its last part."""
    alias, rest = split_alias(spec)
    return alias or rest.rpartition(":" if ".py:" in rest else ".")[2]
