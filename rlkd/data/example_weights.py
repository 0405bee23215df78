"""The weights of examples in a loss, from a column of the rows: one number per row, or one per rationale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.errors import UsageError


def weights_of_row(row: Mapping[str, Any], column: str) -> list[float]:
    """The weight of each rationale of a row; raises `UsageError`, with the row's id, for one that is no weight.

    A number holds for all rationales of the row; a list has one number for each.

    >>> weights_of_row({"id": "a", "rationales": ["one", "two"], "trust": 0.5}, "trust")
    [0.5, 0.5]
    """
    value, rationales = row.get(column), row["rationales"]
    where = f"weight_column: row {row['id']!r}"
    if value is None:
        raise UsageError(f"{where} has no value in column {column!r}; its columns are {', '.join(sorted(row))}")
    weights = [value] * len(rationales) if not isinstance(value, list | tuple) else list(value)
    if len(weights) != len(rationales):
        raise UsageError(
            f"{where} has {len(weights)} weights for {len(rationales)} rationales. Give one per rationale, or one for "
            f"the row"
        )
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UsageError(
                f"{where} has the weight {weight!r} in column {column!r}: expected a number of at least 0"
            )
    return [float(weight) for weight in weights]


def scaled_weights(weights: Sequence[float]) -> list[float]:
    """The weights over their mean, so that the mean is 1; raises `UsageError` where all are 0.

    >>> scaled_weights([1, 3])
    [0.5, 1.5]
    """
    mean = math.fsum(weights) / len(weights)
    if not mean:
        raise UsageError(
            "weight_column: all weights are 0, so that nothing would be learnt. Give some a weight above 0"
        )
    return [weight / mean for weight in weights]
