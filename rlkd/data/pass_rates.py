"""Pass rates: how often a student answers a question right, measured once and kept with the row.

A question that a student always or never gets right teaches nothing with accuracy as the reward: all completions of
its group earn the same. `rlkd evaluate --pass_rates FILE` measures the rates, `keep_pass_rate` selects rows by them.

>>> rows = [{"id": "a"}, {"id": "b"}, {"id": "c"}]
>>> measured = list(with_pass_rates(rows, {"a": [1, 0, 0, 1], "b": [0, 0, 0, 0], "c": [None]}))
>>> [(row["pass_rate"], row["pass_rate_samples"]) for row in measured]
[(0.5, 4), (0.0, 4), (None, 0)]
>>> rows_between(measured, 0.1, 0.9, source="rows")
[{'id': 'a', 'pass_rate': 0.5, 'pass_rate_samples': 4}]
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlkd.data.rows import Row
from rlkd.errors import UsageError
from rlkd.process import is_first_process

logger = logging.getLogger(__name__)

PASS_RATE, SAMPLES = "pass_rate", "pass_rate_samples"
WAY_OUT = "Measure it for the student to train: rlkd evaluate --pass_rates FILE (docs/difficulty.md)"


def with_pass_rates(rows: Iterable[Row], verdicts: Mapping[str, Sequence[float | None]]) -> Iterator[Row]:
    """The rows, each with the share of right samples among those that could be judged, and the number of these.

    `verdicts`: by id of the row, the accuracy of each sample; None where it could not be judged. The share is an
    unbiased estimate of the probability of a right answer. A row without a judged sample has None.
    """
    for row in rows:
        judged = [verdict for verdict in verdicts[row["id"]] if verdict is not None]
        rate = sum(verdict == 1 for verdict in judged) / len(judged) if judged else None
        yield {**row, PASS_RATE: rate, SAMPLES: len(judged)}


def check_bounds(bounds: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest pass rate of `keep_pass_rate`; raises `UsageError`."""
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise UsageError(
            f"keep_pass_rate {list(bounds)}: expected the lowest and the highest pass rate, such as [0.1, 0.9]"
        )
    return bounds[0], bounds[1]


def rows_between(rows: Sequence[Row], low: float, high: float, *, source: str) -> list[Row]:
    """The rows with a pass rate from `low` to `high`, both included; how many are left out is logged.

    Raises `UsageError` where no row has a pass rate, one has another value, or none is left.
    """
    rates = [_rate(row, source) for row in rows]
    easy = sum(rate is not None and rate > high for rate in rates)
    hard = sum(rate is not None and rate < low for rate in rates)
    unknown = rates.count(None)
    if unknown == len(rows):
        raise UsageError(f"keep_pass_rate: no row of {source} has a {PASS_RATE}. {WAY_OUT}")
    kept = [row for row, rate in zip(rows, rates, strict=True) if rate is not None and low <= rate <= high]
    counts = (
        f"{source}: {len(kept):,} of {len(rows):,} rows have a pass rate from {low:g} to {high:g}; left out are "
        f"{hard:,} below, {easy:,} above, {unknown:,} without one"
    )
    if not kept:
        raise UsageError(f"keep_pass_rate: nothing is left. {counts}. Widen the bounds, or measure with more samples")
    if is_first_process():
        logger.warning("%s", counts)
    return kept


def _rate(row: Row, source: str) -> float | None:
    value: Any = row.get(PASS_RATE)
    if isinstance(value, str):  # of a CSV
        with contextlib.suppress(ValueError):
            value = float(value) if value.strip() else None
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(
            f"{source}, row {row['id']!r}: {PASS_RATE} is {value!r}; expected a share from 0 to 1, or null"
        )
    return float(value)
