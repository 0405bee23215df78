"""The figures of a study from the measurements of its runs: pure functions.

Arms are compared on the same seeds and the same held-out rows. Seeds and rows are crossed (every
seed answers the same rows), and the intervals of accuracies know it (`rlkd.statistics.crossed_mean`). A number of
rollouts has one value per seed; the ratio of two arms has Wilcoxon's interval, for which a run that never reaches
the goal is one that needs more than all others (`rlkd.statistics.signed_rank`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rlkd.statistics import Interval, crossed_mean, crossed_p, holm, signed_rank
from rlkd.study.measures import HeldOut, Rows, StudyRun

Seeds = Mapping[int, StudyRun]


@dataclass(frozen=True)
class AnswerFigures:
    """Held-out accuracy of an arm. `over_control`: after training, minus that of the control."""

    before: Interval | None
    after: Interval | None
    gain: Interval | None
    over_control: Interval | None


@dataclass(frozen=True)
class RolloutFigures:
    """Rollouts until the goal by seed (None: never), and their ratio to the control's."""

    needed: Mapping[int, float | None]
    ratio: Interval | None


@dataclass(frozen=True)
class ArmFigures:
    """All figures of an arm; `calculations` to `minutes` are means over its runs."""

    seeds: Sequence[int]
    sampled: AnswerFigures | None
    greedy: AnswerFigures
    rollouts: RolloutFigures | None
    calculations: float | None
    tokens: float | None
    zero_std: float | None
    minutes: float | None


@dataclass(frozen=True)
class Comparison:
    """A primary figure of an arm against another one: their difference, or the ratio of their rollouts.

    `p_holm`: adjusted for all comparisons of the same figure.
    """

    figure: str
    arm: str
    base: str
    difference: Interval | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class StudyFigures:
    """All figures. `goal`: the accuracy of `rollouts_to_goal`; None where the control does not rise measurably."""

    arms: Mapping[str, ArmFigures]
    comparisons: Sequence[Comparison]
    goal: float | None


def analyse(
    runs: Sequence[StudyRun], control: str, primary: Sequence[str], comparisons: Sequence[Sequence[str]]
) -> StudyFigures:
    """The figures of the runs, arm by arm in their order, and the primary ones of `comparisons`: (arm, other arm)."""
    arms: dict[str, dict[int, StudyRun]] = {}
    for run in runs:
        arms.setdefault(run.arm, {})[run.seed] = run
    base = arms.get(control, {})
    goal = goal_of(base)
    figures = {arm: _arm_figures(own, {} if arm == control else base, goal) for arm, own in arms.items()}
    compared = [one for name in primary for one in _compare(name, comparisons, arms, goal)]
    return StudyFigures(figures, compared, goal)


def _compare(
    name: str, pairs: Sequence[Sequence[str]], arms: Mapping[str, Seeds], goal: float | None
) -> list[Comparison]:
    """The comparisons of one primary figure, adjusted together.

    One without a p-value counts, too: it was planned, and nothing has been shown by it.
    """
    found = [over(name, arms.get(arm, {}), arms.get(base, {}), goal) for arm, base in pairs]
    adjusted = holm([1.0 if p is None else p for _, p in found])
    return [
        Comparison(name, arm, base, difference, p, None if p is None else of_all)
        for (arm, base), (difference, p), of_all in zip(pairs, found, adjusted, strict=True)
    ]


def over(name: str, arm: Seeds, base: Seeds, goal: float | None) -> tuple[Interval | None, float | None]:
    """A primary figure of an arm against another one on the seeds of both, and its p-value; None without a value.

    Rollouts and steps have no ratio, nor have those to a sampled and to a greedy goal.
    """
    both = [seed for seed in sorted(arm) if seed in base]
    if name == "rollouts_to_goal":
        kinds = {(run.counts_steps, run.sampled is None) for run in (*arm.values(), *base.values())}
        if goal is None or len(kinds) > 1:
            return None, None
        return ratio_of([(rollouts_to(curve_of(arm[s]), goal), rollouts_to(curve_of(base[s]), goal)) for s in both])
    pairs = [(_held_out(name, arm[seed]), _held_out(name, base[seed])) for seed in both]
    values = matrix([differences(own.after, other.after) for own, other in pairs if own and other])
    return crossed_mean(values, -1, 1), crossed_p(values)


