"""Runs a reward function and sorts its return values into outcomes.

Equal samples are scored once and cached ones not at all (`per_sample`); the rest runs in worker processes with a hard
time limit if the reward is isolated. An exception, a hang or a dead worker is a failure with its cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rewards.contract import Outcome, RewardError, RewardOptions
from rewards.identity import Identity, Origin, UnknownIdentity, unwrapped
from rlkd.cache import Cache, cache_key
from rlkd.data.rows import TRL_ARGUMENTS
from rlkd.registry import SpecError, build, settable_parameters, suggestion
from rlkd.workers.forkserver import described
from rlkd.workers.pool import Fault, IsolationError, WorkerPool, inside_worker

logger = logging.getLogger(__name__)

LENGTH_ERROR = "reward {name!r} returned {found} values for {expected} completions; it must return one each, in order"
MAX_LOGGED_CAUSES = 20
CACHE_BYTES = 2 * 2**30
# Concurrent calls of an asynchronous `per_sample` reward, unless its options say otherwise.
ASYNC_CALLS = 64
# Seconds after its limit at which an asynchronous call that was not cancelled must have blocked the event loop.
BLOCKED_SECONDS = 5.0
# TRL's arguments that are not columns: one for the batch, not one per sample.
_EXTRAS = ("trainer_state", "log_extra", "log_metric")


class Reward:
    """A reward as trainers take it: TRL's callable, whose outcomes `score` returns.

    Called as TRL calls it, it returns `list[float | None]` (None for not applicable and for failed alike) and logs
    shares, latencies and reuse through `log_metric`, if given. `score` and `score_async` return the outcomes
    themselves, also from several threads at once. All take TRL's arguments by name: `completions`, and `prompts`,
    `completion_ids` and the columns of the data as far as the function needs them. A reward pickles by its spec.
    Made by `rewards.build.wrap`, which chooses `SyncReward` or `AsyncReward`.

    Args:
        function: the reward function, or an object whose `__call__` is one.
        name: of its metrics.
        origin: spec and parameters, if it was built from a spec.
        options: by default those that the reward declares (`reward_options`).
        cache: file that caches scores, None for no cache.
    """

    is_isolated = False

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        origin: Origin | None = None,
        options: RewardOptions | None = None,
        cache: Path | None = None,
    ):
        self.function = function
        self.__name__ = name
        self.origin = origin
        self.options = options or declared_options(function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
        parameters = settable_parameters(function)
        self._accepted = frozenset(parameters)
        # The ids repeat the text, and would tell equal samples apart. So a `per_sample` reward gets them only if it
        # names them.
        self._withheld = {"completion_ids"} - self._accepted if self.options.per_sample else set()
        self.required_columns = tuple(
            column
            for column, parameter in parameters.items()
            if parameter.default is parameter.empty and column not in TRL_ARGUMENTS
        ) + tuple(getattr(function, "needs", ()))  # columns that its own parameters name
        # Columns of which at least one must exist and hold a value.
        self.needs_any: tuple[str, ...] = getattr(function, "needs_any", ())
        self._logged_causes: set[str] = set()
        self._cache_path = cache
        self._warned_of_change = False
        # Before the first batch: until then the file could change, and its digest not be that of the loaded code.
        self._identity: Identity | None = None
        with contextlib.suppress(UnknownIdentity):
            self._identity = Identity(function, origin, self.options.version)

    def __call__(self, **arguments: Any) -> Any:
        """The value of each completion; a coroutine for an `AsyncReward`."""
        raise NotImplementedError

    def score(self, **arguments: Any) -> list[Outcome]:
        """The outcome of each completion."""
        raise NotImplementedError

    async def score_async(self, **arguments: Any) -> list[Outcome]:
        """The same, for a caller on an event loop."""
        raise NotImplementedError

    def report(
        self, outcomes: Sequence[Outcome], log_metric: Callable[[str, float], None] | None
    ) -> list[float | None]:
        """Log the metrics of a batch, and return the values that TRL takes."""
        if log_metric is not None and outcomes:
            from rlkd.statistics import percentile  # numpy, which only a run needs

            name, count = self.__name__, len(outcomes)
            for status in ("failed", "not_applicable"):
                log_metric(f"rewards/{name}/{status}", sum(o.status == status for o in outcomes) / count)
            if self.options.per_sample:
                for source in ("batch", "cache"):
                    log_metric(f"rewards/{name}/reused_{source}", sum(o.reused == source for o in outcomes) / count)
            seconds = sorted(o.seconds for o in outcomes if o.seconds is not None and o.reused is None)
            for share in (50, 95):
                if (value := percentile(seconds, share)) is not None:
                    log_metric(f"rewards/{name}/seconds_p{share}", value)
            own = getattr(self.function, "batch_metrics", None)
            for key, value in own(outcomes).items() if own is not None else ():
                log_metric(f"rewards/{name}/{key}", value)
        return [outcome.value for outcome in outcomes]

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise `RewardError` if the data lacks a column that this reward needs, or has one that hides a parameter."""
        set_in_config = self.function.keywords if isinstance(self.function, partial) else {}
        for name in set_in_config:
            if name in available:
                raise RewardError(
                    f"reward {self.__name__!r}: the parameter {name!r} is set in the config, but the data have a "
                    f"column of that name, which would replace it. Rename the column."
                )
        for column in self.required_columns:
            if column not in available:
                raise RewardError(
                    f"reward {self.__name__!r} needs the column {column!r}, which the data does not have."
                    f"{suggestion(column, available)}"
                )

    def check_ready(self) -> None:
        """Raise `RewardError` if something that this reward needs at run time, such as a server, is missing.

        Calls the method `check_ready` of the reward itself, if it has one, and starts a worker of an isolated one.
        """
        check = getattr(self.function, "check_ready", None)
        if check is not None:
            check()

    def close(self) -> None:
        """End the worker processes; the reward can be used again."""

    def with_parameters(self, parameters: Mapping[str, Any]) -> Reward:
        """A copy of a reward that was built from a spec, with these parameters set as well."""
        assert self.origin is not None
        origin = self.origin[0], {**self.origin[1], **parameters}
        return _rebuild(type(self), None, self.__name__, origin, self.options, self._cache_path)

    # The plan of a batch: which samples to score

    def _plan(self, given: dict[str, Any]) -> _Plan:
        self.check_columns([name for name in given if name not in TRL_ARGUMENTS])
        given = {"prompts": None, "completions": (), "completion_ids": None} | given
        taken = set(given) - self._withheld if self._takes_all else self._accepted
        arguments = {name: value for name, value in given.items() if name in taken}
        plan = _Plan(arguments, len(given["completions"]), self.options.per_sample)
        if not self.options.per_sample:
            plan.to_score = list(range(plan.size))
            return plan
        for name, values in arguments.items():
            if name not in _EXTRAS and values is not None and len(values) != plan.size:
                raise RewardError(
                    f"reward {self.__name__!r}: the column {name!r} has {len(values)} values for {plan.size} "
                    f"completions; expected one each, in order"
                )
        plan.keys = self._keys(arguments, plan.size)
        first: dict[str, int] = {}
        for index, key in enumerate(plan.keys):
            if key is not None and first.setdefault(key, index) != index:
                plan.duplicates[index] = first[key]
        cached = self._read_cache(list(first))
        for index, key in enumerate(plan.keys):
            if index in plan.duplicates:
                continue
            if key is not None and key in cached:
                plan.outcomes[index] = cached[key]
            else:
                plan.to_score.append(index)
        return plan

    def _keys(self, arguments: Mapping[str, Any], size: int) -> list[str | None]:
        """A key for what each sample's score depends on; None for a sample that holds more than JSON can say."""
        if "trainer_state" in self._accepted:  # the same sample may have another score at another step
            return [None] * size
        columns = {name: values for name, values in arguments.items() if name not in _EXTRAS}
        own_keys = getattr(self.function, "keys", None)
        if own_keys is not None:
            try:
                inputs: list[Any] = list(own_keys(**columns))
            except (RewardError, SpecError):
                raise
            except Exception as error:
                # Scoring reports what is wrong with the samples, for each by itself.
                self._log_cause("reward %r: no score is reused, its `keys` failed: %s", described(error))
                return [None] * size
            if len(inputs) != size:
                raise RewardError(
                    f"reward {self.__name__!r}: its `keys` returned {len(inputs)} values for {size} completions"
                )
        else:
            inputs = [{n: None if v is None else v[i] for n, v in columns.items()} for i in range(size)]
        keys: list[str | None] = []
        for value in inputs:
            try:
                keys.append(cache_key(self._key_prefix, value))
            except (TypeError, ValueError):
                keys.append(None)
        return keys

    @cached_property
    def _key_prefix(self) -> str:
        return cache_key(self._identity.parts if self._identity else self.__name__)

    def _settled(self, result: _CallResult | Fault, indices: Sequence[int]) -> _CallResult:
        if not isinstance(result, Fault):
            return result
        if isinstance(result.exception, (RewardError, SpecError)):
            raise result.exception
        seconds = self.options.timeout if result.kind == "timeout" else None
        return _CallResult([Outcome("failed", cause=result.message, seconds=seconds)] * len(indices))

    def _finish(self, plan: _Plan) -> list[Outcome]:
        self._write_cache(plan)
        for index, source in plan.duplicates.items():
            original = plan.outcomes[source]
            assert original is not None
            plan.outcomes[index] = replace(original, reused=original.reused or "batch")
        plan.log()
        outcomes = [outcome for outcome in plan.outcomes if outcome is not None]
        assert len(outcomes) == plan.size
        for cause in dict.fromkeys(o.cause for o in outcomes if o.cause is not None):
            self._log_cause("reward %r failed: %s (counted as missing, never as 0)", cause)
        return outcomes

    def _log_cause(self, message: str, cause: str) -> None:
        # Causes may name their sample, so the log takes some; the rollouts file has all.
        if cause not in self._logged_causes and len(self._logged_causes) < MAX_LOGGED_CAUSES:
            self._logged_causes.add(cause)
            logger.warning(message, self.__name__, cause)

    # Cached scores

    @cached_property
    def _cache(self) -> Cache | None:
        if self._cache_path is None or not (self.options.per_sample and self.options.cache) or self._identity is None:
            return None
        return Cache(self._cache_path, max_bytes=CACHE_BYTES)

    def _read_cache(self, keys: Sequence[str]) -> dict[str, Outcome]:
        if self._cache is None or not keys:
            return {}
        return {
            key: Outcome(entry[0], entry[1], detail=entry[2], reused="cache")
            for key, entry in self._cache.get(keys).items()
            if isinstance(entry, list) and len(entry) == 3 and entry[0] in ("score", "not_applicable")
        }

    def _write_cache(self, plan: _Plan) -> None:
        if self._cache is None or self._identity is None:
            return
        if not self._identity.is_current():
            # A replaced worker has loaded the new source, so a score may come from either.
            if not self._warned_of_change:
                self._warned_of_change = True
                logger.warning(
                    "reward %r: its source was changed during the run. Workers that start from now on use the new "
                    "source; scores are not cached any more.",
                    self.__name__,
                )
            return
        new = {}
        for index in plan.to_score:
            key, outcome = plan.keys[index], plan.outcomes[index]
            if key is None or outcome is None or outcome.status == "failed" or outcome.provisional:
                continue
            try:
                value = [outcome.status, outcome.value, None if outcome.detail is None else dict(outcome.detail)]
                cache_key(value)  # raises for what JSON would not restore
            except (TypeError, ValueError):
                continue
            new[key] = value
        self._cache.put(new)

    def __reduce__(self) -> tuple[Any, ...]:
        function = None if self.origin else self.function
        return _rebuild, (type(self), function, self.__name__, self.origin, self.options, self._cache_path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}>"


class SyncReward(Reward):
    """A `Reward` around a plain function, which runs in worker processes or in this one."""

    def __init__(self, function: Callable[..., Any], name: str, **settings: Any):
        super().__init__(function, name, **settings)
        # A function that comes as an object may hold what no other process can have: a model, a connection, a counter.
        self.is_isolated = self.options.isolate if self.options.isolate is not None else self.origin is not None
        self._has_worked_isolated = False
        self._call = _RewardCall(self.function, name, self.origin)

    def __call__(self, **arguments: Any) -> list[float | None]:
        """Score a batch; see `Reward`."""
        return self.report(self.score(**arguments), arguments.get("log_metric"))

    def score(self, **arguments: Any) -> list[Outcome]:
        """The outcome of each completion."""
        plan = self._plan(arguments)
        if plan.to_score:
            self._score_in_workers(plan) if self.is_isolated else self._score_here(plan)
        return self._finish(plan)

    async def score_async(self, **arguments: Any) -> list[Outcome]:
        """The same, in a thread."""
        return await asyncio.to_thread(self.score, **arguments)

    def check_ready(self) -> None:
        """See `Reward.check_ready`."""
        super().check_ready()
        if self.is_isolated:
            try:
                self._pool.start()
            except IsolationError as error:
                self._give_up_isolation(error)

    def close(self) -> None:
        """End the worker processes; the reward can be used again."""
        if "_pool" in self.__dict__:
            self._pool.close()

    @cached_property
    def _pool(self) -> WorkerPool:
        return WorkerPool(self._call, workers=self.options.workers if self.options.per_sample else 1)

    def _score_in_workers(self, plan: _Plan) -> None:
        portable = _portable(plan.arguments)
        calls = [(plan.select(part, portable), len(part)) for part in plan.parts]
        try:
            results = self._pool.map(calls, limit=self.options.timeout)
        except IsolationError as error:
            if self._has_worked_isolated:
                # Earlier batches could run in workers, so this is no reason to run without a limit.
                plan.enter(plan.to_score, self._settled(Fault("crash", str(error)), plan.to_score))
                return
            self._give_up_isolation(error)
            self._score_here(plan)
            return
        self._has_worked_isolated = True
        for part, result in zip(plan.parts, results, strict=True):
            plan.enter(part, self._settled(result, part))

    def _score_here(self, plan: _Plan) -> None:
        where = "Set" if self.origin else "Name it by a spec, or set"
        advice = f"It cannot be stopped. {where} reward_options: {{{self.__name__}: {{isolate: true}}}}"
        with _late_warning(self.__name__, self.options.timeout, advice):
            result = self._attempt(plan, plan.to_score)
            if isinstance(result, Fault) and self.options.per_sample and len(plan.to_score) > 1:
                # One sample that raises must not take the others along.
                for part in plan.parts:
                    plan.enter(part, self._settled(self._attempt(plan, part), part))
                return
        plan.enter(plan.to_score, self._settled(result, plan.to_score))

    def _attempt(self, plan: _Plan, part: Sequence[int]) -> _CallResult | Fault:
        try:
            return self._call(plan.select(part), len(part))
        except (RewardError, SpecError):
            raise
        except (Exception, SystemExit) as error:  # a function that calls sys.exit does not end the run
            return Fault("error", described(error), error)

    def _give_up_isolation(self, error: IsolationError) -> None:
        if self.options.isolate:
            raise RewardError(
                f"reward {self.__name__!r} cannot run in a worker process: {error}. To let it run in this process, "
                f"without a hard limit:  reward_options: {{{self.__name__}: {{isolate: false}}}}"
            ) from error
        logger.warning(
            "reward %r runs in this process, where a call that hangs cannot be stopped: %s", self.__name__, error
        )
        self.is_isolated = False


