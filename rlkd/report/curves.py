"""What the curves of a run say: trends and differences with intervals, and their figure.

The values of neighbouring steps are not independent (the model changes slowly), so intervals come from a block
bootstrap: stretches of neighbouring steps are drawn together, on a circle so that every step is drawn equally often
(Politis and Romano, 1992; a moving-block bootstrap, Künsch 1989, without its edges).

    >>> rising = [0.1 + 0.002 * step + (0.05 if step % 3 else -0.1) for step in range(60)]
    >>> print(trend(rising, seed=1))
    +0.217 (95 % interval +0.155 to +0.278)
    >>> print(trend([a - b for a, b in zip(rising, rising)], seed=1))
    +0.000 (95 % interval +0.000 to +0.000)

Two runs that share their questions step by step are compared on the series of their differences: what made a step
hard for both falls out, and its blocks are pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlkd.errors import UsageError

RESAMPLES = 10_000
_Z = 1.959964
# Okabe and Ito's colours, which most colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; infinite bounds where there are too few observations for one."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not math.isfinite(self.high - self.low):
            return f"{self.value:+.3f} (too few observations for an interval)"
        return f"{self.value:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f})"


def block_length(n: int) -> int:
    """Steps a block: the cube root of the number of steps, the rate at which it should grow (Künsch, 1989).

    For 60 steps 4: a block must be longer than the values remember, and there must be many blocks. Rewards of
    consecutive steps are of different questions, so they remember little.
    """
    return max(1, round(n ** (1 / 3)))


def slope(values: Sequence[float], steps: Sequence[float] | None = None) -> float:
    """The slope of the least-squares line per 100 steps. `steps`: where the values stand; default 0, 1, 2 ..."""
    y, w = _series(values), _slope_weights(len(values), steps)
    return float(100 * (w @ (y - y.mean())))


def trend(
    values: Sequence[float],
    steps: Sequence[float] | None = None,
    *,
    block: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`slope` with its interval: blocks of the residuals are put back onto the line.

    The line takes up part of the noise, and blocks are few; without account of both, an interval that should cover in
    95 % of cases covers in 93 % of them at independent noise, 60 steps and blocks of 4, and in 88 % at an
    autocorrelation of 0.4. So the bootstrap's standard error is multiplied by sqrt(n / (n - 2 block)) and by
    Student's quantile for n / block - 2 degrees of freedom (our choice). Then it covers in 96 %, 95 %, 93 % and 89 %
    of cases at autocorrelations of 0, 0.2, 0.4 and 0.6.

    Raises ValueError for fewer than two values, values that are not finite, and steps that do not fit.
    """
    y, w = _series(values), _slope_weights(len(values), steps)
    n, x = len(y), _centred_steps(len(y), steps)
    value = float(w @ (y - y.mean()))
    residuals = y - y.mean() - value * x
    drawn = (residuals[_blocks(n, block or block_length(n), resamples, seed)] @ w).std()
    return _interval(100 * value, 100 * float(drawn), n, block or block_length(n), fitted=2)


def mean(values: Sequence[float], *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean with its interval, corrected as in `trend`; `block=1` for values that are independent, such as rows.

    Raises ValueError for no values, and for values that are not finite.
    """
    y = _series(values)
    n, size = len(y), block or block_length(len(y))
    drawn = (y - y.mean())[_blocks(n, size, resamples, seed)].mean(axis=1).std()
    return _interval(float(y.mean()), float(drawn), n, size, fitted=1)


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
    """Draw panels, two a row, into a PNG of about 1000 pixels width. Raises `UsageError` without matplotlib."""
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
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, 2, place + 1)
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


def _series(values: Sequence[float]) -> np.ndarray:
    y = np.asarray(values, dtype=float)
    if not len(y):
        raise ValueError("no values: a series needs at least one")
    if not np.isfinite(y).all():
        raise ValueError(f"{int((~np.isfinite(y)).sum())} of {len(y)} values are not finite; leave such steps out")
    return y


def _centred_steps(n: int, steps: Sequence[float] | None) -> np.ndarray:
    x = np.arange(n, dtype=float) if steps is None else np.asarray(steps, dtype=float)
    if len(x) != n:
        raise ValueError(f"{len(x)} steps for {n} values")
    if n < 2 or not np.ptp(x):
        raise ValueError(f"{n} values at {len(set(x))} step(s): a slope needs two")
    return x - x.mean()


def _slope_weights(n: int, steps: Sequence[float] | None) -> np.ndarray:
    """Weights (n,) whose product with the values is the least-squares slope per step."""
    x = _centred_steps(n, steps)
    return x / (x @ x)


def _blocks(n: int, block: int, resamples: int, seed: int) -> np.ndarray:
    """Places (resamples, n) drawn in stretches of `block` neighbours, the last being followed by the first."""
    starts = np.random.default_rng(seed).integers(0, n, (resamples, -(-n // block)))
    return ((starts[:, :, None] + np.arange(block)) % n).reshape(resamples, -1)[:, :n]


def _interval(value: float, error: float, n: int, block: int, fitted: int) -> Interval:
    """The interval of an estimate with a bootstrapped standard error, after `fitted` parameters were taken out."""
    freedom = n / block - fitted
    # Below three the interval would be mere guesswork, and the expansion below is off.
    half = math.inf if freedom < 3 else _student(freedom) * error * math.sqrt(n / (n - fitted * block))
    return Interval(value, value - half, value + half)


def _student(freedom: float) -> float:
    """Student's two-sided 95 % quantile, within 1 % from 3 degrees of freedom (Abramowitz and Stegun, 26.7.5)."""
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
