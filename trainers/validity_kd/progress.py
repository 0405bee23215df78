"""What a distillation run shows a person: one line per step, and one trace with its weights at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def kd_line(step: int, max_steps: int, logs: Mapping[str, Any]) -> str | None:
    """The line of a step.

    >>> kd_line(3, 10, {"kd/on_policy": 1.0, "loss": 0.5, "kd_weight/mean": 1.1, "kd/right": 0.25, "step_time": 9.6})
    'step 3/10 | rollouts | loss 0.500 | weight 1.10 | right 25% | 10 s'
    """
    if "kd/on_policy" not in logs:
        return None
    share = logs["kd/on_policy"]
    whose = "rollouts" if share == 1 else "traces" if share == 0 else f"rollouts {share:.0%}"
    parts = [f"step {step}/{max_steps}", whose]
    if logs.get("loss") is not None:
        parts.append(f"loss {float(logs['loss']):.3f}")
    weight = f"weight {logs['kd_weight/mean']:.2f}"
    if "kd_weight/q10" in logs:
        weight += f" ({logs['kd_weight/q10']:.2f} to {logs['kd_weight/q90']:.2f})"
    parts.append(weight)
    if "validity/margin" in logs:
        parts.append(f"margin {logs['validity/margin']:+.2f}")
    if logs.get("validity/failed"):
        parts.append(f"failed {logs['validity/failed']:.0%}")
    if "kd/right" in logs:
        parts.append(f"right {logs['kd/right']:.0%}")
    if (cut := logs.get("completions/clipped_ratio", logs.get("traces/clipped_ratio"))) is not None:
        parts.append(f"truncated {cut:.0%}")
    parts.append(f"{logs.get('step_time', 0.0):.0f} s")
    return " | ".join(parts)


def most_contrasting_trace(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record of a rollout file whose weights differ most; None where no trace has two steps."""

    def spread(record: Mapping[str, Any]) -> float:
        weights = [step["weight"] for step in record["steps"]]
        return max(weights) - min(weights)

    return max((record for record in records if len(record["steps"]) > 1), key=spread, default=None)


def trace_lines(record: Mapping[str, Any]) -> list[str]:
    """A trace as lines, each step after its weight."""
    whose = "the student's rollout" if record["policy"] == "student" else "the teacher's trace"
    lines = [f"Step {record['step']}, row {record['id']}, {whose}:"]
    for step in record["steps"]:
        margin = "" if step["margin"] is None else f" (margin {step['margin']:+.2f})"
        lines.append(f"  weight {step['weight']:.2f}{margin}  {step['text']}")
        if step.get("proposal"):
            lines.append(f"    the other model: {step['proposal']}")
    return lines
