"""Does a reward keep the contract? What `rlkd rewards test` asks, and the test file that `rlkd rewards new` writes.

    >>> from rewards import build_reward
    >>> from rewards.testing.contract import check_contract
    >>> print(*check_contract(build_reward("think_format")), sep="\\n")  # doctest: +SKIP
    holds     scores         20 scored, 0 not applicable, 0 failed
    ...
    note      batching       each score rested on its sample alone; if it always does, say per_sample=True

The function itself is asked, with whole batches, past the runner's cache and its way of taking samples one by one:
those would hide what is to be found out. An isolated reward is asked in a worker process with its time limit.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rewards.contract import Failed, Outcome, RewardError
from rewards.runner import AsyncReward, Reward, wrap
from rewards.testing.runner import Samples, samples_from, trl_extras
from rlkd.registry import SpecError, registry, settable_parameters, split_alias
from rlkd.workers.pool import Fault, IsolationError, WorkerPool

CLOSE = 1e-6
"""Scores that differ by less, relative or absolute, count as equal: rounding, as of a model on padded batches."""


PAIRED = 5
"""Samples of which pairs are tried, for the smallest evidence of a dependence on the batch."""


@dataclass(frozen=True, slots=True)
class Check:
    """One demand of the contract. `note`: the evidence, where it is violated; what was found, or why it was not asked.

    A `note` as verdict is a fact that is no violation.
    """

    name: str
    verdict: Literal["holds", "violated", "note", "skipped"]
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.name:<14} {self.note}".rstrip()


def check_contract(reward: Reward | Callable[..., Any], samples: Samples | None = None) -> list[Check]:
    """Ask everything of a reward.

    Args:
        reward: one of `build_reward`, or a function.
        samples: what it is asked about. Default: completions made from the embedded GSM8K sample.

    Raises `RewardError` where the samples lack a column that it needs, or a server of it is down.
    """
    reward = wrap(reward, cache=False)
    samples = samples_from() if samples is None else samples
    if not len(samples):
        raise RewardError(f"reward {reward.__name__!r}: there are no samples to check it on")
    reward.check_columns(samples.columns)
    reward.check_ready()
    try:
        probe = _Probe(reward)
        try:
            return _checks(reward, probe, samples)
        finally:
            probe.close()
    finally:
        reward.close()


def violations(checks: Sequence[Check]) -> list[str]:
    """The violated ones, as text."""
    return [str(check) for check in checks if check.verdict == "violated"]


def _checks(reward: Reward, probe: _Probe, samples: Samples) -> list[Check]:
    per_sample, size = reward.options.per_sample, len(samples)
    alone = probe.ask([samples.select([i]) for i in range(size)])
    # A sample that breaks a call takes a batch along with it. The runner keeps such samples of a `per_sample` reward
    # apart; those of others are part of the batch.
    sound = [i for i in range(size) if alone[i].error is None or not per_sample]
    whole = probe.one(samples, sound, after=alone) if sound else None
    repetition, order, batching = _comparisons(probe, samples, sound, alone, whole, per_sample)
    steady = whole if repetition.verdict == "holds" else None
    return [
        _scores(samples, alone, whole, per_sample),
        _length(alone, whole, probe.ask([samples.select([])])[0], per_sample),
        _values(samples, alone, whole, sound),
        _arguments(alone, whole),
        repetition,
        order,
        batching,
        _pickles(reward, samples, sound, alone, steady),
        _name(reward),
    ]


# The demands


def _scores(samples: Samples, alone: Sequence[_Answer], whole: _Answer | None, per_sample: bool) -> Check:
    """Something must be scored, or found not applicable: a reward that only fails says nothing."""
    answers = alone if per_sample or whole is None else [whole]
    outcomes = [o for a in answers for o in a.outcomes or ()]
    errors = [a.error for a in answers if a.error is not None]
    causes = errors + [o.cause for o in outcomes if o.status == "failed" and o.cause is not None]
    scored = sum(o.status == "score" for o in outcomes)
    missing = sum(o.status == "not_applicable" for o in outcomes)
    if not (causes or scored or missing):
        return Check("scores", "skipped", "what it returns cannot be read")
    if causes and not scored + missing:
        return Check("scores", "violated", f"fails on all {len(samples)} samples: {causes[0]}")
    counts = f"{scored} scored, {missing} not applicable, {len(causes)} failed"
    return Check("scores", "holds" if scored else "note", counts)


def _length(alone: Sequence[_Answer], whole: _Answer | None, empty: _Answer, per_sample: bool) -> Check:
    name = "length"
    asked = [(0, empty), *((1, answer) for answer in alone)]
    if whole is not None:
        asked.append((whole.expected, whole))
    for size, answer in asked:
        what = {0: "an empty batch", 1: "one completion"}.get(size, f"{size} completions")
        if answer.misshapen is not None:
            return Check(name, "violated", f"{answer.misshapen} for {what}; one value each is expected, in order")
    if empty.error is not None:
        return Check(name, "violated", f"an empty batch: {empty.error}; an empty list is expected")
    if whole is not None and whole.error is None and not per_sample and (single := alone[0].error):
        return Check(
            name, "violated", f"a batch of one: {single}; None is a way to say that there is nothing to judge"
        )
    if whole is not None and whole.error is not None and per_sample:
        return Check(name, "violated", f"a batch of {whole.expected}, each of which is judged alone: {whole.error}")
    return Check(name, "holds", f"one value each, for none, for one and for {asked[-1][0]}")


def _values(samples: Samples, alone: Sequence[_Answer], whole: _Answer | None, sound: Sequence[int]) -> Check:
    names = [*samples.names, *(samples.names[i] for i in sound)]
    strange = [(i, text) for i, answer in enumerate(alone) for _, text in answer.strange]
    strange += [(len(samples) + place, text) for place, text in (whole.strange if whole is not None else ())]
    if strange:
        place, text = strange[0]
        return Check("values", "violated", f"{names[place]}: {text}")
    return Check("values", "holds", "finite numbers, None or Failed")


def _arguments(alone: Sequence[_Answer], whole: _Answer | None) -> Check:
    changed = [name for answer in (*alone, *([whole] if whole else [])) for name in answer.changed]
    if changed:
        return Check("arguments", "violated", f"changes {changed[0]!r}, which other rewards and the log get after it")
    return Check("arguments", "holds", "left as they were")


def _comparisons(
    probe: _Probe,
    samples: Samples,
    sound: list[int],
    alone: list[_Answer],
    whole: _Answer | None,
    per_sample: bool,
) -> tuple[Check, Check, Check]:
    """The same twice, in another order, and in other batches.

    For a reward that says `per_sample` all of these must agree; for others a difference is a fact.
    """

    def asked(places: Sequence[int]) -> _Answer:
        return probe.one(samples, places, after=alone)

    def check(name: str, agreed: str, differs: str, *pairs: tuple[str, _Scores, str, _Scores]) -> Check:
        if any(not (one and other) for _, one, _, other in pairs):
            return Check(name, "skipped", "a call failed that did not fail before")
        for how, one, otherwise, other in pairs:
            if (difference := _difference(samples, how, one, otherwise, other)) is not None:
                return Check(name, "violated" if per_sample else "note", f"{differs}: {difference}")
        return Check(name, "holds", agreed)

    def skipped(why: str) -> tuple[Check, Check]:
        return Check("order", "skipped", why), Check("batching", "skipped", why)

    if whole is None or all(outcome.status == "failed" for outcome in whole.outcomes or ()):
        why = "there are no scores of a whole batch"
        return Check("repetition", "skipped", why), *skipped(why)
    first = _scores_of(sound, whole)
    repetition = check(
        "repetition",
        "the same when called twice",
        "differs from call to call",
        ("first", first, "then", _scores_of(sound, asked(sound))),
    )
    if repetition.verdict != "holds":
        return repetition, *skipped("moot, as it differs from call to call")
    if len(sound) < 2:
        return repetition, *skipped("takes two samples that do not fail")

    shuffled = list(sound)
    chance = random.Random(0)
    while shuffled == sound:
        chance.shuffle(shuffled)
    order = check(
        "order",
        "the same in any order of the batch",
        "depends on the order of the batch",
        ("in order", first, "shuffled", _scores_of(shuffled, asked(shuffled))),
    )

    singles = {i: outcome for i in sound for outcome in alone[i].outcomes or ()}
    middle = len(sound) // 2
    halves = {**_scores_of(sound[:middle], asked(sound[:middle])), **_scores_of(sound[middle:], asked(sound[middle:]))}
    together = f"among all {len(sound)}"
    batching = check(
        "batching",
        "the same one by one, in halves and at once",
        "depends on the batch",
        ("alone", singles, together, first),
        ("in a half", halves, together, first),
    )
    if batching.verdict == "violated":
        batching = _smaller(probe, samples, sound, singles, batching, alone)
    if batching.verdict == order.verdict == "holds" and not per_sample:
        note = "each score rested on its sample alone; if it always does, say per_sample=True"
        batching = Check("batching", "note", note)
    return repetition, order, batching


def _smaller(
    probe: _Probe, samples: Samples, sound: Sequence[int], singles: _Scores, check: Check, alone: Sequence[_Answer]
) -> Check:
    """The same violation on two of the first few samples, where there is one: easier to see through than a batch."""
    few = sound[:PAIRED]
    for one in few:
        for other in few:
            if one == other:
                continue
            pair = _scores_of([other, one], probe.one(samples, [other, one], after=alone))
            after = f"after {samples.names[other]}"
            if difference := _difference(samples, "alone", singles, after, {i: pair[i] for i in pair if i == one}):
                return Check(check.name, check.verdict, f"depends on the batch: {difference}")
    return check


def _pickles(
    reward: Reward, samples: Samples, sound: Sequence[int], alone: Sequence[_Answer], whole: _Answer | None
) -> Check:
    name = "pickles"
    try:
        twin = pickle.loads(pickle.dumps(reward))
    except Exception as error:  # whatever an object's own methods raise
        return Check(name, "violated", f"{type(error).__name__}: {error}. Define it at the top level of a module")
    if whole is None or whole.outcomes is None:
        return Check(name, "holds", "scores were not compared")
    probe = _Probe(twin)
    try:
        answer = probe.one(samples, sound, after=alone)
    finally:
        probe.close()
        twin.close()
    if (problem := answer.error or answer.misshapen) is not None:
        return Check(name, "violated", f"the copy does not work: {problem}")
    difference = _difference(samples, "first", _scores_of(sound, whole), "the copy", _scores_of(sound, answer))
    if difference is not None:
        verdict: Literal["violated", "note"] = "violated" if reward.options.per_sample else "note"
        return Check(name, verdict, f"a copy scores otherwise: {difference}")
    return Check(name, "holds", "and the copy gives the same")


def _name(reward: Reward) -> Check:
    name = reward.__name__
    if not re.fullmatch(r"\w[\w.-]*", name):
        return Check("name", "violated", f"{name!r} cannot name metrics: letters, digits, _, - and . only")
    spec = split_alias(reward.origin[0])[1] if reward.origin else None
    known = registry("reward").names()
    if name in known and spec != name:
        try:
            own = registry("reward").find(spec).target if spec else _inner(reward.function)
            if own is not registry("reward").find(name).target:
                return Check(
                    "name",
                    "violated",
                    f"{name!r} is taken by {known[name]}; rename it, or name it alias={spec or name}",
                )
        except SpecError as error:
            return Check("name", "violated", f"{name!r} is taken by a reward that does not load: {error}")
    return Check("name", "holds", name)


def _inner(function: Any) -> Any:
    inner = function.func if isinstance(function, partial) else function
    return inner if inspect.isfunction(inner) else type(inner)


_Scores = dict[int, Outcome]  # place of a sample -> what was said of it


def _scores_of(places: Sequence[int], answer: _Answer) -> _Scores:
    return dict(zip(places, answer.outcomes, strict=True)) if answer.outcomes is not None else {}


def _difference(samples: Samples, how: str, one: _Scores, otherwise: str, other: _Scores) -> str | None:
    """The first sample of two answers that has another score. A failure is compared with nothing: it may be chance."""
    for i in sorted(one.keys() & other.keys()):
        a, b = one[i], other[i]
        if "failed" not in (a.status, b.status) and not _same(a.value, b.value):
            return f"{samples.names[i]} is {_shown(a.value)} {how}, {_shown(b.value)} {otherwise}"
    return None


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)


def _shown(value: float | None) -> str:
    return "not applicable" if value is None else f"{value:.6g}"


# Asking


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a call came to.

    `expected`: size of the batch; `outcomes`: None where they are not one each, or where any is `strange`, with its
    place: no number, None or Failed, or not finite; `misshapen`: what came instead of one value each; `error`: why
    nothing came; `changed`: arguments that are not as they were; `seconds`: how long it took.
    """

    expected: int
    outcomes: tuple[Outcome, ...] | None = None
    strange: tuple[tuple[int, str], ...] = ()
    misshapen: str | None = None
    error: str | None = None
    changed: tuple[str, ...] = ()
    seconds: float = 0.0


