"""The charts of a report: which metrics of a run stand together, and curves with their intervals.

A chart is named only by what it shows; a run that logs none of its metrics does not have it. Numbers that no chart
names, such as those that a reward logs, get a chart each at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlkd.report.held_out import interval_of
from rlkd.report.records import RunRecords

POINTS = 400
"""The most points of a curve; of more steps, the means of equal stretches are drawn."""


@dataclass(frozen=True)
class Curve:
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
    curves: list[Curve] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """A chart to make.

    `metrics`: pattern of the metric -> name of the curve, where * is a part of the metric; `least`: no value is below.
    """

    section: str
    title: str
    metrics: Mapping[str, str]
    note: str = ""
    share: bool = False
    least: float | None = None
    only_above_zero: bool = False


_PLANS = (
    _Plan("Learning", "Reward", {"reward": "all, weighted", "rewards/*/mean": "*"}, "Means of a step's completions."),
    _Plan(
        "Learning",
        "Zero-std groups",
        {"frac_reward_zero_std": "all rewards", "rewards/*/frac_zero_std": "* alone"},
        "Shares of groups whose completions all get the same reward.",
        share=True,
        least=0.0,
    ),
    _Plan(
        "Learning",
        "Missing rewards",
        {"rewards/*/failed": "* failed", "rewards/*/not_applicable": "* not applicable"},
        "Shares of completions without a score.",
        share=True,
        least=0.0,
        only_above_zero=True,
    ),
    _Plan(
        "Learning",
        "Spread of rewards",
        {"reward_std": "all, weighted", "rewards/*/std": "*"},
        "Standard deviations over a step's completions.",
        least=0.0,
    ),
    _Plan("Learning", "Correlation of rewards", {"rewards/correlation/*": "*"}, "Pearson's r over a step."),
    _Plan(
        "Completions",
        "Length",
        {
            "completions/mean_length": "mean",
            "completions/min_length": "shortest",
            "completions/max_length": "longest",
            "traces/mean_length": "mean of teacher traces",
        },
        "Tokens per completion.",
        least=0.0,
    ),
    _Plan(
        "Completions",
        "Truncated",
        {"completions/clipped_ratio": "completions", "traces/clipped_ratio": "teacher traces"},
        "Share that reached the length limit before an end token.",
        share=True,
        least=0.0,
    ),
    _Plan(
        "Completions",
        "Right answers in training",
        {"kd/right": "the student's rollouts", "traces/right": "the teacher's traces"},
        share=True,
        least=0.0,
    ),
    _Plan("Policy", "Entropy", {"entropy": "student"}, "Nats per token.", least=0.0),
    _Plan("Policy", "KL", {"kl": "to the reference model"}, "Nats per token."),
    _Plan(
        "Policy",
        "Clipped ratios",
        {"clip_ratio/region_mean": "all", "clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high"},
        "Share of tokens. 0 where a batch serves one optimizer step.",
        share=True,
        least=0.0,
    ),
    _Plan(
        "Policy",
        "Importance ratio of sampler and trainer",
        {
            "sampling/importance_sampling_ratio/mean": "mean",
            "sampling/importance_sampling_ratio/min": "smallest",
            "sampling/importance_sampling_ratio/max": "largest",
        },
        "Far below 1, hardly anything is learnt.",
    ),
    _Plan(
        "Policy",
        "Log-probabilities of sampler and trainer",
        {"sampling/sampling_logp_difference/mean": "mean", "sampling/sampling_logp_difference/max": "largest"},
        "Absolute differences per token, in nats.",
        least=0.0,
    ),
    _Plan(
        "Distillation",
        "Weights of steps",
        {
            "kd_weight/mean": "mean per token",
            "kd_weight/q10": "10 % quantile",
            "kd_weight/q50": "median",
            "kd_weight/q90": "90 % quantile",
        },
        "1 is plain distillation.",
        least=0.0,
    ),
    _Plan(
        "Distillation",
        "Weights by third of the trace",
        {"kd_weight/first_third": "first", "kd_weight/middle_third": "middle", "kd_weight/last_third": "last"},
    ),
    _Plan(
        "Distillation",
        "Margin of validities",
        {
            "validity/margin": "all steps",
            "validity/margin_right": "in right answers",
            "validity/margin_wrong": "in wrong answers",
        },
        "Validity of the teacher's step minus that of the student's.",
    ),
    _Plan("Distillation", "tau", {"validity/tau": "tau"}, "The margin that counts as large."),
    _Plan(
        "Distillation",
        "Steps without trust or score",
        {"kd_weight/floored": "floored", "validity/failed": "failed"},
        "Shares of steps whose teacher's step is too unlikely, and of steps that the scorer could not score.",
        share=True,
        least=0.0,
    ),
    _Plan("Distillation", "Steps per trace", {"kd/steps_per_trace": "steps"}),
    _Plan("Optimization", "Loss", {"loss": "loss"}),
    _Plan("Optimization", "Gradient norm", {"grad_norm": "norm before clipping"}, least=0.0),
    _Plan("Optimization", "Learning rate", {"learning_rate": "learning rate"}),
    _Plan("Time", "Seconds per step", {"step_time": "step"}, least=0.0),
    _Plan(
        "Time",
        "Seconds per reward call",
        {"rewards/*/seconds_p50": "*, median", "rewards/*/seconds_p95": "*, 95 % quantile"},
        least=0.0,
    ),
    _Plan(
        "Time",
        "Reused rewards",
        {"rewards/*/reused_batch": "*, in the batch", "rewards/*/reused_cache": "*, from the cache"},
        share=True,
        least=0.0,
    ),
)
_NO_CHART = {"step", "epoch", "num_tokens", "total_flos"}


def charts_of(runs: Sequence[RunRecords]) -> list[Chart]:
    """All charts that the runs have figures for."""
    charts = [_held_out(runs)]
    series = [_series_of(run.metrics) for run in runs]
    claimed: set[str] = set(_NO_CHART)
    for plan in _PLANS:
        curves = []
        for pattern, label in plan.metrics.items():
            for metric, part in _matching(pattern, series):
                claimed.add(metric)
                curves += _curves(series, metric, label.replace("*", part), plan)
        charts.append(Chart(plan.section, plan.title, plan.note, plan.share, curves=curves))
    charts.append(_weights_by_position(runs))
    for metric in dict.fromkeys(metric for one in series for metric in one):
        if metric not in claimed:
            plan = _Plan("Other metrics", metric, {})
            charts.append(Chart(plan.section, plan.title, curves=list(_curves(series, metric, metric, plan))))
    order = list(dict.fromkeys(chart.section for chart in charts))
    return sorted((chart for chart in charts if chart.curves), key=lambda chart: order.index(chart.section))


def _series_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each metric that is a number; a step logged twice counts as it was logged last."""
    last = {record["step"]: record for record in metrics}
    series: dict[str, tuple[list[float], list[float]]] = {}
    for step, record in sorted(last.items()):
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
    series: Sequence[Mapping[str, tuple[list[float], list[float]]]], metric: str, name: str, plan: _Plan
) -> Iterator[Curve]:
    for run, one in enumerate(series):
        if metric in one and not (plan.only_above_zero and not any(one[metric][1])):
            x, raw = _thinned(*map(np.asarray, one[metric]))
            mean, low, high = moving_mean(raw)
            low, high = np.clip(low, plan.least, None), np.clip(high, None, 1.0 if plan.share else None)
            yield Curve(run, name, x.tolist(), _plain(mean), _plain(low), _plain(high), _plain(raw))


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
                curves.append(Curve(index, name, [record["step"] for record in records], *values))
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
                curves.append(Curve(index, f"the {policy}'s traces", [x for x, _ in figures], *values))
    note = "Means over the steps of all shown traces, with 95 % intervals. 0 is a trace's first step, 1 its last."
    return Chart(
        "Distillation", "Weights by position", note, kind="positions", x_title="position in the trace", curves=curves
    )


def _plain(values: Any) -> list[float | None]:
    """Five digits of each value, which no eye can tell from all; None for one that is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]
