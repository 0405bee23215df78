"""Checks that a reward keeps its contract, for `rlkd rewards test` and the test that `rlkd rewards new` writes.

The checks call the reward function itself with whole batches. The runner's cache and its calls with single samples
would hide violations. An isolated reward runs in a worker process with its time limit.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import pickle
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from rewards.build import wrap
from rewards.contract import Failed, Outcome, RewardError
from rewards.runner import AsyncReward, Reward
from rewards.testing.runner import Progress, Samples, samples_from, silent, trl_extras
from rlkd.registry import SpecError, registry, settable_parameters, split_alias
from rlkd.workers.pool import Fault, IsolationError, WorkerPool

CLOSE = 1e-6
"""Relative or absolute difference up to which scores count as equal, for rounding as in a model's padded batches."""

PAIRED = 5
"""Number of samples whose pairs are tried, to show a dependence on the batch with two samples only."""

Verdict = Literal["holds", "violated", "note", "skipped"]
_Scores = dict[int, Outcome]  # sample index -> outcome


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement of the contract.

    `verdict`: `note` is a fact that violates nothing. `note`: the evidence of a violation, or the reason for skipping.
    """

    name: str
    verdict: Verdict
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.name:<14} {self.note}".rstrip()


def check_contract(
    reward: Reward | Callable[..., Any], samples: Samples | None = None, *, progress: Progress = silent
) -> list[Check]:
    """Check every requirement of the contract, by default on completions made from the embedded GSM8K sample.

    The samples are scored six or seven times; `progress` gets a line before each time. Raises `RewardError` if the
    samples lack a required column, or a server of the reward is down.
    """
    reward = wrap(reward, cache=False)
    samples = samples_from() if samples is None else samples
    if not len(samples):
        raise RewardError(f"reward {reward.__name__!r}: there are no samples to check it on")
    reward.check_columns(samples.columns)
    try:
        reward.check_ready()
        caller = _Caller(reward, samples)
        try:
            return _Checker(reward, samples, caller, progress).checks()
        finally:
            caller.close()
    finally:
        reward.close()


def violations(checks: Sequence[Check]) -> list[str]:
    """The violated checks, as text."""
    return [str(check) for check in checks if check.verdict == "violated"]


class _Checker:
    def __init__(self, reward: Reward, samples: Samples, caller: _Caller, progress: Progress):
        self.reward, self.samples, self.caller = reward, samples, caller
        self.progress = progress
        self.per_sample = reward.options.per_sample
        self._show("one by one", len(samples))
        self.alone = caller.call_each([[i] for i in range(len(samples))])
        # A sample that breaks its call breaks a batch too. The runner calls such samples of a `per_sample` reward
        # separately; for others they are part of the batch.
        self.sound = [call.indices[0] for call in self.alone if call.error is None or not self.per_sample]
        self._show("together", len(self.sound))
        self.whole = self._batch(self.sound) if self.sound else _FunctionCall((), outcomes=())

    def _show(self, how: str, count: int) -> None:
        self.progress(f"contract, {how}: {count} samples")

    def checks(self) -> list[Check]:
        empty = self.caller.call_each([[]])[0]
        comparisons = self._repetition_order_batching()
        repeatable = comparisons[0].verdict == "holds"
        checks = [self._scores(), self._length(empty), self._values(), self._arguments(), *comparisons]
        return [*checks, self._pickles(repeatable), self._name()]

    def _batch(self, indices: Sequence[int], caller: _Caller | None = None) -> _FunctionCall:
        """One call with several samples. Where each has a time limit, the call may also take as long as they alone."""
        limit = self.reward.options.timeout
        if limit is not None and self.per_sample:
            limit += 2 * sum(self.alone[i].seconds for i in indices)
        return (caller or self.caller).call_each([indices], limit)[0]

    def _scores(self) -> Check:
        calls = self.alone if self.per_sample else [self.whole]
        outcomes = [outcome for call in calls for outcome in call.outcomes or ()]
        causes = [call.error for call in calls if call.error]
        causes += [outcome.cause or "" for outcome in outcomes if outcome.status == "failed"]
        scored = sum(o.status == "score" for o in outcomes)
        missing = sum(o.status == "not_applicable" for o in outcomes)
        if not (causes or scored or missing):
            return Check("scores", "skipped", "the return value is unreadable")
        if not scored + missing:
            return Check("scores", "violated", f"fails on all {len(self.samples)} samples: {causes[0]}")
        counts = f"{scored} scored, {missing} not applicable, {len(causes)} failed"
        if scored and not any(outcome.value for outcome in outcomes):
            reason = (
                "every score is 0, of the right answers too: does the reward read how they are announced? Try "
                "completions as your student writes them (docs/answers.md)"
                if self.samples.made
                else "every score is 0: does the reward read how these completions announce their answer?"
            )
            return Check("scores", "note", f"{counts}; {reason}")
        return Check("scores", "holds" if scored else "note", counts)

    def _length(self, empty: _FunctionCall) -> Check:
        def violated(note: str) -> Check:
            return Check("length", "violated", note)

        for call in (empty, *self.alone, self.whole):
            if call.wrong_length is not None:
                size = len(call.indices)
                batch = {0: "an empty batch", 1: "one completion"}.get(size, f"{size} completions")
                return violated(f"{call.wrong_length} for {batch}; expected one value per completion, in order")
        if empty.error is not None:
            return violated(f"an empty batch: {empty.error}; expected an empty list")
        if self.per_sample and self.whole.error is not None:
            return violated(f"a batch of {len(self.sound)} samples that score alone: {self.whole.error}")
        if not self.per_sample and self.whole.error is None and self.alone[0].error is not None:
            return violated(f"a batch of one: {self.alone[0].error}; return None if there is nothing to judge")
        return Check("length", "holds", f"one value per completion in batches of 0, 1 and {len(self.sound)}")

    def _values(self) -> Check:
        for call in (*self.alone, self.whole):
            if call.invalid is not None:
                index, found = call.invalid
                return Check("values", "violated", f"{self.samples.names[index]}: {found}")
        return Check("values", "holds", "finite numbers, None or Failed")

    def _arguments(self) -> Check:
        changed = [name for call in (*self.alone, self.whole) for name in call.changed]
        if changed:
            return Check("arguments", "violated", f"changes {changed[0]!r}, which other rewards and the log share")
        return Check("arguments", "holds", "unchanged")

    def _repetition_order_batching(self) -> list[Check]:
        """Scores of a second call, another order and other batches; they must agree for a `per_sample` reward."""

        def skipped(why: str, *names: str) -> list[Check]:
            return [Check(name, "skipped", why) for name in names]

        sound = self.sound
        if all(outcome.status == "failed" for outcome in self.whole.outcomes or ()):
            return skipped("there are no scores of a whole batch", "repetition", "order", "batching")
        first = self.whole.scores
        self._show("a second time", len(sound))
        repeated = ("first", first, "then", self._batch(sound).scores)
        repetition = self._compared("repetition", "equal in two calls", "differs between calls", repeated)
        if repetition.verdict != "holds":
            return [repetition, *skipped("moot, since scores differ between calls", "order", "batching")]
        if len(sound) < 2:
            return [repetition, *skipped("needs two samples that do not fail", "order", "batching")]

        shuffled, draw = list(sound), random.Random(0)
        while shuffled == sound:
            draw.shuffle(shuffled)
        self._show("in another order", len(sound))
        reordered = ("in order", first, "shuffled", self._batch(shuffled).scores)
        order = self._compared("order", "equal in any order of the batch", "depends on the order", reordered)

        singles = {i: outcome for i in sound for outcome in self.alone[i].outcomes or ()}
        middle = len(sound) // 2
        self._show("in halves", len(sound))
        halves = {**self._batch(sound[:middle]).scores, **self._batch(sound[middle:]).scores}
        together = f"among all {len(sound)}"
        batching = self._compared(
            "batching",
            "equal one by one, in halves and all at once",
            "depends on the batch",
            ("alone", singles, together, first),
            ("in a half", halves, together, first),
        )
        if batching.verdict == "violated":
            batching = self._paired(singles) or batching
        if batching.verdict == order.verdict == "holds" and not self.per_sample:
            note = "each score depended on its sample alone; if this always holds, declare per_sample=True"
            batching = Check("batching", "note", note)
        return [repetition, order, batching]

    def _compared(self, name: str, agree: str, differ: str, *pairs: tuple[str, _Scores, str, _Scores]) -> Check:
        if not all(one and other for _, one, _, other in pairs):
            return Check(name, "skipped", "a call failed that had succeeded before")
        for pair in pairs:
            if (difference := self._difference(*pair)) is not None:
                return Check(name, "violated" if self.per_sample else "note", f"{differ}: {difference}")
        return Check(name, "holds", agree)

    def _paired(self, singles: _Scores) -> Check | None:
        few = self.sound[:PAIRED]
        self._show("in pairs", len(few))
        for one in few:
            for other in few:
                if one == other:
                    continue
                scores = self._batch([other, one]).scores
                after = f"after {self.samples.names[other]}"
                if difference := self._difference("alone", singles, after, {i: scores[i] for i in scores if i == one}):
                    return Check("batching", "violated", f"depends on the batch: {difference}")
        return None

    def _pickles(self, repeatable: bool) -> Check:
        try:
            copied = pickle.loads(pickle.dumps(self.reward))
        except Exception as error:  # anything that an object's own methods raise
            note = f"{type(error).__name__}: {error}. Define it at the top level of a module"
            return Check("pickles", "violated", note)
        if not repeatable:
            return Check("pickles", "holds", "scores were not compared")
        caller = _Caller(copied, self.samples)
        self._show("by a copy", len(self.sound))
        try:
            call = self._batch(self.sound, caller)
        finally:
            caller.close()
            copied.close()
        if (problem := call.error or call.wrong_length) is not None:
            return Check("pickles", "violated", f"the copy does not work: {problem}")
        if difference := self._difference("first", self.whole.scores, "from the copy", call.scores):
            verdict: Verdict = "violated" if self.per_sample else "note"
            return Check("pickles", verdict, f"a copy gives other scores: {difference}")
        return Check("pickles", "holds", "the copy gives equal scores")

    def _name(self) -> Check:
        name = self.reward.__name__
        if not re.fullmatch(r"\w[\w.-]*", name):
            return Check("name", "violated", f"{name!r} cannot name metrics: letters, digits, _, - and . only")
        spec = split_alias(self.reward.origin[0])[1] if self.reward.origin else None
        known = registry("reward").names()
        if name in known and spec != name:
            try:
                own = registry("reward").find(spec).target if spec else _definition(self.reward.function)
                if own is not registry("reward").find(name).target:
                    note = f"{name!r} is taken by {known[name]}; rename it, or name it alias={spec or name}"
                    return Check("name", "violated", note)
            except SpecError as error:
                return Check("name", "violated", f"{name!r} is taken by a reward that does not load: {error}")
        return Check("name", "holds", name)

    def _difference(self, how: str, one: _Scores, otherwise: str, other: _Scores) -> str | None:
        """The first sample with different scores. A failure may be chance and differs from nothing."""
        for i in sorted(one.keys() & other.keys()):
            a, b = one[i], other[i]
            if "failed" not in (a.status, b.status) and not _equal(a.value, b.value):
                return f"{self.samples.names[i]} is {_shown(a.value)} {how}, {_shown(b.value)} {otherwise}"
        return None


def _definition(function: Any) -> Any:
    inner = function.func if isinstance(function, partial) else function
    return inner if inspect.isfunction(inner) else type(inner)


def _equal(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)


def _shown(value: float | None) -> str:
    return "not applicable" if value is None else f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class _FunctionCall:
    """The result of one call of a reward function: outcomes, or why there are none.

    `invalid`: index of the first sample with a value other than a finite number, None or Failed, and that value.
    `wrong_length`: the return value, in words. `changed`: names of arguments that the call modified.
    """

    indices: Sequence[int]
    outcomes: tuple[Outcome, ...] | None = None
    invalid: tuple[int, str] | None = None
    wrong_length: str | None = None
    error: str | None = None
    changed: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def scores(self) -> _Scores:
        return dict(zip(self.indices, self.outcomes, strict=True)) if self.outcomes is not None else {}


class _Caller:
    def __init__(self, reward: Reward, samples: Samples):
        self._reward, self._samples = reward, samples
        # One worker only: state that a reward carries from call to call would not show in another worker.
        self._pool = WorkerPool(partial(_call, reward), workers=1) if reward.is_isolated else None

    def call_each(self, batches: Sequence[Sequence[int]], limit: float | None = None) -> list[_FunctionCall]:
        """One call for each batch of sample indices; `limit` in seconds replaces the reward's time limit."""
        limit = limit or self._reward.options.timeout
        arguments = [(batch, self._samples.select(batch)) for batch in batches]
        if self._pool is not None:
            try:
                results = self._pool.map([(*pair, None) for pair in arguments], limit=limit)
                return [
                    _FunctionCall(batch, error=result.message, seconds=limit or 0.0)
                    if isinstance(result, Fault)
                    else result
                    for batch, result in zip(batches, results, strict=True)
                ]
            except IsolationError as error:  # such as a column that cannot be sent
                if self._reward.options.isolate:
                    raise RewardError(f"reward {self._reward.__name__!r} cannot run in a worker: {error}") from error
                self._pool = None
        return [_call(self._reward, *pair, limit) for pair in arguments]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def _call(reward: Reward, indices: Sequence[int], batch: dict[str, Any], limit: float | None) -> _FunctionCall:
    given = {**batch, **trl_extras()}
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(reward.function).parameters.values()):
        accepted = settable_parameters(reward.function)
        given = {name: value for name, value in given.items() if name in accepted}
    before = copy.deepcopy({name: value for name, value in given.items() if name in batch})
    started = time.perf_counter()
    try:
        returned = reward.function(**given)
        if isinstance(reward, AsyncReward):
            from rlkd.engines import run

            returned = run(asyncio.wait_for(returned, limit))
        values = list(returned) if hasattr(returned, "__iter__") and not isinstance(returned, str) else None
    except Exception as error:
        timed_out = isinstance(error, TimeoutError) and limit
        text = f"took more than {limit:g} s" if timed_out else f"{type(error).__name__}: {error}"
        return _FunctionCall(indices, error=text, seconds=time.perf_counter() - started)
    seconds = time.perf_counter() - started
    changed = tuple(name for name, value in before.items() if given[name] != value)
    call = _FunctionCall(indices, changed=changed, seconds=seconds)
    if values is None or len(values) != len(indices):
        return replace(call, wrong_length=repr(returned) if values is None else f"{len(values)} values")
    outcomes = []
    for index, value in zip(indices, values, strict=True):
        try:
            outcome = Outcome.of(value, reward.__name__, index)
        except RewardError:
            return replace(call, invalid=(index, f"{value!r} ({type(value).__name__})"))
        if outcome.status == "failed" and not isinstance(value, Failed):
            return replace(call, invalid=(index, f"{value!r} is not finite; return Failed('why') for a failure"))
        outcomes.append(outcome)
    return replace(call, outcomes=tuple(outcomes))
