"""The runner around a reward function: builds it from a spec, calls it, and sorts what it says into outcomes.

What a call goes through, as far as the reward's `RewardOptions` allow it:

1. equal samples become one (`per_sample`), and those that are in the cache need no call;
2. the rest is scored, in worker processes with a hard limit where the reward is isolated;
3. what comes back becomes one `Outcome` a sample; an exception, a hang or a dead worker is a failure with its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rewards.contract import Outcome, RewardError, RewardOptions
from rlkd.cache import Cache, cache_key
from rlkd.data.rows import TRL_ARGUMENTS
from rlkd.models import cache_folder
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
from rlkd.workers.forkserver import described
from rlkd.workers.pool import Fault, IsolationError, WorkerPool, inside_worker

logger = logging.getLogger(__name__)

LENGTH_ERROR = "reward {name!r} returned {found} values for {expected} completions; it must return one each, in order"
CAUSES_TOLD = 20
CACHE_BYTES = 2 * 2**30
# Calls of an asynchronous `per_sample` reward at a time, where its options do not say: what a judge's server takes.
ASYNC_CALLS = 64
# How long after its limit an asynchronous call that was not cancelled must have blocked the event loop.
BLOCKED_SECONDS = 5.0
# What TRL hands over that is not a column: one for the batch, not one a sample.
_EXTRAS = ("trainer_state", "log_extra", "log_metric")


class Reward:
    """A reward as trainers take it: TRL's callable, with the three outcomes of the last call in `outcomes`.

    Called as TRL calls it, returns `list[float | None]` (None for not applicable and for failed alike). Where the
    caller gives `log_metric`, shares, latencies and reuse are logged. Pickles by its spec. `judge` gives the outcomes
    themselves, and may be called from several threads at once.

    Args:
        function: the reward function, or an object whose `__call__` is one.
        name: of its metrics.
        origin: spec and parameters that it was built from, where it was.
        options: what the reward says of itself (`reward_options`) where None.
        cache: folder or file of kept scores, None to keep none.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        origin: tuple[str, dict[str, Any]] | None = None,
        options: RewardOptions | None = None,
        cache: Path | None = None,
    ):
        self.function = function
        self.__name__ = name
        self.origin = origin
        self.options = options or declared_options(function)
        self.outcomes: list[Outcome] = []
        parameters = inspect.signature(function).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._accepted = frozenset(settable_parameters(function))
        # The ids say again what the text says, and would tell equal samples apart. So a reward whose score rests on
        # the sample alone has them only if it names them.
        self._withheld = {"completion_ids"} - self._accepted if self.options.per_sample else set()
        self.required_columns = tuple(
            column
            for column, parameter in settable_parameters(function).items()
            if parameter.default is parameter.empty and column not in TRL_ARGUMENTS
        )
        # Columns of which at least one must be there and hold something.
        self.needs_any: tuple[str, ...] = getattr(function, "needs_any", ())
        # What was asked before the trainer's own call (`trainers.rlkd.prefetch`), with `answers` and `result`.
        self.ahead: Any = None
        self._causes_told: set[str] = set()
        self._cache_path = cache
        # A function that is handed over may hold what no other process can have: a model, a connection, a counter.
        isolate = self.options.isolate if self.options.isolate is not None else origin is not None
        self.is_isolated = isolate and not isinstance(self, AsyncReward)
        self._has_worked_isolated = False
        self._has_told_change = False
        # Now, and not at the first batch: until then the file may be another one than what was loaded.
        self._identity = self._identify()

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch; see the class."""
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        ahead = self._take_ahead(arguments)
        self.outcomes = self.judge(**arguments) if ahead is None else ahead.result(arguments)
        self._report(columns.get("log_metric"))
        return [outcome.value for outcome in self.outcomes]

    def judge(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Outcome]:
        """The outcome of each completion."""
        plan = self._plan(prompts, completions, completion_ids, columns)
        if plan.positions:
            self._score_in_workers(plan) if self.is_isolated else self._score_here(plan)
        return self._finish(plan)

    def _take_ahead(self, arguments: dict[str, Any]) -> Any:
        """What was asked ahead, if it is what is asked now; it answers once."""
        ahead, self.ahead = self.ahead, None
        return ahead if ahead is not None and ahead.answers(arguments) else None

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

        Asks the reward itself, where it has a method `check_ready`, and starts a worker of an isolated one.
        """
        check = getattr(self.function, "check_ready", None)
        if check is not None:
            check()
        if self.is_isolated:
            try:
                self._pool.start()
            except IsolationError as error:
                self._give_up_isolation(error)

    def close(self) -> None:
        """End the worker processes; the reward can be used again."""
        if "_pool" in self.__dict__:
            self._pool.close()

    # What is to be scored

    def _plan(self, prompts: Any, completions: Any, completion_ids: Any, columns: Mapping[str, Any]) -> _Plan:
        self.check_columns([name for name in columns if name not in TRL_ARGUMENTS])
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        taken = set(given) - self._withheld if self._takes_all else self._accepted
        arguments = {name: value for name, value in given.items() if name in taken}
        plan = _Plan(arguments, len(completions))
        if not self.options.per_sample:
            plan.positions = list(range(plan.size))
            return plan
        for name, values in arguments.items():
            if name not in _EXTRAS and values is not None and len(values) != plan.size:
                raise RewardError(
                    f"reward {self.__name__!r}: the column {name!r} has {len(values)} values for {plan.size} "
                    f"completions; expected one each, in order"
                )
        plan.keys = self._keys(arguments, plan.size)
        first: dict[str, int] = {}
        for position, key in enumerate(plan.keys):
            if key is not None and first.setdefault(key, position) != position:
                plan.like[position] = first[key]
        known = self._recall(list(first))
        for position, key in enumerate(plan.keys):
            if position in plan.like:
                continue
            if key is not None and key in known:
                plan.outcomes[position] = known[key]
            else:
                plan.positions.append(position)
        return plan

    def _keys(self, arguments: Mapping[str, Any], size: int) -> list[str | None]:
        """What each sample's score rests on, as a key; None for a sample that holds what no text says."""
        if "trainer_state" in self._accepted:  # the same sample may be worth something else at another step
            return [None] * size
        told = {name: values for name, values in arguments.items() if name not in _EXTRAS}
        named = getattr(self.function, "keys", None)
        if named is not None:
            try:
                inputs: list[Any] = list(named(**told))
            except (RewardError, SpecError):
                raise
            except Exception as error:
                # What is wrong with the samples, scoring them will tell, for each by itself.
                self._tell("reward %r: nothing is reused, its `keys` failed: %s", described(error))
                return [None] * size
            if len(inputs) != size:
                raise RewardError(
                    f"reward {self.__name__!r}: its `keys` returned {len(inputs)} values for {size} completions"
                )
        else:
            inputs = [{n: None if v is None else v[i] for n, v in told.items()} for i in range(size)]
        keys: list[str | None] = []
        for value in inputs:
            try:
                keys.append(cache_key(self._basis, value))
            except (TypeError, ValueError):
                keys.append(None)
        return keys

    @cached_property
    def _basis(self) -> str:
        """`_identity` in short, as it goes into every key."""
        return cache_key(self._identity or self.__name__)

    def _identify(self) -> list[Any] | None:
        """What scores are kept under besides the inputs; None where that cannot be told, and nothing is kept."""
        function: Any = self.function
        parameters: list[Any] = [self.origin[1] if self.origin else {}]
        if isinstance(function, partial):
            parameters += [list(function.args), function.keywords]
            function = function.func
        target: Any = function if inspect.isfunction(function) else type(function)
        try:
            if self.origin is None:
                # An object's parameters, or what a closure holds, are not known; a name may be another function's.
                if not _is_importable(function) or function.__closure__:
                    return None
                name, sources = "", _sources(function)
            else:
                name = split_alias(self.origin[0])[1]
                name = name.rpartition(":")[2] if ".py:" in name else name
                sources = _sources(function) | _sources_of_spec(self.origin[0])
            basis = getattr(function, "fingerprint", "")
            identity = [name, target.__module__, target.__qualname__, self.options.version, parameters]
            identity += [sorted(sources), basis]
            cache_key(identity)
        except (TypeError, ValueError, OSError):  # SpecError is a ValueError
            return None
        return identity

    # Kept scores

    @cached_property
    def _cache(self) -> Cache | None:
        if self._cache_path is None or not (self.options.per_sample and self.options.cache) or self._identity is None:
            return None
        return Cache(self._cache_path, max_bytes=CACHE_BYTES)

    def _recall(self, keys: Sequence[str]) -> dict[str, Outcome]:
        if self._cache is None or not keys:
            return {}
        found = {}
        for key, entry in self._cache.get(keys).items():
            if isinstance(entry, list) and len(entry) == 3 and entry[0] in ("score", "not_applicable"):
                found[key] = Outcome(entry[0], entry[1], detail=entry[2], reused="cache")
        return found

    def _keep(self, plan: _Plan) -> None:
        if self._cache is None:
            return
        if self._identify() != self._identity:
            # A worker that was replaced has loaded the new one: whose score is whose is not known.
            if not self._has_told_change:
                self._has_told_change = True
                logger.warning(
                    "reward %r: its source was changed during the run. Workers that start from now on use the new "
                    "one; scores are not kept any more.",
                    self.__name__,
                )
            return
        kept = {}
        for position in plan.positions:
            key, outcome = plan.keys[position], plan.outcomes[position]
            if key is None or outcome is None or outcome.status == "failed":
                continue
            try:
                value = [outcome.status, outcome.value, None if outcome.detail is None else dict(outcome.detail)]
                cache_key(value)  # only what JSON brings back as it was
            except (TypeError, ValueError):
                continue
            kept[key] = value
        self._cache.put(kept)

    # Scoring

    @cached_property
    def _scorer(self) -> _Scorer:
        return _Scorer(self.function, self.__name__, self.origin)

    @cached_property
    def _pool(self) -> WorkerPool:
        return WorkerPool(self._scorer, workers=self.options.workers if self.options.per_sample else 1)

    def _score_in_workers(self, plan: _Plan) -> None:
        parts = [[position] for position in plan.positions] if self.options.per_sample else [plan.positions]
        portable = _portable(plan.arguments)
        calls = [(plan.select(part, portable), len(part)) for part in parts]
        try:
            results = self._pool.map(calls, limit=self.options.timeout)
        except IsolationError as error:
            if self._has_worked_isolated:
                # What went before could run there, so this is no reason to do without a limit.
                fault = Fault("crash", str(error))
                plan.enter(plan.positions, self._settled(fault, plan.positions))
                return
            self._give_up_isolation(error)
            self._score_here(plan)
            return
        self._has_worked_isolated = True
        for part, result in zip(parts, results, strict=True):
            plan.enter(part, self._settled(result, part))

    def _score_here(self, plan: _Plan) -> None:
        where = "Set" if self.origin else "Name it by a spec, or set"
        advice = f"It cannot be stopped. {where} reward_options: {{{self.__name__}: {{isolate: true}}}}"
        with _Watch(self.__name__, self.options.timeout, advice):
            result = _attempt(self._scorer, plan.select(plan.positions), len(plan.positions))
            if isinstance(result, Fault) and self.options.per_sample and len(plan.positions) > 1:
                # One sample that raises must not take the others along.
                for position in plan.positions:
                    single = _attempt(self._scorer, plan.select([position]), 1)
                    plan.enter([position], self._settled(single, [position]))
                return
        plan.enter(plan.positions, self._settled(result, plan.positions))

    def _settled(self, result: _Scored | Fault, part: Sequence[int]) -> _Scored:
        if not isinstance(result, Fault):
            return result
        if isinstance(result.exception, (RewardError, SpecError)):
            raise result.exception
        seconds = self.options.timeout if result.kind == "timeout" else None
        return _Scored([Outcome("failed", cause=result.message, seconds=seconds)] * len(part))

    def _give_up_isolation(self, error: IsolationError) -> None:
        """Run here from now on, where isolation was a default and not asked for."""
        if self.options.isolate:
            raise RewardError(
                f"reward {self.__name__!r} cannot run in a worker process: {error}. To let it run in this process, "
                f"without a hard limit:  reward_options: {{{self.__name__}: {{isolate: false}}}}"
            ) from error
        logger.warning(
            "reward %r runs in this process, where a call that hangs cannot be stopped: %s", self.__name__, error
        )
        self.is_isolated = False

    def _finish(self, plan: _Plan) -> list[Outcome]:
        self._keep(plan)
        for position, source in plan.like.items():
            like = plan.outcomes[source]
            assert like is not None
            plan.outcomes[position] = replace(like, reused=like.reused or "batch")
        plan.log()
        outcomes = [outcome for outcome in plan.outcomes if outcome is not None]
        assert len(outcomes) == plan.size
        for cause in dict.fromkeys(o.cause for o in outcomes if o.cause is not None):
            self._tell("reward %r failed: %s (counted as missing, never as 0)", cause)
        return outcomes

    def _tell(self, message: str, cause: str) -> None:
        # Causes may name their sample; a flood of them helps nobody, and the rollouts file has them all.
        if cause not in self._causes_told and len(self._causes_told) < CAUSES_TOLD:
            self._causes_told.add(cause)
            logger.warning(message, self.__name__, cause)

    def _report(self, log_metric: Callable[[str, float], None] | None) -> None:
        if log_metric is None or not self.outcomes:
            return
        name, count = self.__name__, len(self.outcomes)
        for status in ("failed", "not_applicable"):
            log_metric(f"rewards/{name}/{status}", sum(o.status == status for o in self.outcomes) / count)
        if self.options.per_sample:
            for source in ("batch", "cache"):
                log_metric(f"rewards/{name}/reused_{source}", sum(o.reused == source for o in self.outcomes) / count)
        seconds = sorted(o.seconds for o in self.outcomes if o.seconds is not None and o.reused is None)
        if seconds:
            for share in (50, 95):
                log_metric(f"rewards/{name}/seconds_p{share}", percentile(seconds, share))

    def __reduce__(self) -> tuple[Any, ...]:
        function = None if self.origin else self.function
        return _rebuild, (type(self), function, self.__name__, self.origin, self.options, self._cache_path)

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
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        ahead = self._take_ahead(arguments)
        if ahead is None:
            self.outcomes = await self.judge(**arguments)
        else:
            self.outcomes = await asyncio.to_thread(ahead.result, arguments)
        self._report(columns.get("log_metric"))
        return [outcome.value for outcome in self.outcomes]

    async def judge(  # type: ignore[override]
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Outcome]:
        """The outcome of each completion."""
        plan = self._plan(prompts, completions, completion_ids, columns)
        if plan.positions:
            parts = [[position] for position in plan.positions] if self.options.per_sample else [plan.positions]
            gate = asyncio.Semaphore(self.options.workers or ASYNC_CALLS)

            async def call(part: list[int]) -> _Scored:
                async with gate:
                    return self._settled(await self._call(plan.select(part), len(part)), part)

            calls = [asyncio.ensure_future(call(part)) for part in parts]
            try:
                results = await asyncio.gather(*calls)
            except BaseException:  # one that ends the run, or cancelled from outside
                for started in calls:
                    started.cancel()
                raise
            for part, scored in zip(parts, results, strict=True):
                plan.enter(part, scored)
        return self._finish(plan)

    async def _call(self, arguments: dict[str, Any], expected: int) -> _Scored | Fault:
        scored = _Scored([])
        started = time.perf_counter()
        try:
            task = asyncio.ensure_future(self.function(**_recording(arguments, scored)))
            # Looked at, also where nobody waits for it any more: or asyncio would complain.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            # One that blocks the event loop cannot be cancelled, and nor can any other meanwhile.
            late = None if self.options.timeout is None else self.options.timeout + BLOCKED_SECONDS
            advice = "It blocks the event loop, so it cannot be cancelled: await, or make it a plain function."
            try:
                with _Watch(self.__name__, late, advice):
                    done, _ = await asyncio.wait({task}, timeout=self.options.timeout)
            except BaseException:  # cancelled from outside
                task.cancel()
                raise
            if not done:
                task.cancel()
                # It may clean up, but not for ever: one that swallows its cancellation is left to itself.
                await asyncio.wait({task}, timeout=1.0)
                return Fault("timeout", f"took more than {self.options.timeout:g} s")
            if task.cancelled():  # not by us: a future that it shares with others was
                return Fault("error", "it was cancelled from within")
            outcomes = _outcomes(task.result(), self.__name__, expected)
        except (RewardError, SpecError):
            raise
        except Exception as error:
            return Fault("error", described(error), error)
        seconds = time.perf_counter() - started
        scored.outcomes = [replace(outcome, seconds=seconds) for outcome in outcomes]
        return scored


@dataclass
class _Scored:
    """What one call of a reward function came to, and what it logged meanwhile."""

    outcomes: list[Outcome]
    metrics: list[tuple[str, float]] = field(default_factory=list)
    extras: list[tuple[str, list[Any]]] = field(default_factory=list)


class _Plan:
    """One batch on its way: what is known, what is like what, what is to be scored, what was logged."""

    def __init__(self, arguments: dict[str, Any], size: int):
        self.arguments = arguments
        self.size = size
        self.keys: list[str | None] = [None] * size
        self.like: dict[int, int] = {}
        self.positions: list[int] = []
        self.outcomes: list[Outcome | None] = [None] * size
        self._metrics: list[tuple[str, float]] = []
        self._extras: dict[str, list[Any]] = {}

    def select(self, positions: Sequence[int], arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The arguments, or what is given in their place, for some of the samples."""
        arguments = self.arguments if arguments is None else arguments
        if len(positions) == self.size:
            return arguments
        return {
            name: value if name in _EXTRAS or value is None else [value[position] for position in positions]
            for name, value in arguments.items()
        }

    def enter(self, positions: Sequence[int], scored: _Scored) -> None:
        for position, outcome in zip(positions, scored.outcomes, strict=True):
            self.outcomes[position] = outcome
        self._metrics += scored.metrics
        for column, values in scored.extras:
            if len(values) == len(positions):
                whole = self._extras.setdefault(column, [None] * self.size)
                for position, value in zip(positions, values, strict=True):
                    whole[position] = value

    def log(self) -> None:
        """Hand on what the reward logged; TRL's table needs a value for every sample of the batch."""
        if log_metric := self.arguments.get("log_metric"):
            for name, value in self._metrics:
                log_metric(name, value)
        if log_extra := self.arguments.get("log_extra"):
            for column, values in self._extras.items():
                log_extra(column, [values[self.like.get(i, i)] for i in range(self.size)])


class _Scorer:
    """A reward function, called and read: what a worker process runs. Travels by the spec, where there is one."""

    def __init__(self, function: Callable[..., Any], name: str, origin: tuple[str, dict[str, Any]] | None):
        self.function = function
        self.name = name
        self.__name__ = f"reward {name!r}"
        self.origin = origin

    def __call__(self, arguments: dict[str, Any], expected: int) -> _Scored:
        scored = _Scored([])
        started = time.perf_counter()
        try:
            outcomes = _outcomes(self.function(**_recording(arguments, scored)), self.name, expected)
        except (RewardError, SpecError) as error:
            if inside_worker():  # one of a kind that does not pickle would come back as a failure
                raise RewardError(str(error)) from None
            raise
        seconds = time.perf_counter() - started
        scored.outcomes = [replace(outcome, seconds=seconds) for outcome in outcomes]
        return scored

    def __reduce__(self) -> tuple[Any, ...]:
        inner = self.function.func if isinstance(self.function, partial) else self.function
        module = getattr(inner, "__module__", None)
        if self.origin is None or module == "__main__":  # which a worker does not execute
            return _Scorer, (self.function, self.name, None)
        return _scorer_of, (*self.origin, self.name, module)


def _recording(arguments: dict[str, Any], scored: _Scored) -> dict[str, Any]:
    """The arguments with callbacks that keep what is logged until the whole batch is through."""
    recorders = {
        "log_metric": lambda name, value: scored.metrics.append((name, value)),
        "log_extra": lambda column, values: scored.extras.append((column, list(values))),
    }
    return {**arguments, **{k: recorder for k, recorder in recorders.items() if arguments.get(k) is not None}}


def _scorer_of(spec: str, arguments: dict[str, Any], name: str, module: str | None) -> _Scorer:
    if module is not None:
        with contextlib.suppress(ModuleNotFoundError):  # a file that a spec names has a module name of ours
            importlib.import_module(module)  # which may be what registers the name
    return _Scorer(_make(spec, arguments)[1], name, (spec, arguments))


def _attempt(scorer: _Scorer, arguments: dict[str, Any], expected: int) -> _Scored | Fault:
    try:
        return scorer(arguments, expected)
    except (RewardError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # one that calls sys.exit does not end the run
        return Fault("error", described(error), error)


def _outcomes(returned: Any, name: str, expected: int) -> list[Outcome]:
    if not isinstance(returned, Iterator):
        try:
            iter(returned)
        except TypeError:
            raise RewardError(f"reward {name!r} returned {returned!r}; expected a list of {expected}") from None
    values = list(returned)  # an iterator's body runs only now, and may fail
    if len(values) != expected:
        raise RewardError(LENGTH_ERROR.format(name=name, found=len(values), expected=expected))
    return [Outcome.of(value, name, position) for position, value in enumerate(values)]


def _portable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a worker process can take them: TRL's callbacks stay here, of its state go the plain values."""
    portable = {name: value for name, value in arguments.items() if name not in _EXTRAS}
    portable |= {name: True for name in ("log_extra", "log_metric") if arguments.get(name) is not None}
    if (state := arguments.get("trainer_state")) is not None:
        plain = {
            n: v
            for n, v in getattr(state, "__dict__", {}).items()
            if v is None or isinstance(v, (bool, int, float, str))
        }
        portable["trainer_state"] = SimpleNamespace(**plain)
    return portable


class _Watch:
    """Says in the log that a call in this process goes beyond its limit, where nothing else can be done about it."""

    def __init__(self, name: str, seconds: float | None, advice: str):
        self._timer = None if seconds is None else threading.Timer(seconds, self._tell, (name, seconds, advice))

    def __enter__(self) -> None:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @staticmethod
    def _tell(name: str, seconds: float, advice: str) -> None:
        logger.warning("reward %r has been at one call for %g s, in this process. %s", name, seconds, advice)


def percentile(ordered: Sequence[float], share: int) -> float:
    """The least of the values, which are in order, that `share` per cent of them do not exceed (the nearest rank)."""
    return ordered[-(-len(ordered) * share // 100) - 1]


def name_of(function: Any) -> str:
    """What a reward function goes by in metrics and in the config, where no alias is given."""
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def declared_options(function: Any) -> RewardOptions:
    """What a reward says of itself in `reward_options`; the defaults where it says nothing."""
    inner = function.func if isinstance(function, partial) else function
    declared = getattr(inner, "reward_options", None)
    if declared is not None and not isinstance(declared, RewardOptions):
        raise RewardError(f"{inner!r}: reward_options is {declared!r}; expected rewards.RewardOptions(...)")
    return declared or RewardOptions()


def _is_importable(function: Any) -> bool:
    """Whether a function is what its module and name say, as lambdas and inner functions are not."""
    if not inspect.isfunction(function):
        return False
    try:
        return reduce(getattr, function.__qualname__.split("."), sys.modules[function.__module__]) is function
    except (KeyError, AttributeError):
        return False


def _sources(function: Any) -> set[str]:
    """Digests of the files that say what a reward does: its own, what it is wrapped in, what it is derived from.

    Raises TypeError or OSError where there is no file.
    """
    if not inspect.isfunction(function) and not inspect.isclass(function):
        function = type(function)
    if inspect.isclass(function):
        places = [kind for kind in function.__mro__ if kind.__module__ != "builtins"]
    else:
        places = [function, inspect.unwrap(function)]
    files = {inspect.getsourcefile(place) or "" for place in places}
    return {hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def _sources_of_spec(spec: str) -> set[str]:
    """The same for what a spec names, which may make a reward whose own source is elsewhere."""
    found = registry("reward").find(spec)
    if inspect.isfunction(found.target) or inspect.isclass(found.target):
        return _sources(found.target)
    file = found.source  # an object, with parameters that stand where it is made
    if not file.endswith(".py"):
        module = sys.modules.get(file.replace(":", ".").rpartition(".")[0])
        file = getattr(module, "__file__", None) or ""
    return {hashlib.sha256(Path(file).read_bytes()).hexdigest()}


def default_cache() -> Path:
    """The file in which scores are kept across runs."""
    return cache_folder() / "rewards.sqlite"


def _rebuild(
    kind: type[Reward],
    function: Any,
    name: str,
    origin: tuple[str, dict[str, Any]] | None,
    options: RewardOptions,
    cache: Path | None,
) -> Reward:
    if origin is not None:
        function = _make(*origin)[1]
    return kind(function, name, origin=origin, options=options, cache=cache)


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
        options: fields of `RewardOptions`, in the place of what the reward says of itself.
        cache: where scores are kept: a file, True for `default_cache()`, False to keep none.

    Raises `RewardError` that names the spec, the parameter and what there is.
    """
    arguments = dict(arguments or {})
    name, function = _make(spec, arguments)
    return wrap(function, name, origin=(absolute(spec), arguments), options=options, cache=cache)


def build_rewards(
    specs: Sequence[str],
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    cache: Path | bool = True,
) -> list[Reward]:
    """Build the rewards of a run; names must be unique, since two rewards of one name would share their metrics.

    `arguments`, `options`: reward name (the alias, where there is one) or spec -> its parameters, its options. An
    entry that fits no reward is an error, not ignored.
    """
    given = {"reward_kwargs": dict(arguments or {}), "reward_options": dict(options or {})}
    rewards: list[Reward] = []
    for spec in specs:
        name = _short_name(spec)
        own = [entries.pop(name if name in entries else spec, None) for entries in given.values()]
        reward = build_reward(spec, *own, cache=cache)
        if reward.__name__ in [other.__name__ for other in rewards]:
            raise RewardError(
                f"two rewards are called {reward.__name__!r}; give one of them an alias: other_name={spec}"
            )
        rewards.append(reward)
    for key, entries in given.items():
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
    origin: Any = None,
    options: Mapping[str, Any] | None = None,
    cache: Path | bool = True,
) -> Reward:
    """Put the runner around any TRL reward callable; a `Reward` comes back as it is. Arguments: see `build_reward`."""
    if isinstance(function, Reward):
        return function
    if not callable(function):
        raise RewardError(f"reward {name!r} is no callable, but {function!r}")
    inner = function.func if isinstance(function, partial) else function
    name = name or name_of(function)
    call = type(inner).__call__
    asynchronous = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call)
    kind = AsyncReward if asynchronous else Reward
    place = (default_cache() if cache else None) if isinstance(cache, bool) else Path(cache)
    chosen = _overridden(declared_options(function), options or {}, name)
    return kind(function, name, origin=origin, options=chosen, cache=place)


def _make(spec: str, arguments: Mapping[str, Any]) -> tuple[str, Callable[..., Any]]:
    """The name and the function that a spec and its parameters come to."""
    try:
        found = registry("reward").find(spec)
        what = f"reward {found.name!r}"
        if inspect.isclass(found.target) or (inspect.isfunction(found.target) and not _is_reward(found.target)):
            check_arguments(found.target, arguments, what)
            made: Any = found.target(**arguments)
            return found.name, made
        return found.name, _bind(found.target, arguments, what)
    except SpecError as error:
        raise RewardError(str(error)) from error
    except RewardError:
        raise
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward {spec!r} with {dict(arguments)}: {error}") from error


def _overridden(declared: RewardOptions, options: Mapping[str, Any], name: str) -> RewardOptions:
    known = [option.name for option in fields(RewardOptions)]
    for option in options:
        if option not in known:
            raise RewardError(f"reward_options of {name!r}: no option {option!r}.{suggestion(option, known)}")
    try:
        return replace(declared, **options)
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward_options of {name!r}: {error}") from error


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
