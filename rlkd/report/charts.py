"""The charts of a report: curves of what a run logs, with their intervals.

A run that logs none of the metrics of a chart does not have it. Numbers that no chart names, such as those that a
reward of one's own logs, get a chart each at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlkd.report.chart_plans import NO_CHART, PLANS, ChartPlan
from rlkd.report.held_out import interval_of
from rlkd.report.records import RunRecords

POINTS = 400
"""The most points of a curve; of more steps, the means of equal stretches are drawn."""


@dataclass(frozen=True)
class ChartCurve:
    """A curve: its values `y` at `x`, a band from `low` to `high`, and the single values `raw` behind it."""

    run: int
    name: str
    x: list[float]
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    raw: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """A chart. `kind`: `steps` (curves over the steps of a run), `evaluations` or `positions` (points with bars)."""

    section: str
    title: str
    note: str = ""
    share: bool = False
    kind: str = "steps"
    x_title: str = "step"
    curves: list[ChartCurve] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def charts_of(runs: Sequence[RunRecords]) -> list[Chart]:
    """All charts that the runs have figures for."""
    charts = [_held_out(runs)]
    series = [_series_of(run.metrics) for run in runs]
    claimed: set[str] = set(NO_CHART)
    for plan in PLANS:
        curves: list[ChartCurve] = []
        for pattern, label in plan.metrics.items():
            for metric, part in _matching(pattern, series):
                claimed.add(metric)
                curves += _curves(series, metric, label.replace("*", part), plan)
        charts.append(Chart(plan.section, plan.title, plan.note, plan.share, curves=curves))
    charts.append(_weights_by_position(runs))
    for metric in dict.fromkeys(metric for one in series for metric in one):
        if metric not in claimed:
            plan = ChartPlan("Other metrics", metric, {})
            charts.append(Chart(plan.section, plan.title, curves=list(_curves(series, metric, metric, plan))))
    order = list(dict.fromkeys(chart.section for chart in charts))
    return sorted((chart for chart in charts if chart.curves), key=lambda chart: order.index(chart.section))


def _series_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each metric that is a number; one logged twice at a step counts as it was logged last."""
    merged: dict[int, dict[str, Any]] = {}
    for record in metrics:
        merged.setdefault(record["step"], {}).update(record)
    series: dict[str, tuple[list[float], list[float]]] = {}
    for step, record in sorted(merged.items()):
        for metric, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                steps, values = series.setdefault(metric, ([], []))
                steps.append(step)
                values.append(float(value))
    return series


def _matching(pattern: str, series: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The metrics that match a pattern, each with what stands for its *."""
    expression = re.compile(re.escape(pattern).replace(r"\*", "([^/]+)"))
    for metric in dict.fromkeys(metric for one in series for metric in one):
        if found := expression.fullmatch(metric):
            yield metric, found[1] if "*" in pattern else ""


def _curves(
    series: Sequence[Mapping[str, tuple[list[float], list[float]]]], metric: str, name: str, plan: ChartPlan
) -> Iterator[ChartCurve]:
    for run, one in enumerate(series):
        if metric in one and not (plan.only_above_zero and not any(one[metric][1])):
            x, raw = _thinned(*map(np.asarray, one[metric]))
            mean, low, high = moving_mean(raw)
            low, high = np.clip(low, plan.least, None), np.clip(high, None, 1.0 if plan.share else None)
            yield ChartCurve(run, name, x.tolist(), _plain(mean), _plain(low), _plain(high), _plain(raw))


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(values) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(values)), POINTS)
    return np.array([round(steps[part].mean()) for part in parts]), np.array([values[part].mean() for part in parts])


def moving_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean around each of n values, and the bounds of its 95 % interval, (n,) each.

    The window is an eighth of all values, at least 5; at both ends it is the first or the last one. The interval is
    Student's, and takes the values for independent: those of consecutive steps are of different questions. Of fewer
    than 8 values the values themselves and no bounds (NaN).

    >>> mean, low, high = moving_mean(np.array([0.0, 1.0] * 5))
    >>> float(mean[4]), round(float(low[4]), 2), round(float(high[4]), 2)
    (0.4, -0.28, 1.08)
    """
    n = len(values)
    if n < 8:
        return values, np.full(n, np.nan), np.full(n, np.nan)
    from scipy.stats import t  # slow to import, and few callers need it

    count = 2 * max(2, n // 16) + 1
    first = np.clip(np.arange(n) - count // 2, 0, n - count)
    last = first + count
    centred = values - values.mean()  # so that the difference of the sums stays exact
    sums, squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (centred, centred**2))
    mean = (sums[last] - sums[first]) / count
    variance = np.maximum(0.0, (squares[last] - squares[first]) / count - mean**2) * count / (count - 1)
    bound = t.ppf(0.975, count - 1) * np.sqrt(variance / count)
    mean += values.mean()
    return mean, mean - bound, mean + bound


def _held_out(runs: Sequence[RunRecords]) -> Chart:
    curves = []
    for index, run in enumerate(runs):
        for name, part in (("greedy", None), ("sampled", "sampled")):
            records = [record for record in run.evaluations if part is None or part in record]
            figures = [interval_of((record if part is None else record[part])["accuracy"]) for record in records]
            if figures:
                values = [_plain([getattr(f, bound) for f in figures]) for bound in ("value", "low", "high")]
                curves.append(ChartCurve(index, name, [record["step"] for record in records], *values))
    note = "Share of right answers, with 95 % intervals."
    return Chart("Learning", "Held-out accuracy", note, True, "evaluations", curves=curves)


BINS = 5


def _weights_by_position(runs: Sequence[RunRecords]) -> Chart:
    """Mean weights of the steps of the shown traces, by where in its trace a step is."""
    from rlkd.statistics import crossed_mean

    curves = []
    for index, run in enumerate(runs):
        for policy in ("student", "teacher"):
            bins: list[list[float]] = [[] for _ in range(BINS)]
            for rollout in run.rollouts:
                steps = rollout.get("steps") or []
                if rollout.get("policy") == policy and len(steps) > 1:
                    for i, step in enumerate(steps):
                        bins[min(BINS - 1, i * BINS // (len(steps) - 1))].append(step["weight"])
            middles = [(2 * i + 1) / (2 * BINS) for i in range(BINS)]
            found = [(x, crossed_mean(np.array([values]))) for x, values in zip(middles, bins, strict=True) if values]
            figures = [(x, figure) for x, figure in found if figure is not None]
            if figures:
                values = [_plain([getattr(f, bound) for _, f in figures]) for bound in ("value", "low", "high")]
                curves.append(ChartCurve(index, f"the {policy}'s traces", [x for x, _ in figures], *values))
    note = "Means over the steps of all shown traces, with 95 % intervals. 0 is a trace's first step, 1 its last."
    return Chart(
        "Distillation", "Weights by position", note, kind="positions", x_title="position in the trace", curves=curves
    )


def _plain(values: Any) -> list[float | None]:
    """Five digits of each value, which no eye can tell from all; None for one that is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]