class AsyncReward(Reward):
    """A `Reward` around an asynchronous function; TRL runs all of these concurrently."""

    async def __call__(self, **arguments: Any) -> list[float | None]:
        """Score a batch; see `Reward`."""
        return self.report(await self.score_async(**arguments), arguments.get("log_metric"))

    def score(self, **arguments: Any) -> list[Outcome]:
        """The outcome of each completion, for a caller without an event loop."""
        from rlkd.engines import run

        return run(self.score_async(**arguments))

    async def score_async(self, **arguments: Any) -> list[Outcome]:
        """The outcome of each completion."""
        plan = self._plan(arguments)
        if plan.to_score:
            gate = asyncio.Semaphore(self.options.workers or ASYNC_CALLS)

            async def call(part: list[int]) -> _CallResult:
                async with gate:
                    return self._settled(await self._attempt(plan.select(part), len(part)), part)

            calls = [asyncio.ensure_future(call(part)) for part in plan.parts]
            try:
                results = await asyncio.gather(*calls)
            except BaseException:  # an error that ends the run, or a cancellation from outside
                for started in calls:
                    started.cancel()
                raise
            for part, result in zip(plan.parts, results, strict=True):
                plan.enter(part, result)
        return self._finish(plan)

    async def _attempt(self, arguments: dict[str, Any], expected: int) -> _CallResult | Fault:
        result = _CallResult([])
        started = time.perf_counter()
        try:
            task = asyncio.ensure_future(self.function(**_recording(arguments, result)))
            # Retrieve the exception even if nobody waits for the task any more, or asyncio would complain.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            # A call that blocks the event loop cannot be cancelled, and no other call can be meanwhile.
            late = None if self.options.timeout is None else self.options.timeout + BLOCKED_SECONDS
            advice = "It blocks the event loop, so it cannot be cancelled: await, or make it a plain function."
            try:
                with _late_warning(self.__name__, late, advice):
                    done, _ = await asyncio.wait({task}, timeout=self.options.timeout)
            except BaseException:  # cancelled from outside
                task.cancel()
                raise
            if not done:
                task.cancel()
                # It may clean up, but not for ever: a task that swallows its cancellation is abandoned.
                await asyncio.wait({task}, timeout=1.0)
                return Fault("timeout", f"took more than {self.options.timeout:g} s")
            if task.cancelled():  # not by this method: by a future that it shares with others
                return Fault("error", "it was cancelled from within")
            result.outcomes = _outcomes(task.result(), self.__name__, expected, started)
        except (RewardError, SpecError):
            raise
        except Exception as error:
            return Fault("error", described(error), error)
        return result


