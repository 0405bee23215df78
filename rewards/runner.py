"""The runner around a reward function: builds it from a spec, calls it, and sorts what it says into outcomes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rewards.contract import Outcome, RewardError
from rlkd.data import TRL_ARGUMENTS
from rlkd.registry import (
    SpecError,
    absolute,
    check_arguments,
    describe,
    registry,
    settable_parameters,
    split_alias,
    suggestion,
)

logger = logging.getLogger(__name__)

LENGTH_ERROR = "reward {name!r} returned {found} values for {expected} completions; it must return one each, in order"


CAUSES_TOLD = 20


class Reward:
    """A reward as trainers take it: TRL's callable, with the three outcomes of the last call in `outcomes`.

    Called as TRL calls it, returns `list[float | None]` (None for not applicable and for failed alike). Where the
    caller gives `log_metric`, the shares of failed and not applicable samples are logged. Pickles by its spec.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, origin: tuple[str, dict[str, Any]] | None = None):
        self.function = function
        self.__name__ = name
        self.origin = origin
        self.outcomes: list[Outcome] = []
        parameters = inspect.signature(function).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._accepted = frozenset(settable_parameters(function))
        self.required_columns = tuple(
            column
            for column, parameter in settable_parameters(function).items()
            if parameter.default is parameter.empty and column not in TRL_ARGUMENTS
        )
        # Columns of which at least one must be there and hold something.
        self.needs_any: tuple[str, ...] = getattr(function, "needs_any", ())
        self._causes_told: set[str] = set()

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch; see the class."""
        arguments = self._arguments(prompts, completions, completion_ids, columns)
        try:
            returned = self.function(**arguments)
            if isinstance(returned, Iterator):
                returned = list(returned)  # only now does its body run, and perhaps fail
        except (RewardError, SpecError):
            raise
        except Exception as error:
            return self._finish(error, len(completions), columns)
        return self._finish(returned, len(completions), columns)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise `RewardError` if the data lacks a column that this reward needs, or has one that hides a parameter."""
        set_in_config = self.function.keywords if isinstance(self.function, partial) else {}
        for name in set_in_config:
            if name in available:
                raise RewardError(
                    f"reward {self.__name__!r}: the parameter {name!r} is set in the config, but the data have a "
                    f"column of that name, which the reward would get in its place. Rename the column."
                )
        for column in self.required_columns:
            if column not in available:
                raise RewardError(
                    f"reward {self.__name__!r} needs the column {column!r}, which the data does not have."
                    f"{suggestion(column, available)}"
                )

    def check_ready(self) -> None:
        """Raise `RewardError` if something that this reward needs at run time, such as a server, is not there.

        Asks the reward itself, where it has a method `check_ready`.
        """
        check = getattr(self.function, "check_ready", None)
        if check is not None:
            check()

    def _arguments(
        self, prompts: Any, completions: Any, completion_ids: Any, columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.check_columns([name for name in columns if name not in TRL_ARGUMENTS])
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        return given if self._takes_all else {k: v for k, v in given.items() if k in self._accepted}

    def _finish(self, returned: Any, expected: int, columns: Mapping[str, Any]) -> list[float | None]:
        name = self.__name__
        if isinstance(returned, Exception):
            cause = f"{type(returned).__name__}: {returned}"
            self.outcomes = [Outcome("failed", cause=cause)] * expected
        else:
            try:
                values = list(returned)
            except TypeError:
                raise RewardError(f"reward {name!r} returned {returned!r}; expected a list of {expected}") from None
            if len(values) != expected:
                raise RewardError(LENGTH_ERROR.format(name=name, found=len(values), expected=expected))
            self.outcomes = [Outcome.of(value, name, position) for position, value in enumerate(values)]
        for cause in dict.fromkeys(o.cause for o in self.outcomes if o.cause is not None):
            # Causes may name their sample; a flood of them helps nobody, and the rollouts file has them all.
            if cause not in self._causes_told and len(self._causes_told) < CAUSES_TOLD:
                self._causes_told.add(cause)
                logger.warning("reward %r failed: %s (counted as missing, never as 0)", name, cause)
        if (log_metric := columns.get("log_metric")) is not None and expected:
            for status in ("failed", "not_applicable"):
                share = sum(outcome.status == status for outcome in self.outcomes) / expected
                log_metric(f"rewards/{name}/{status}", share)
        return [outcome.value for outcome in self.outcomes]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is not None:
            return build_reward, self.origin
        return type(self), (self.function, self.__name__)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}>"


