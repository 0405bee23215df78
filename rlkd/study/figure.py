"""The figure of a study: held-out curves by arm, and each arm against the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.report.plots import COLOURS, DARK, GREY, as_percent, can_plot, new_figure, save, set_title
from rlkd.study.analysis import StudyFigures
from rlkd.study.definition import Study
from rlkd.study.measures import StudyRun


def draw(study: Study, runs: Sequence[StudyRun], figures: StudyFigures, out: Path) -> list[Path]:
    """Write `figure.svg` and `figure.png` into `out`; nothing without matplotlib, and without a curve.

    On the left the mean over seeds of the held-out accuracy (sampled where there are samples) with its `band`; on the
    right accuracy after training minus the control's, with 95 % intervals over seeds and rows.
    """
    if not runs or not can_plot():
        return []
    colours = dict(zip((arm for arm in figures.arms if arm != study.control), cycle(COLOURS), strict=False))
    colours[study.control] = DARK
    sampled = all(run.sampled is not None for run in runs)
    figure, (left, right) = new_figure(9.2, 3.9, (1.55, 1.0))
    # The control last, above the others.
    for arm in sorted(figures.arms, key=lambda arm: arm == study.control):
        curves = [(run.sampled if sampled else run.greedy) for run in runs if run.arm == arm]
        x, values_SX = common_points([curve.curve for curve in curves if curve is not None])
        control = arm == study.control
        left.fill_between(x, *band(values_SX), color=colours[arm], alpha=0.13, lw=0)
        left.plot(x, values_SX.mean(axis=0), color=colours[arm], lw=2.6 if control else 1.8, label=arm, zorder=3)
    if figures.goal is not None:
        left.axhline(figures.goal, color=GREY, lw=1, ls=":")
        left.annotate(
            "goal",
            (1.0, figures.goal),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GREY,
            size=8,
        )
    set_title(left, f"Held-out accuracy, {'sampled' if sampled else 'greedy'}")
    left.set_xlabel("optimizer steps" if runs[0].counts_steps else "rollouts trained on")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    as_percent(left.yaxis)
    _draw_differences(right, study, figures, colours, sampled)
    if study.smoke:
        figure.suptitle("SMOKE TEST, NO RESULT", color=COLOURS[1], size=9)
    return save(figure, out / "figure")


def _draw_differences(axes: Any, study: Study, figures: StudyFigures, colours: dict[str, str], sampled: bool) -> None:
    """Each arm a row, in the colour of its curve: the names are the legend of both panels."""
    arms = list(figures.arms)
    axes.axvline(0, color=DARK, lw=1.2)
    for row, arm in enumerate(arms):
        answers = figures.arms[arm].sampled if sampled else figures.arms[arm].greedy
        found = answers.over_control if answers else None
        if arm == study.control:
            axes.plot([0], [row], "D", color=DARK, ms=6)
        elif found is not None:
            low, high = (bound if math.isfinite(bound) else found.value for bound in (found.low, found.high))
            axes.plot([low, high], [row, row], color=colours[arm], lw=2.4, solid_capstyle="round")
            axes.plot([found.value], [row], "o", color=colours[arm], ms=6)
    axes.set_yticks(range(len(arms)), [f"{arm} (control)" if arm == study.control else arm for arm in arms])
    for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
        label.set_color(colours[arm])
        label.set_fontweight("bold")
        label.set_fontsize(10)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    set_title(axes, "Against the control")
    axes.set_xlabel("points after training, 95 % interval")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}" if value else "0")


def common_points(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions that all curves cover, and the values of each there (seeds x positions), linear between its points."""
    end = min(curve[-1][0] for curve in curves)
    x = np.unique([position for curve in curves for position, _ in curve if position <= end])
    points = [np.array(curve, dtype=float) for curve in curves]
    return x, np.array([np.interp(x, of_seed[:, 0], of_seed[:, 1]) for of_seed in points])


def band(values_SX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean over seeds (Student's) at each position, at most the range of the seeds."""
    seeds = len(values_SX)
    low_X, high_X, mean_X = values_SX.min(axis=0), values_SX.max(axis=0), values_SX.mean(axis=0)
    if seeds > 2:
        from scipy.stats import t

        half_X = t.ppf(0.975, seeds - 1) * values_SX.std(axis=0, ddof=1) / math.sqrt(seeds)
        low_X, high_X = np.maximum(low_X, mean_X - half_X), np.minimum(high_X, mean_X + half_X)
    return low_X, high_X
