"""Figures of a run's curves: panels with scattered values, fitted lines and intervals, drawn into a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlkd.errors import UsageError
from rlkd.series import slope

# Okabe and Ito's colours, which most colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Curve:
    """One line of a panel: `values` at `steps`; with bounds `low` and `high`, or scattered about a `line`.

    `line`: the values of a fitted line at the first and last step.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    line: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """One plot of a figure; equal labels have equal colours in all of them."""

    title: str
    curves: Sequence[Curve]
    notes: Mapping[str, str] = field(default_factory=dict)


def fitted_line(values: Sequence[float], steps: Sequence[float]) -> tuple[float, float]:
    """The least-squares line at the first and the last step."""
    rate = slope(values, steps) / 100
    centre, middle = float(np.mean(values)), float(np.mean(steps))
    return centre + rate * (steps[0] - middle), centre + rate * (steps[-1] - middle)


def draw(panels: Sequence[Panel], path: Path, title: str = "") -> None:
    """Draw panels, two per row, into a PNG of about 1000 pixels width. Raises `UsageError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError as error:
        raise UsageError('a figure needs matplotlib:  pip install "rlkd[plots]"') from error

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 3.4 * rows + 0.4), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    for position, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 2, position)
        for curve in panel.curves:
            colour = _COLOURS[labels.index(curve.label) % len(_COLOURS)]
            label = f"{curve.label}{panel.notes.get(curve.label, '')}"
            if curve.low is not None and curve.high is not None:
                # Side by side, or one interval would hide the other.
                shift = 0.012 * np.ptp(curve.steps) * (labels.index(curve.label) - (len(labels) - 1) / 2)
                values = np.asarray(curve.values)
                bounds = np.stack([values - curve.low, np.asarray(curve.high) - values])
                x = np.asarray(curve.steps, dtype=float) + shift
                axes.errorbar(x, values, yerr=bounds.clip(0), color=colour, label=label, marker="o", ms=4, capsize=3)
            elif curve.line is not None:
                axes.plot(curve.steps, curve.values, ".", color=colour, alpha=0.45, ms=5)
                axes.plot([curve.steps[0], curve.steps[-1]], curve.line, color=colour, label=label, lw=2)
            else:
                axes.plot(curve.steps, curve.values, color=colour, label=label, lw=1.3)
        axes.set_title(panel.title, fontsize=9.5)
        axes.set_xlabel("step", fontsize=8.5)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7.5, framealpha=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # A palette makes the file a third of the size, and few colours are in use.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64).save(path, optimize=True)
