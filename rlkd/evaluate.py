"""Measure a model on rows: any way of generating, any metrics, each figure with its interval.

A metric is a callable `(row, text) -> float | None` (None: does not apply to the row). It is deliberately not a
reward: what is reported should not be what was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkd.answers import VerificationError, is_correct
from rlkd.statistics import Interval, estimate

Metric = Callable[[Mapping[str, Any], str], float | None]


def accuracy(row: Mapping[str, Any], text: str) -> float | None:
    """1 where the announced answer equals the row's, else 0.

    An answer that cannot be compared in time is not right.
    """
    if row.get("answer") is None:
        return None
    try:
        correct = is_correct(text, row["answer"])
    except VerificationError:
        return 0.0
    return None if correct is None else float(correct)


def evaluate(
    rows: Sequence[Mapping[str, Any]],
    generate: Callable[[Sequence[Mapping[str, Any]]], Sequence[str]],
    metrics: Mapping[str, Metric],
) -> dict[str, Interval]:
    """Generate once a row, apply every metric, and estimate each mean.

    `generate` gets all rows and returns a text each, in order. Raises ValueError where it returns another number, or a
    metric applies to no row.
    """
    texts = list(generate(rows))
    if len(texts) != len(rows):
        raise ValueError(f"generate gave {len(texts)} texts for {len(rows)} rows")
    estimates = {}
    for name, metric in metrics.items():
        values = [v for row, text in zip(rows, texts, strict=True) if (v := metric(row, text)) is not None]
        if not values:
            raise ValueError(f"metric {name!r} applies to none of the {len(rows)} rows")
        estimates[name] = estimate(values)
    return estimates