class _Probe:
    """Asks a reward's function for whole batches, in a worker process where the reward is isolated."""

    def __init__(self, reward: Reward):
        self._reward = reward
        self._ask = _Ask(reward)
        # One worker: what a reward keeps from call to call would not show if the next call went to another.
        self._pool = WorkerPool(self._ask, workers=1) if reward.is_isolated else None

    def ask(self, batches: Sequence[dict[str, Any]], limit: float | None = None) -> list[_Answer]:
        """One answer a batch; each call has the reward's time limit, unless another is given."""
        limit = limit or self._reward.options.timeout
        if self._pool is None:
            return [self._ask(batch, limit) for batch in batches]
        try:
            answers = self._pool.map([(batch, None) for batch in batches], limit=limit)
        except IsolationError as error:  # a column that cannot be sent, for one
            if self._reward.options.isolate:
                raise RewardError(f"reward {self._reward.__name__!r} cannot run in a worker: {error}") from error
            self._pool = None
            return [self._ask(batch, limit) for batch in batches]
        return [
            _Answer(len(batch["completions"]), error=answer.message, seconds=limit or 0.0)
            if isinstance(answer, Fault)
            else answer
            for batch, answer in zip(batches, answers, strict=True)
        ]

    def one(self, samples: Samples, places: Sequence[int], *, after: Sequence[_Answer]) -> _Answer:
        """The answer to one batch. Samples that have a limit each may take as long as they did alone, and more."""
        limit = self._reward.options.timeout
        if limit is not None and self._reward.options.per_sample:
            limit += 2 * sum(after[place].seconds for place in places)
        [answer] = self.ask([samples.select(places)], limit)
        return answer

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