def curve_of(run: StudyRun) -> Sequence[tuple[float, float]]:
    """The held-out curve of a run, that of sampled answers if there are any."""
    return (run.sampled or run.greedy).curve


def _held_out(name: str, run: StudyRun) -> HeldOut | None:
    return run.greedy if name == "accuracy" else run.sampled


def _arm_figures(arm: Seeds, control: Seeds, goal: float | None) -> ArmFigures:
    rollouts = None
    if goal is not None:
        needed = {seed: rollouts_to(curve_of(run), goal) for seed, run in sorted(arm.items())}
        rollouts = RolloutFigures(needed, over("rollouts_to_goal", arm, control, goal)[0])
    return ArmFigures(
        seeds=sorted(arm),
        sampled=_answers("sampled_accuracy", arm, control),
        greedy=_answers("accuracy", arm, control) or AnswerFigures(None, None, None, None),
        rollouts=rollouts,
        calculations=mean([run.calculations for run in arm.values()]),
        tokens=mean([run.tokens for run in arm.values()]),
        zero_std=mean([run.zero_std for run in arm.values()]),
        minutes=mean([None if run.seconds is None else run.seconds / 60 for run in arm.values()]),
    )


def _answers(name: str, arm: Seeds, control: Seeds) -> AnswerFigures | None:
    """None where no run has such answers."""
    runs = [found for run in arm.values() if (found := _held_out(name, run)) is not None]
    if not runs:
        return None
    return AnswerFigures(
        before=crossed_mean(matrix([differences(run.before) for run in runs]), 0, 1),
        after=crossed_mean(matrix([differences(run.after) for run in runs]), 0, 1),
        gain=crossed_mean(matrix([differences(run.after, run.before) for run in runs]), -1, 1),
        over_control=over(name, arm, control, None)[0],
    )


def differences(one: Rows, other: Rows | None = None) -> dict[str, float]:
    """Row by row `one` minus `other`; rows that one of them could not judge are left out."""
    values = {}
    for row, value in one.items():
        base = 0.0 if other is None else other.get(row)
        if value is not None and base is not None:
            values[row] = value - base
    return values


def matrix(seeds: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Values of seeds x the rows that all of them have."""
    shared = [row for row in seeds[0] if all(row in of_seed for of_seed in seeds)] if seeds else []
    return np.array([[of_seed[row] for row in shared] for of_seed in seeds]).reshape(len(seeds), len(shared))


# Rollouts until a goal


def goal_of(control: Seeds) -> float | None:
    """Half of the control's mean way from its first to its last accuracy, sampled if there are samples.

    None where the interval of its gain contains 0: there is no way to take the half of.
    """
    runs = [run.sampled or run.greedy for run in control.values()]
    gain = crossed_mean(matrix([differences(run.after, run.before) for run in runs]))
    if gain is None or not gain.low > 0 or math.isinf(gain.low):
        return None
    return float(np.mean([(run.curve[0][1] + run.curve[-1][1]) / 2 for run in runs]))


def rollouts_to(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Rollouts until a curve of (rollouts, accuracy) first reaches a goal, linear between its points; None: never.

    >>> rollouts_to([(0, 0.2), (640, 0.4)], 0.3)
    320.0
    """
    if curve and curve[0][1] >= goal:
        return curve[0][0]
    for (start, low), (end, high) in pairwise(curve):
        if high >= goal:
            return start + (goal - low) / (high - low) * (end - start)
    return None


def ratio_of(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[Interval | None, float | None]:
    """The ratio of the rollouts of two arms over the pairs of each seed, and its p-value of 1.

    Ratios are averaged as logarithms. None is a run that never reaches the goal, so that its ratio is above all
    others; where neither run does, or both begin there, the ratio is unknown.
    """
    if not pairs:
        return None, None
    numbers = np.array([[math.inf if value is None else value for value in pair] for pair in pairs], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        found, p = signed_rank(list(np.log(numbers[:, 0]) - np.log(numbers[:, 1])))
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(bound)) for bound in (found.value, found.low, found.high))
    return Interval(value, low, high, found.n), p


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None without one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def plain(value: Any) -> Any:
    """Figures as plain values for JSON: an infinite bound, and what is not a number, become null."""
    if isinstance(value, Interval):
        return {"value": plain(value.value), "low": plain(value.low), "high": plain(value.high), "n": value.n}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