class AsyncReward(Reward):
    """A `Reward` around an asynchronous function; TRL runs all of these side by side."""

    async def __call__(  # type: ignore[override]
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch; see `Reward`."""
        arguments = self._arguments(prompts, completions, completion_ids, columns)
        try:
            returned = await self.function(**arguments)
        except (RewardError, SpecError):
            raise
        except Exception as error:
            return self._finish(error, len(completions), columns)
        return self._finish(returned, len(completions), columns)


def build_reward(spec: str, arguments: Mapping[str, Any] | None = None) -> Reward:
    """Build the reward that a spec names, with parameters from the config.

    `spec`: a registered name, `package.module.attribute` or `path/to/file.py:name`, with an optional `alias=` in
    front. It may name a reward function, a class whose instances are rewards, or a function that makes a reward (one
    that takes neither `prompts`, `completions` nor `completion_ids`). Raises `RewardError` that names the spec, the
    parameter and what there is.
    """
    arguments = dict(arguments or {})
    try:
        found = registry("reward").find(spec)
        what = f"reward {found.name!r}"
        if inspect.isclass(found.target) or (inspect.isfunction(found.target) and not _is_reward(found.target)):
            check_arguments(found.target, arguments, what)
            function: Any = found.target(**arguments)
        else:
            function = _bind(found.target, arguments, what)
    except SpecError as error:
        raise RewardError(str(error)) from error
    except RewardError:
        raise
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward {spec!r} with {arguments}: {error}") from error
    return wrap(function, found.name, origin=(absolute(spec), arguments))


def build_rewards(specs: Sequence[str], arguments: Mapping[str, Mapping[str, Any]] | None = None) -> list[Reward]:
    """Build the rewards of a run; names must be unique, since two rewards of one name would share their metrics.

    `arguments`: reward name (the alias, where there is one) or spec -> its parameters. An entry that fits no reward is
    an error, not ignored.
    """
    arguments = dict(arguments or {})
    rewards: list[Reward] = []
    for spec in specs:
        name = _short_name(spec)
        key = name if name in arguments else spec
        reward = build_reward(spec, arguments.pop(key, None))
        if reward.__name__ in [other.__name__ for other in rewards]:
            raise RewardError(
                f"two rewards are called {reward.__name__!r}; give one of them an alias: other_name={spec}"
            )
        rewards.append(reward)
    for name in arguments:
        raise RewardError(
            f"reward_kwargs names {name!r}, which is no reward of this run."
            f"{suggestion(name, [reward.__name__ for reward in rewards])}"
        )
    return rewards


def wrap(function: Callable[..., Any], name: str | None = None, *, origin: Any = None) -> Reward:
    """Put the runner around any TRL reward callable; a `Reward` comes back as it is."""
    if isinstance(function, Reward):
        return function
    if not callable(function):
        raise RewardError(f"reward {name!r} is no callable, but {function!r}")
    inner = function.func if isinstance(function, partial) else function
    name = name or str(getattr(inner, "__name__", type(inner).__name__))
    call = type(inner).__call__
    asynchronous = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call)
    return (AsyncReward if asynchronous else Reward)(function, name, origin=origin)


def _bind(function: Any, arguments: Mapping[str, Any], what: str) -> Callable[..., Any]:
    """Set parameters of a reward function; only those with a default can be set, the others are columns."""
    if not callable(function):
        raise RewardError(f"{what} is no function or class, but {function!r}")
    parameters = {n: p for n, p in settable_parameters(function).items() if n not in TRL_ARGUMENTS}
    for name in arguments:
        if name not in parameters:
            options = [n for n, p in parameters.items() if p.default is not p.empty]
            raise RewardError(f"{what} has no parameter {name!r}.{suggestion(name, options)}")
        if parameters[name].default is inspect.Parameter.empty:
            raise RewardError(f"{what}: {name!r} has no default, so it is a column of the data. {describe(function)}")
    return partial(function, **arguments) if arguments else function


def _is_reward(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters
    if {"prompts", "completions", "completion_ids"} & set(parameters):
        return True
    return [p.kind for p in parameters.values()] == [inspect.Parameter.VAR_KEYWORD]


def _short_name(spec: str) -> str:
    alias, rest = split_alias(spec)
    if alias:
        return alias
    return rest.rpartition(":")[2] if ".py:" in rest else rest.rpartition(".")[2]