class _Ask:
    """One call of a reward's function, and a look at what came back and at what it did to its arguments."""

    def __init__(self, reward: Reward):
        self.reward = reward

    def __call__(self, batch: dict[str, Any], limit: float | None) -> _Answer:
        given = {**batch, **trl_extras()}
        function, expected = self.reward.function, len(batch["completions"])
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            accepted = settable_parameters(function)
            given = {name: value for name, value in given.items() if name in accepted}
        before = copy.deepcopy({name: value for name, value in given.items() if name in batch})
        started = time.perf_counter()
        try:
            returned = self._call(given, limit)
            values = list(returned) if hasattr(returned, "__iter__") and not isinstance(returned, str) else None
        except Exception as error:
            text = f"took more than {limit:g} s" if isinstance(error, TimeoutError) and limit else None
            text = text or f"{type(error).__name__}: {error}"
            return _Answer(expected, error=text, seconds=time.perf_counter() - started)
        seconds = time.perf_counter() - started
        changed = tuple(name for name, value in before.items() if given[name] != value)
        if values is None or len(values) != expected:
            came = repr(returned) if values is None else f"{len(values)} values"
            return _Answer(expected, misshapen=came, changed=changed, seconds=seconds)
        outcomes, strange = self._read(values)
        return _Answer(expected, None if strange else outcomes, strange, changed=changed, seconds=seconds)

    def _call(self, given: dict[str, Any], limit: float | None) -> Any:
        if not isinstance(self.reward, AsyncReward):
            return self.reward.function(**given)
        import asyncio

        from rlkd.engines import run

        return run(asyncio.wait_for(self.reward.function(**given), limit))

    def _read(self, values: Sequence[Any]) -> tuple[tuple[Outcome, ...], tuple[tuple[int, str], ...]]:
        outcomes, strange = [], []
        for place, value in enumerate(values):
            try:
                outcome = Outcome.of(value, self.reward.__name__, place)
            except RewardError:
                strange.append((place, f"{value!r} ({type(value).__name__})"))
                continue
            if outcome.status == "failed" and not isinstance(value, Failed):  # not finite
                strange.append((place, f"{value!r}, which is no score; Failed('why') says that there is none"))
            outcomes.append(outcome)
        return tuple(outcomes), tuple(strange)