@dataclass
class _CallResult:
    outcomes: list[Outcome]
    metrics: list[tuple[str, float]] = field(default_factory=list)
    extras: list[tuple[str, list[Any]]] = field(default_factory=list)


class _Plan:
    """State of one batch: known outcomes, duplicates, samples left to score, logged metrics."""

    def __init__(self, arguments: dict[str, Any], size: int, per_sample: bool):
        self.arguments = arguments
        self.size = size
        self.per_sample = per_sample
        self.keys: list[str | None] = [None] * size
        self.duplicates: dict[int, int] = {}
        self.to_score: list[int] = []
        self.outcomes: list[Outcome | None] = [None] * size
        self._metrics: list[tuple[str, float]] = []
        self._extras: dict[str, list[Any]] = {}

    @property
    def parts(self) -> list[list[int]]:
        return [[index] for index in self.to_score] if self.per_sample else [self.to_score]

    def select(self, indices: Sequence[int], arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of the batch, or the given ones, for some of the samples."""
        arguments = self.arguments if arguments is None else arguments
        if len(indices) == self.size:
            return arguments
        return {
            name: value if name in _EXTRAS or value is None else [value[index] for index in indices]
            for name, value in arguments.items()
        }

    def enter(self, indices: Sequence[int], result: _CallResult) -> None:
        for index, outcome in zip(indices, result.outcomes, strict=True):
            self.outcomes[index] = outcome
        self._metrics += result.metrics
        for column, values in result.extras:
            if len(values) == len(indices):
                whole = self._extras.setdefault(column, [None] * self.size)
                for index, value in zip(indices, values, strict=True):
                    whole[index] = value

    def log(self) -> None:
        """Pass on what the reward logged; TRL's table needs a value for every sample of the batch."""
        if log_metric := self.arguments.get("log_metric"):
            for name, value in self._metrics:
                log_metric(name, value)
        if log_extra := self.arguments.get("log_extra"):
            for column, values in self._extras.items():
                log_extra(column, [values[self.duplicates.get(i, i)] for i in range(self.size)])


class _RewardCall:
    """Calls a reward function and reads what it returns, here or in a worker; pickles by the spec, if it has one."""

    def __init__(self, function: Callable[..., Any], name: str, origin: Origin | None):
        self.function = function
        self.name = name
        self.__name__ = f"reward {name!r}"
        self.origin = origin

    def __call__(self, arguments: dict[str, Any], expected: int) -> _CallResult:
        result = _CallResult([])
        started = time.perf_counter()
        try:
            returned = self.function(**_recording(arguments, result))
            result.outcomes = _outcomes(returned, self.name, expected, started)
        except (RewardError, SpecError) as error:
            if inside_worker():  # a subclass that does not pickle would come back as a failure
                raise RewardError(str(error)) from None
            raise
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        module = getattr(unwrapped(self.function), "__module__", None)
        if self.origin is None or module == "__main__":  # which a worker does not execute
            return _RewardCall, (self.function, self.name, None)
        return _call_of, (self.origin, self.name, module)


def _call_of(origin: Origin, name: str, module: str | None) -> _RewardCall:
    if module is not None:
        with contextlib.suppress(ModuleNotFoundError):  # the file of a spec is loaded under a private name
            importlib.import_module(module)  # which may register the name
    return _RewardCall(_function_of(origin), name, origin)


def _rebuild(
    kind: type[Reward],
    function: Any,
    name: str,
    origin: Origin | None,
    options: RewardOptions,
    cache: Path | None,
) -> Reward:
    if origin is not None:
        function = _function_of(origin)
    return kind(function, name, origin=origin, options=options, cache=cache)


def _function_of(origin: Origin) -> Any:
    spec, parameters = origin
    return build("reward", spec, parameters, error=RewardError).bound


def _recording(arguments: dict[str, Any], result: _CallResult) -> dict[str, Any]:
    recorders = {
        "log_metric": lambda name, value: result.metrics.append((name, value)),
        "log_extra": lambda column, values: result.extras.append((column, list(values))),
    }
    return {**arguments, **{k: recorder for k, recorder in recorders.items() if arguments.get(k) is not None}}


def _outcomes(returned: Any, name: str, expected: int, started: float) -> list[Outcome]:
    """One outcome for each returned value, with the seconds since `started`; raises `RewardError`."""
    if not isinstance(returned, Iterator):
        try:
            iter(returned)
        except TypeError:
            raise RewardError(f"reward {name!r} returned {returned!r}; expected a list of {expected}") from None
    values = list(returned)  # the body of a generator runs only here, and may fail
    if len(values) != expected:
        raise RewardError(LENGTH_ERROR.format(name=name, found=len(values), expected=expected))
    outcomes = [Outcome.of(value, name, index) for index, value in enumerate(values)]
    seconds = time.perf_counter() - started
    return [replace(outcome, seconds=seconds) for outcome in outcomes]


def _portable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a worker process: without TRL's callbacks, and with the plain values of its state."""
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


@contextlib.contextmanager
def _late_warning(name: str, seconds: float | None, advice: str) -> Iterator[None]:
    message = "reward %r: one call has been running for %g s in this process. %s"
    timer = threading.Timer(seconds or 0.0, logger.warning, (message, name, seconds, advice))
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def declared_options(function: Any) -> RewardOptions:
    """The `reward_options` that a reward declares; the defaults if it declares none."""
    inner = unwrapped(function)
    declared = getattr(inner, "reward_options", None)
    if declared is not None and not isinstance(declared, RewardOptions):
        raise RewardError(f"{inner!r}: reward_options is {declared!r}; expected rewards.RewardOptions(...)")
    return declared or RewardOptions()
