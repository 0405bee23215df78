"""The figures at the head of a report: held-out accuracy with its changes, and the rewards of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlkd.errors import UsageError
from rlkd.report.held_out import GREEDY, SAMPLED, interval_of, paired_change
from rlkd.report.records import RunRecords
from rlkd.report.rewards import read_report
from rlkd.series import trend
from rlkd.statistics import Interval

MEASURES = {"greedy": (GREEDY, None), "sampled": (SAMPLED, "sampled")}


def summary_of(runs: Sequence[RunRecords]) -> dict[str, Any]:
    """What the page shows above its charts, as plain values; figures are text with their intervals."""
    return {
        "runs": [_facts(run) for run in runs],
        "evaluations": [row for run in runs for row in _evaluations(run)],
        "changes": [change for run in runs for change in _changes(run, several=len(runs) > 1)] + _between(runs),
        "rewards": [row for run in runs for row in _rewards(run)],
        "failures": [
            {"run": run.name, "reward": reward, "cause": cause, "count": count}
            for run in runs
            for reward, causes in run.failures.items()
            for cause, count in causes.most_common()
        ],
    }


def _facts(run: RunRecords) -> dict[str, Any]:
    steps = [record["step"] for record in run.metrics]
    return {
        "name": run.name,
        "path": str(run.path),
        "steps": max(steps, default=None),
        "shown": len(run.rollouts),
        "written": run.rollouts_written,
        "stride": run.stride,
    }


def _evaluations(run: RunRecords) -> list[dict[str, Any]]:
    rows = []
    for record in run.evaluations:
        try:
            sampled = record.get("sampled", {})
            figures = {name: record if part is None else record.get(part) for name, (_, part) in MEASURES.items()}
            rows.append(
                {
                    "run": run.name,
                    "step": record["step"],
                    **{name: _percent(interval_of(one["accuracy"])) for name, one in figures.items() if one},
                    "samples": sampled.get("samples"),
                    "ended": _percent(interval_of(record["ended"])) if "ended" in record else None,
                    "tokens": record.get("tokens"),
                    "calculations": record.get("calculations"),
                    "rows": interval_of(record["accuracy"]).n,
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{run.path / 'eval.jsonl'}, step {record['step']}: not an evaluation of a run "
                f"({type(error).__name__}: {error})"
            ) from error
    return rows


def _changes(run: RunRecords, *, several: bool) -> list[dict[str, Any]]:
    """The changes from the first evaluation of a run to its last, paired by row."""
    changes = []
    for name, (key, part) in MEASURES.items():
        records = [record for record in run.evaluations if part is None or part in record]
        if len(records) > 1 and (change := paired_change(records[0], records[-1], key)) is not None:
            what = f"{name} accuracy, step {records[-1]['step']} minus step {records[0]['step']}"
            changes.append(_change(f"{run.name}: {what}" if several else what.capitalize(), change))
    return changes


def _between(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """The difference of the last evaluations of two runs, paired by row."""
    changes = []
    for name, (key, part) in MEASURES.items():
        last = [[record for record in run.evaluations if part is None or part in record][-1:] for run in runs]
        if len(runs) == 2 and all(last):
            [first], [second] = last
            if (change := paired_change(second, first, key)) is not None:
                steps = f"step {first['step']} minus step {second['step']}"
                what = f"{runs[0].name} minus {runs[1].name}: {name} accuracy, {steps}"
                changes.append(_change(what, change, _other_settings(runs[0], runs[1])))
    return changes


def _other_settings(first: RunRecords, second: RunRecords) -> str:
    """A sentence on the settings in which the evaluations of two runs differ; the seed only draws the samples."""
    one, other = first.evaluated_with, second.evaluated_with
    differing = [key for key in one if key in other and one[key] != other[key] and key != "seed"]
    return f"The runs were evaluated with different settings: {', '.join(differing)}." if differing else ""


def _change(what: str, change: Interval, note: str = "") -> dict[str, Any]:
    figure = {"figure": f"{change:+.1%}", "clear": change.excludes_zero, "up": change.value > 0}
    return {"what": what, **figure, "note": note}


def _rewards(run: RunRecords) -> list[dict[str, Any]]:
    """The figures of each reward over all rollouts of a run, and the trend of its mean over the steps."""
    if not any("rewards" in rollout for rollout in run.rollouts):
        return []
    rows = []
    for name, figures in read_report(run.path).rewards.items():
        row = asdict(figures)
        del row["causes"], row["slowest"]
        rows.append({"run": run.name, "name": name, **row, "trend": _trend(run.metrics, f"rewards/{name}/mean")})
    return rows


def _trend(metrics: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any] | None:
    """The slope per 100 steps; None for few steps."""
    points = [(record["step"], record[metric]) for record in metrics if record.get(metric) is not None]
    points = points[:: max(1, len(points) // 400)]
    if len({step for step, _ in points}) < 12:
        return None
    slope = trend([value for _, value in points], [step for step, _ in points], resamples=2000)
    return {"figure": f"{slope:+.3f}", "clear": slope.excludes_zero}


def _percent(figure: Interval) -> str:
    return figure.short(".1%")
