"""The figures of an evaluation, each with a 95 % interval over rows.

Shares (accuracy, pass@k, maj@k, ended) have `rlkd.statistics.mean_share`: the value of a row is that of all its
completions, and only rows count as independent. Other means (tokens, scores of rewards) have Student's interval.
Rows without a readable gold answer, and completions that could not be judged, are left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkd.evaluation.folder import RecordedCompletion
from rlkd.evaluation.measures import majority_at_k, pass_at_k, powers, same_answers
from rlkd.series import series_mean
from rlkd.statistics import Interval, mean_share
from rlkd.steps import calculations

Figure = dict[str, float | int | None]

ACCURACY = "accuracy"
_CAUSES = 3


def figure(interval: Interval) -> Figure:
    """An interval for JSON, in which a bound that is not finite is null."""
    low, high = (bound if math.isfinite(bound) else None for bound in (interval.low, interval.high))
    return {"value": interval.value, "low": low, "high": high, "n": interval.n}


def interval(found: Mapping[str, Any]) -> Interval:
    """The interval of a `figure`."""
    low = -math.inf if found["low"] is None else found["low"]
    high = math.inf if found["high"] is None else found["high"]
    return Interval(found["value"], low, high, found["n"])


def score(each: RecordedCompletion, metric: str) -> float | None:
    """The score of a completion; None where it is not applicable or failed."""
    value: float | None = each.scores.get(metric, {}).get("value")
    return value


def summarise(
    ids: Sequence[str],
    completions: Mapping[tuple[str, int], RecordedCompletion],
    *,
    samples: int,
    greedy: bool = True,
    metrics: Sequence[str] = (ACCURACY,),
    compares: bool = True,
) -> dict[str, Any]:
    """The figures of scored completions (by row and number), for JSON.

    `compares`: equal answers may be written differently, as exact ones are and letters are not.
    """
    found: dict[str, Any] = {"rows": len(ids), "samples": samples}
    if greedy:
        found["greedy"] = _general([[completions[name, 0]] for name in ids], metrics)
    if samples:
        groups = [[completions[name, number] for number in range(1, samples + 1)] for name in ids]
        found["sampled"] = _general(groups, metrics) | (
            _at_k(groups, samples, compares) if ACCURACY in metrics else {}
        )
    own = [completions[name, number] for name in ids for number in range(0 if greedy else 1, samples + 1)]
    found["metrics"] = {name: _counts(own, name) for name in metrics}
    return found


def _general(groups: Sequence[Sequence[RecordedCompletion]], metrics: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in metrics:
        values = {score(each, name) for group in groups for each in group} - {None}
        is_share = name == ACCURACY or (1.0 in values and values <= {0.0, 1.0})
        found[name] = _mean(groups, lambda each, name=name: score(each, name), share=is_share)  # type: ignore[misc]
    return found | {
        "ended": _mean(groups, lambda each: float(each.ended), share=True),
        "announced": _mean(groups, lambda each: float(each.answer is not None), share=True),
        "tokens": _mean(groups, lambda each: float(each.tokens)),
        "calculations": _mean(groups, lambda each: float(len(calculations(each.completion)))),
    }


def _mean(
    groups: Sequence[Sequence[RecordedCompletion]],
    value: Callable[[RecordedCompletion], float | None],
    *,
    share: bool = False,
) -> Figure | None:
    """The mean over rows of the means over their completions; None without a value."""
    known = [[each for each in map(value, group) if each is not None] for group in groups]
    means = [sum(values) / len(values) for values in known if values]
    if not means:
        return None
    if share:
        return figure(mean_share(means, items=max(map(len, known))))
    return figure(series_mean(means, block=1, resamples=2000))


def _at_k(groups: Sequence[Sequence[RecordedCompletion]], samples: int, compares: bool) -> dict[str, Any]:
    judged = [[each for each in group if score(each, ACCURACY) is not None] for group in groups]
    right = [[float(score(each, ACCURACY) == 1) for each in group] for group in judged]
    answers: list[Any] = [[each.answer for each in group] for group in judged]
    if compares:
        answers = same_answers(answers)
    found: dict[str, Any] = {"pass": {}, "maj": {}}
    for k in powers(samples):
        rows = [i for i, group in enumerate(judged) if len(group) >= k]
        if rows:
            passed = [pass_at_k(len(right[i]), int(sum(right[i])), k) for i in rows]
            found["pass"][str(k)] = figure(mean_share(passed, items=samples))
        if rows and k > 2:  # two votes have no majority
            voted = [majority_at_k(answers[i], right[i], k) for i in rows]
            found["maj"][str(k)] = figure(mean_share(voted, items=samples // k))
    return found


def _counts(completions: Sequence[RecordedCompletion], metric: str) -> dict[str, Any]:
    outcomes = [each.scores.get(metric, {}) for each in completions]
    causes = Counter(str(outcome.get("cause")) for outcome in outcomes if outcome.get("status") == "failed")
    return {
        "scored": sum(outcome.get("status") == "score" for outcome in outcomes),
        "not_applicable": sum(outcome.get("status") == "not_applicable" for outcome in outcomes),
        "failed": causes.total(),
        "causes": dict(causes.most_common(_CAUSES)),
    }
