"""Measure a model on rows: any way of generating, any metrics, each figure with its interval.

A metric is a callable `(row, text) -> float | None` (None: does not apply to the row). It is deliberately not a
reward: what is reported should not be what was trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.answers import VerificationError, is_correct

Metric = Callable[[Mapping[str, Any], str], float | None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` rows with a 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1%} (95 % interval {self.low:.1%} to {self.high:.1%}, n = {self.n})"


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
) -> dict[str, Estimate]:
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


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % interval: Wilson's for values of 0 and 1, a percentile bootstrap (2,000 draws) else."""
    n = len(values)
    mean = sum(values) / n
    if set(values) <= {0.0, 1.0}:
        return Estimate(mean, *wilson_interval(sum(values), n), n)
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=n)) / n for _ in range(2000))
    return Estimate(mean, means[49], means[1949], n)


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson, 1927); sensible at 0 and n, where the plain one is empty."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
