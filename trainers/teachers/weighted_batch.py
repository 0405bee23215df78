"""A batch with the weights of its tokens, and what is logged and written of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from rlkd.answers import accuracy
from rlkd.validity import Tally, WeightedSteps


@dataclass(frozen=True)
class StepRecord:
    """A step with its weight and scores; `teacher` and `student` are validities, None where there are none.

    `raising`: the weight of a signal that makes its tokens likelier, where that has one of its own.
    """

    row: int
    position: float
    text: str
    tokens: int
    weight: float
    margin: float | None
    teacher: float | None = None
    student: float | None = None
    proposal: str | None = None
    raising: float | None = None


@dataclass(frozen=True)
class WeightedBatch:
    """The weights of a batch's tokens (B, C), the steps behind them, and the tensors of the teacher's forward pass.

    `steps` and `tally` cover all processes, `records` this one. `raising` (B, C): the weights of signals that make the
    tokens of a trace likelier; None for `weights`.
    """

    weights: Tensor
    records: list[StepRecord] = field(default_factory=list)
    steps: WeightedSteps | None = None
    observed: dict[str, Tensor] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    raising: Tensor | None = None


def step_records(weighted: WeightedBatch, rows: int) -> list[list[dict[str, Any]]]:
    """For each row the records of its steps: text, tokens, weight, margin, validities and proposal."""
    records: list[list[dict[str, Any]]] = [[] for _ in range(rows)]
    for step in weighted.records:
        hidden = {"row", "position"} | ({"raising"} if step.raising is None else set())
        shown = {name: value for name, value in vars(step).items() if name not in hidden}
        records[step.row].append(shown)
    return records


def batch_metrics(
    batch: WeightedBatch, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], loss_mask: Tensor, on_policy: bool
) -> dict[str, float]:
    """The metrics of a generation batch, over all processes; must be called on every one of them.

    `texts`: the completion of each row. Metrics over no step are left out. `tau` and the right answers have two names,
    one for rollouts and one for the teacher's traces, which are mostly right by construction: a log line may cover
    batches of both.
    """
    right = [accuracy(row, text) for row, text in zip(rows, texts, strict=True)]
    local = {
        "steps": [(record.position, record.weight, record.margin, right[record.row]) for record in batch.records],
        "weight": float((batch.weights * loss_mask).sum()),
        "tokens": float(loss_mask.sum()),
        "traces": len(rows),
        "right": [value for value in right if value is not None],
    }
    parts = gather_object([local])
    total = {name: sum(part[name] for part in parts) for name in ("weight", "tokens", "traces")}
    verdicts = [value for part in parts for value in part["right"]]
    metrics = {"kd_weight/mean": total["weight"] / max(1.0, total["tokens"])}
    if verdicts:
        metrics["kd/right" if on_policy else "traces/right"] = sum(verdicts) / len(verdicts)
    steps = [step for part in parts for step in part["steps"]]
    if batch.steps is None or not steps:
        return metrics
    weights = [weight for _, weight, _, _ in steps]
    metrics |= {
        "kd/steps_per_trace": len(steps) / total["traces"],
        "kd_weight/floored": batch.steps.floored / len(steps),
        "validity/failed": batch.steps.failed / len(steps),
        "validity/tau" if on_policy else "traces/tau": batch.steps.tau,
    }
    deciles = statistics.quantiles(weights, n=10, method="inclusive") if len(weights) > 1 else weights * 9
    metrics |= {"kd_weight/q10": deciles[0], "kd_weight/q50": deciles[4], "kd_weight/q90": deciles[8]}
    thirds = {"first_third": (-1.0, 1 / 3), "middle_third": (1 / 3, 2 / 3), "last_third": (2 / 3, 1.0)}
    groups = {
        f"kd_weight/{name}": [weight for position, weight, _, _ in steps if low < position <= high]
        for name, (low, high) in thirds.items()
    }
    groups["validity/margin"] = [margin for _, _, margin, _ in steps if margin is not None]
    for name, value in (("right", 1.0), ("wrong", 0.0)):
        groups[f"validity/margin_{name}"] = [m for _, _, m, verdict in steps if m is not None and verdict == value]
    return metrics | {name: statistics.fmean(values) for name, values in groups.items() if values}
