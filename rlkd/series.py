"""Trends and means of the steps of a run, whose neighbours hang together: the block bootstrap.

The values of neighbouring steps are not independent (the model changes slowly), so stretches of neighbouring steps
are drawn together, on a circle so that every step is drawn equally often (Politis and Romano, 1992; a moving-block
bootstrap, Künsch 1989, without its edges). Two runs that share their questions step by step are compared on the
series of their differences: what made a step hard for both cancels, and its blocks are pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlkd.statistics import RESAMPLES, Interval


def block_length(n: int) -> int:
    """Steps in a block: the cube root of the number of steps, the rate at which it should grow (Künsch, 1989).

    For 60 steps 4: a block must be longer than the values remember, and there must be many blocks. Rewards of
    consecutive steps are of different questions, so they remember little.
    """
    return max(1, round(n ** (1 / 3)))


def slope(values: Sequence[float], steps: Sequence[float] | None = None) -> float:
    """The slope of the least-squares line per 100 steps. `steps`: positions of the values, by default 0, 1, 2 ..."""
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

        >>> rising = [0.1 + 0.002 * step + (0.05 if step % 3 else -0.1) for step in range(60)]
        >>> print(f"{trend(rising, seed=1):+.3f}")
        +0.217 (95 % interval +0.155 to +0.278, n = 60)
        >>> print(f"{trend([a - b for a, b in zip(rising, rising)], seed=1):+.3f}")
        +0.000 (95 % interval +0.000 to +0.000, n = 60)

    The line takes up part of the noise, and blocks are few; without a correction for both, an interval that should
    cover in 95 % of cases covers in 93 % of them at independent noise, 60 steps and blocks of 4, and in 88 % at an
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
    return _student_interval(100 * value, 100 * float(drawn), n, block or block_length(n), fitted=2)


def series_mean(
    values: Sequence[float], *, block: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean with its interval, corrected as in `trend`; `block=1` for values that are independent, such as rows.

    Raises ValueError for no values, and for values that are not finite.
    """
    y = _series(values)
    n, size = len(y), block or block_length(len(y))
    drawn = (y - y.mean())[_blocks(n, size, resamples, seed)].mean(axis=1).std()
    return _student_interval(float(y.mean()), float(drawn), n, size, fitted=1)


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
    """Indices (resamples, n) drawn in stretches of `block` neighbours; the first follows the last."""
    starts = np.random.default_rng(seed).integers(0, n, (resamples, -(-n // block)))
    return ((starts[:, :, None] + np.arange(block)) % n).reshape(resamples, -1)[:, :n]


def _student_interval(value: float, error: float, n: int, block: int, fitted: int) -> Interval:
    """The interval of an estimate with a bootstrapped standard error, after `fitted` parameters were taken out."""
    freedom = n / block - fitted
    if freedom < 3:  # the interval would be mere guesswork
        return Interval(value, -math.inf, math.inf, n)
    from scipy.stats import t  # slow to import, and few callers need it

    half = float(t.ppf(0.975, freedom)) * error * math.sqrt(n / (n - fitted * block))
    return Interval(value, value - half, value + half, n)
