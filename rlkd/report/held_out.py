"""The report of held-out evaluations: before, after, and the paired difference with its interval.

Takes the lines of a run's `eval.jsonl` (`trainers.evaluation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.series import series_mean
from rlkd.statistics import Interval, paired_shares

Record = Mapping[str, Any]
# Of each row in `eval.jsonl`.
GREEDY, SAMPLED = "correct", "sampled_correct"
_BARS = "▁▂▃▄▅▆▇█"


def interval_of(figures: Mapping[str, Any]) -> Interval:
    """The interval of a figure in `eval.jsonl`."""
    return Interval(figures["mean"], figures["low"], figures["high"], figures["n"])


def paired_change(before: Record, after: Record, key: str = GREEDY) -> Interval | None:
    """`after` minus `before`, paired by row: mean and 95 % interval over the rows.

    None without a row in both, and where ids repeat: then nothing tells which rows are the same.
    """
    start = {row["id"]: row.get(key) for row in before["rows"]}
    if len(start) < len(before["rows"]):
        return None
    values = [
        row[key] - start[row["id"]]
        for row in after["rows"]
        if row.get(key) is not None and start.get(row["id"]) is not None
    ]
    if values and not any(values):  # an empty interval would claim too much
        return paired_shares(0, 0, len(values))
    return series_mean(values, block=1) if values else None


def held_out_report(records: Sequence[Record], *, last_step: int, limit: int) -> str:
    """What the evaluations of a run say, as text; empty without one.

    `last_step`: of the run; `limit`: tokens at which completions were truncated.
    """
    if not records:
        return ""
    first, last = records[0], records[-1]
    lines = _measure(records, last_step, "accuracy", lambda record: record["accuracy"], GREEDY)
    if "sampled" in last:
        sampled = [record for record in records if "sampled" in record]
        lines += _measure(sampled, last_step, "sampled", lambda record: record["sampled"]["accuracy"], SAMPLED)
    if first["step"] != last["step"]:
        figures = {"calculations per answer": "calculations", "tokens per answer": "tokens"}
        lines += [f"{name}: {_moved(first, last, key)}" for name, key in figures.items() if key in last]
    rows = f"{interval_of(last['accuracy']).n} test rows, greedy"
    if "sampled" in last:
        drawn = last["sampled"]
        rows += f"; sampled: {drawn['samples']} completions per row at temperature {drawn['temperature']:g}"
    return "\n".join([*lines, f"{rows}; truncated at {limit} tokens. The interval of a change is paired by row."])


def _measure(records: Sequence[Record], last_step: int, name: str, figure: Any, key: str) -> list[str]:
    width = max(len(name) + len(" before:"), 17)
    lines = []
    for record in records:
        step = record["step"]
        label = "before" if step == 0 else "after" if step == last_step else f"at step {step}"
        lines.append(f"{f'{name} {label}:':<{width}} {interval_of(figure(record)):.1%}")
    if len(records) > 2:
        lines[-1] += f"  {sparkline([figure(record)['mean'] for record in records])}"
    if len(records) > 1 and (change := paired_change(records[0], records[-1], key)) is not None:
        shown = "" if change.excludes_zero else ": it contains 0, so no change is shown (--eval_rows for more rows)"
        lines.append(f"{f'{name} change:':<{width}} {change:+.1%}{shown}")
    return lines


def _moved(first: Record, last: Record, key: str) -> str:
    return f"{first[key]:.2f} before, {last[key]:.2f} after"


def sparkline(values: Sequence[float]) -> str:
    """The values as a line of bars, from the smallest to the largest; empty without values.

    >>> sparkline([0.1, 0.2, 0.4])
    '▁▃█'
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    return "".join(
        _BARS[int((value - low) / (high - low) * (len(_BARS) - 1)) if high > low else 0] for value in values
    )
