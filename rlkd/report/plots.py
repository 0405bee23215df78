"""Figures with matplotlib, which is loaded only here: sizes, colours, and files that are the same every time.

Without matplotlib there is no figure and no error: `can_plot` says so, and `NO_PLOTS` how to get it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

NO_PLOTS = 'none, as there is no matplotlib:  pip install "rlkd[plots]"'
# Okabe and Ito's colours, which most colour-blind readers can tell apart, without the yellow that white swallows; then
# a purple and a brown.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#8C6D31")
# A control, or whatever the colours are compared with.
DARK = "#222222"
GREY = "#767676"
_STYLE: Any = {
    "font.size": 9.5,
    "axes.labelcolor": DARK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.facecolor": "white",
    "svg.hashsalt": "rlkd",
}


def can_plot() -> bool:
    """Whether matplotlib is installed; does not load it."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float, widths: tuple[float, ...] = (1.0,)) -> tuple[Any, list[Any]]:
    """A figure of `width` x `height` inches and its panels, side by side, with widths in proportion to `widths`."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
    return figure, list(panels)


def set_title(axes: Any, text: str) -> None:
    """A title above the left end of a panel."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=DARK)


def as_percent(axis: Any) -> None:
    """Label the ticks of an axis of shares in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def save(figure: Any, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png, without the time, so that equal figures are equal files."""
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    with matplotlib.rc_context(_STYLE):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths
