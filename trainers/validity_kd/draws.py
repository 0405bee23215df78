"""The draws of a run: functions of seed, step and row alone, the same on all processes and after a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlkd.errors import UsageError
from rlkd.teachers.traces import usable_traces
from trainers.teachers.draws import draw


def writes_itself(lmbda: float, seed: int, step: int) -> bool:
    """Whether the generation batch of this step holds the student's rollouts: one coin, the same on all processes.

    It depends on seed and step alone, so that a resumed run tosses the same coins.
    """
    return draw(seed, step, "policy").random() < lmbda


def choose_trace(row: Mapping[str, Any], seed: int, step: int) -> str:
    """The trace of a row for this step: one of its `rationales`, whatever the row's process and index."""
    traces = usable_traces(row["rationales"])
    if not traces:
        raise UsageError(f"row {row.get('id')!r} has no teacher trace in 'rationales'")
    return draw(seed, step, str(row.get("id")), json.dumps(row["prompt"])).choice(traces)
