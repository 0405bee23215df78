"""Intervals of trends and means of steps cover as often as they say."""

import doctest
import math

import numpy as np
import pytest

from rlkd import series
from rlkd.series import block_length, series_mean, slope, trend


def noise(n: int, runs: int, phi: float, seed: int = 0) -> np.ndarray:
    """Noise (runs, n) of which each value remembers the share `phi` of the one before."""
    drawn = np.random.default_rng(seed).standard_normal((runs, n + 50))
    for t in range(1, n + 50):
        drawn[:, t] += phi * drawn[:, t - 1]
    return drawn[:, 50:]


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(series).failed == 0


def test_a_constant_series_has_no_trend_and_no_doubt() -> None:
    found = trend([0.3] * 40)
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert not trend([0.3] * 40).excludes_zero


def test_a_straight_line_is_found_exactly_wherever_its_steps_stand() -> None:
    steps = [1, 2, 4, 8, 16, 32, 33, 34, 50, 60, 61, 70]
    found = trend([5 - 0.01 * step for step in steps], steps)
    assert (found.value, found.low, found.high) == pytest.approx((-1, -1, -1))


def test_the_slope_is_that_of_numpy() -> None:
    steps = np.arange(3, 63)
    values = noise(60, 1, 0.3)[0]
    assert slope(values, steps) == pytest.approx(100 * np.polyfit(steps, values, 1)[0])


def test_a_planted_trend_is_found_and_noise_is_not_taken_for_one() -> None:
    values = 0.05 * noise(60, 1, 0.3, seed=4)[0]
    assert not trend(values, seed=1).excludes_zero
    risen = trend(values + 0.003 * np.arange(60), seed=1)
    assert risen.excludes_zero
    assert risen.low < 0.3 < risen.high


@pytest.mark.parametrize(("phi", "least"), [(0.0, 0.93), (0.3, 0.91)])
def test_the_interval_of_a_trend_covers_the_planted_slope_in_about_95_percent(phi, least) -> None:
    series = noise(60, 600, phi) + 0.02 * np.arange(60)
    found = [trend(values, resamples=400, seed=i) for i, values in enumerate(series)]
    assert least <= np.mean([one.low <= 2 <= one.high for one in found]) <= 0.985


@pytest.mark.parametrize(("phi", "least"), [(0.0, 0.93), (0.3, 0.91)])
def test_the_interval_of_the_mean_of_twenty_steps_covers_in_about_95_percent(phi, least) -> None:
    found = [series_mean(values, block=4, resamples=400, seed=i) for i, values in enumerate(noise(20, 600, phi))]
    assert least <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99


def test_with_single_rows_the_interval_of_the_mean_is_the_textbook_one() -> None:
    values = noise(200, 1, 0.0)[0]
    found = series_mean(values, block=1)
    half = 1.972 * values.std(ddof=1) / math.sqrt(200)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)


def test_blocks_widen_the_interval_where_values_remember() -> None:
    values = noise(120, 1, 0.7)[0]
    wide, narrow = series_mean(values, block=6), series_mean(values, block=1)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_so() -> None:
    values = noise(60, 1, 0.2)[0]
    first = trend(values, seed=3)
    assert first == trend(values, seed=3)
    other = trend(values, seed=4)
    assert other != first
    assert other.value == first.value
    assert other.high - other.low == pytest.approx(first.high - first.low, rel=0.05)


def test_the_difference_of_slopes_is_the_slope_of_the_differences() -> None:
    first, second = noise(60, 2, 0.2)
    assert slope(first) - slope(second) == pytest.approx(slope(first - second))


def test_what_two_runs_have_in_common_falls_out_of_their_difference() -> None:
    shared, own = noise(60, 2, 0.0)
    alone = trend(shared, seed=1)
    paired = trend(shared - (shared + 0.1 * own), seed=1)
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_too_few_values_give_no_interval_rather_than_a_narrow_one() -> None:
    for found in (trend([1.0, 2.0, 4.0]), series_mean([0.5])):
        assert found.low == -math.inf
        assert found.high == math.inf
        assert not found.excludes_zero
        assert "(no interval, n = " in str(found)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (3, 1), (20, 3), (60, 4), (200, 6)])
def test_a_block_is_the_cube_root_of_the_number_of_steps(n, length) -> None:
    assert block_length(n) == length


@pytest.mark.parametrize(
    ("values", "steps", "message"),
    [
        ([], None, "no values"),
        ([1.0], None, "a slope needs two"),
        ([1.0, 2.0], [3, 3], "a slope needs two"),
        ([1.0, 2.0, 3.0], [1, 2], "2 steps for 3 values"),
        ([1.0, math.nan, 2.0], None, "1 of 3 values are not finite"),
    ],
)
def test_a_series_that_cannot_be_fitted_is_refused(values, steps, message) -> None:
    with pytest.raises(ValueError, match=message):
        trend(values, steps)
