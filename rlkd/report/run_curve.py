"""The picture of a run: held-out accuracy with its intervals, and the reward or loss of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.files import read_records
from rlkd.report.held_out import interval_of
from rlkd.report.plots import COLOURS, DARK, GREY, as_percent, can_plot, new_figure, save, set_title

# The first of these that a run logs is the curve of its training.
_TRAINING = {"reward": "mean reward of a step", "loss": "loss of a step"}
# The thick line is the mean of this many steps before and after each.
_HALF = 2


def draw_run(folder: Path) -> list[Path]:
    """Draw `curve.svg` and `curve.png` into the folder of a run from its `eval.jsonl` and `metrics.jsonl`.

    Draws nothing without matplotlib, and where neither file has two points.
    """
    evaluations, metrics = (_records(folder / name) for name in ("eval.jsonl", "metrics.jsonl"))
    key = next((key for key in _TRAINING if sum(record.get(key) is not None for record in metrics) > 1), None)
    parts = [part for part, present in (("held out", len(evaluations) > 1), (key, key is not None)) if present]
    if not parts or not can_plot():
        return []
    figure, panels = new_figure(4.2 * len(parts), 2.9, (1.0,) * len(parts))
    for part, axes in zip(parts, panels, strict=True):
        if part == "held out":
            _draw_held_out(axes, evaluations)
        else:
            _draw_training(axes, metrics, str(key))
        axes.set_xlabel("optimizer step")
    return save(figure, folder / "curve")


def _draw_held_out(axes: Any, evaluations: Sequence[Mapping[str, Any]]) -> None:
    curves = {"greedy": [(record["step"], interval_of(record["accuracy"])) for record in evaluations]}
    sampled = [(r["step"], interval_of(r["sampled"]["accuracy"])) for r in evaluations if "sampled" in r]
    if len(sampled) > 1:
        curves = {"sampled": sampled, **curves}
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        steps, found = [step for step, _ in points], [interval for _, interval in points]
        axes.fill_between(steps, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.13, lw=0)
        axes.plot(steps, [i.value for i in found], color=colour, marker="o", ms=3.5, lw=1.8, label=name)
    set_title(axes, "Held-out accuracy")
    as_percent(axes.yaxis)
    axes.legend(loc="best", fontsize=8.5, frameon=False)


def _draw_training(axes: Any, metrics: Sequence[Mapping[str, Any]], key: str) -> None:
    points = [(record["step"], record[key]) for record in metrics if record.get(key) is not None]
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, color=GREY, lw=0.8, alpha=0.6)
    near = [values[max(0, i - _HALF) : i + _HALF + 1] for i in range(len(values))]
    axes.plot(steps, [sum(part) / len(part) for part in near], color=DARK, lw=1.8)
    set_title(axes, f"Training: {_TRAINING[key]}")


def _records(path: Path) -> list[dict[str, Any]]:
    return list(read_records(path)) if path.exists() else []
