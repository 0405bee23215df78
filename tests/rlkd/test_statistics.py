"""Intervals cover as often as they say, and AUROC and bootstraps agree with slow references."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from rlkd import statistics
from rlkd.statistics import (
    Interval,
    auroc,
    auroc_within,
    bootstrap_mean,
    clustered_share,
    crossed_mean,
    crossed_p,
    estimate,
    holm,
    mcnemar,
    mean_share,
    median_interval,
    paired_shares,
    resample,
    sign_flip,
    signed_rank,
    wilson_interval,
)


def test_an_interval_renders_itself_in_a_sentence_and_in_a_table() -> None:
    interval = Interval(0.3, 0.1, 0.5, 20)
    assert str(interval) == "0.300 (95 % interval 0.100 to 0.500, n = 20)"
    assert f"{interval:.0%}" == "30% (95 % interval 10% to 50%, n = 20)"
    assert interval.short("+.1f") == "+0.3 (+0.1 to +0.5)"
    assert str(Interval(math.nan, math.nan, math.nan, 0)) == "n/a"
    assert Interval(0.3, -math.inf, math.inf, 1).short() == "0.300 (no interval)"


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(statistics).failed == 0


@pytest.mark.parametrize(("low", "high", "excludes"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False)])
def test_an_interval_that_excludes_zero_has_both_bounds_on_one_side(low, high, excludes) -> None:
    assert Interval(0.0, low, high, 9).excludes_zero is excludes


# Rows


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_share_and_mirrors(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert -1e-12 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1 + 1e-12
    assert high - low > 0
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_shares_are_estimated_by_wilson():
    found = estimate([1.0, 0.0, 1.0, 1.0])
    assert (found.value, found.n) == (0.75, 4)
    assert (found.low, found.high) == wilson_interval(3, 4)


def test_other_values_are_estimated_by_the_bootstrap_repeatably():
    values = [i / 50 for i in range(51)]
    found = estimate(values)
    assert found == estimate(values)
    assert found.value == pytest.approx(0.5)
    # For many values the bootstrap agrees with mean +- 1.96 standard errors.
    error = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 51 / 51)
    assert found.low == pytest.approx(0.5 - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(0.5 + 1.96 * error, abs=0.01)


def test_an_estimate_reads_as_a_sentence():
    assert f"{estimate([1.0] * 5 + [0.0] * 5):.1%}" == "50.0% (95 % interval 23.7% to 76.3%, n = 10)"


@pytest.mark.parametrize(("n", "k"), [(3, 1), (6, 1), (18, 5), (60, 22)])
def test_the_interval_of_a_median_is_read_from_the_order_of_the_values(n, k) -> None:
    # D. Altman et al., Statistics with Confidence (2000), table 18.4, as far as it goes: ranks k and n + 1 - k.
    assert median_interval([float(i) for i in reversed(range(n))]) == (k - 1, n - k)


# Questions


def slow_auroc(scores, right):
    """Every pair of a right and a wrong one, by hand."""
    wins = [
        1.0 if mine > theirs else 0.5 if mine == theirs else 0.0
        for mine, good in zip(scores, right, strict=True)
        for theirs, bad in zip(scores, right, strict=True)
        if good and not bad
    ]
    return sum(wins) / len(wins) if wins else math.nan


SCORED = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12)


def columns(scored):
    scores, right, question = zip(*scored, strict=True)
    return np.array(scores, dtype=float), np.array(right), np.array(question)


@given(SCORED)
def test_the_auroc_is_the_share_of_pairs_in_the_right_order(scored):
    scores, right, question = columns(scored)
    [found] = auroc(scores, right, question, np.ones((1, 4)))
    assert found == pytest.approx(slow_auroc(scores, right), nan_ok=True)


@given(SCORED, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_question_drawn_twice_counts_as_if_its_candidates_stood_there_twice(scored, counts):
    scores, right, question = columns(scored)
    repeated = [row for row in scored for _ in range(counts[row[2]])]
    [found] = auroc(scores, right, question, np.array([counts], dtype=float))
    expected = slow_auroc(*list(zip(*repeated, strict=True))[:2]) if repeated else math.nan
    assert found == pytest.approx(expected, nan_ok=True)


@given(SCORED)
def test_within_questions_only_candidates_of_one_question_are_compared(scored):
    scores, right, question = columns(scored)
    found = auroc_within(scores, right, question, 4)
    for q in range(4):
        members = question == q
        assert found[q] == pytest.approx(slow_auroc(scores[members], right[members]), nan_ok=True)


def test_a_mean_leaves_out_what_does_not_apply_and_its_interval_holds_it():
    counts = resample(50, draws=500, seed=1)
    values = np.linspace(0, 1, 50)
    figure = bootstrap_mean(np.where(values > 0.9, np.nan, values), counts)
    assert figure.value == pytest.approx(values[values <= 0.9].mean())
    assert figure.low < figure.value < figure.high
    assert figure.n == (values <= 0.9).sum()
    assert math.isnan(bootstrap_mean(np.full(50, np.nan), counts).value)


def test_the_bootstrap_interval_of_a_mean_is_about_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=400)
    figure = bootstrap_mean(values, resample(400, draws=4000, seed=2))
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_same_seed_draws_the_same_questions_and_another_seed_others():
    assert (resample(9, 20, 3) == resample(9, 20, 3)).all()
    assert (resample(9, 20, 3) != resample(9, 20, 4)).any()
    assert (resample(9, 20, 3).sum(axis=1) == 9).all()


def test_with_strata_only_candidates_of_one_stratum_are_compared() -> None:
    scores, right = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])
    question, counts = np.zeros(4, dtype=int), np.ones((1, 1))
    assert auroc(scores, right, question, counts) == [0.25]
    assert auroc(scores, right, question, counts, np.array([0, 1, 1, 0])) == [0.5]
    assert np.isnan(auroc(scores, right, question, counts, np.arange(4)))


# Seeds and rows


def covered(seeds: int, rows: int, of_seeds: float, of_rows: float, rest: float, studies: int = 800) -> float:
    """The share of simulated studies whose interval holds the true mean, 0."""
    draw = np.random.default_rng(7)
    hits = 0
    for _ in range(studies):
        seed_S1, row_1R = draw.normal(0, of_seeds, (seeds, 1)), draw.normal(0, of_rows, (1, rows))
        found = crossed_mean(seed_S1 + row_1R + draw.normal(0, rest, (seeds, rows)))
        hits += found.low <= 0 <= found.high
    return hits / studies


@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("of_rows", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_seeds_and_rows_covers_as_often_as_it_says(seeds, of_seeds, of_rows) -> None:
    assert 0.90 < covered(seeds, 100, of_seeds, of_rows, 1.0) < 0.985


def test_answers_of_0_and_1_of_the_same_rows_are_covered_too() -> None:
    draw = np.random.default_rng(3)
    hits = 0
    for _ in range(800):
        hard_R = draw.beta(0.5, 0.5, size=150)  # most rows are right, or wrong, for every seed
        found = crossed_mean((draw.random((5, 150)) < hard_R).astype(float))
        hits += found.low <= 0.5 <= found.high
    assert 0.93 < hits / 800 < 0.98


def test_rows_that_all_seeds_share_count_once() -> None:
    row_R = np.random.default_rng(0).normal(size=200)
    found = crossed_mean(np.tile(row_R, (5, 1)))
    assert found.value == pytest.approx(row_R.mean())
    assert found.high - found.low == pytest.approx(2 * 1.97 * row_R.std(ddof=1) / math.sqrt(200), rel=0.01)
    one = crossed_mean(row_R[None])
    assert (one.low, one.high) == pytest.approx((found.low, found.high), rel=1e-6)


def test_seeds_that_differ_have_the_interval_of_their_means() -> None:
    means = np.array([0.1, 0.3, 0.2, 0.4, 0.5])
    found = crossed_mean(np.repeat(means[:, None], 50, axis=1))
    half = 2.776 * means.std(ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-3)


def test_rows_with_a_gap_are_left_out_and_without_values_there_is_no_figure() -> None:
    values = np.array([[1.0, 0.0, math.nan, 1.0], [1.0, 1.0, 0.0, 0.0]])
    assert crossed_mean(values) == crossed_mean(values[:, [0, 1, 3]])
    assert crossed_mean(np.zeros((0, 0))) is None
    assert crossed_mean(np.full((2, 3), math.nan)) is None
    assert crossed_mean(np.ones((3, 1))).low == -math.inf


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    apart = np.repeat([[0.1], [0.5]], 50, axis=1)
    free, share = crossed_mean(apart), crossed_mean(apart, 0, 1)
    assert free.low < 0 < 1 < free.high
    assert (share.value, share.low, share.high, share.n) == (free.value, 0, 1, free.n)
    inside = np.array([[0.2, 0.4, 0.3]] * 4)
    assert crossed_mean(inside, 0, 1) == crossed_mean(inside)
    assert crossed_mean(np.ones((3, 1)), 0, 1).low == -math.inf  # too few rows for any interval


def test_the_p_value_of_a_study_fits_its_interval() -> None:
    draw = np.random.default_rng(5)
    for _ in range(40):
        values = (
            draw.normal(draw.normal(0, 0.1), 0.1, (5, 1)) + draw.normal(0, 0.3, (1, 80)) + draw.normal(0, 1, (5, 80))
        )
        assert (crossed_p(values) < 0.05) == crossed_mean(values).excludes_zero
    assert crossed_p(np.zeros((3, 20))) == 1
    assert crossed_p(np.ones((3, 20))) == 0
    assert crossed_p(np.ones((1, 20))) is None
    assert crossed_p(np.full((2, 3), math.nan)) is None
    assert crossed_p(np.ones((3, 1))) == 1


# A few values


@pytest.mark.parametrize("n", [5, 6, 8, 12, 20])
def test_the_signed_rank_test_is_wilcoxons_and_fits_its_interval(n) -> None:
    for seed in range(30):
        values = np.random.default_rng(seed).normal(0.5, 1, n)
        interval, p = signed_rank(values)
        assert p == pytest.approx(wilcoxon(values, method="exact").pvalue)
        assert (p <= 0.05) == interval.excludes_zero
        assert interval.low <= interval.value <= interval.high
    assert math.isinf(interval.high) == (n < 6)


def test_the_signed_rank_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    found = [signed_rank(draw.normal(0, 1, 8))[0] for _ in range(800)]
    assert 0.94 < sum(interval.low <= 0 <= interval.high for interval in found) / 800 < 0.98


def test_an_infinite_value_is_on_its_side_and_an_unknown_one_widens_the_interval() -> None:
    values = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    plain, p = signed_rank([*values, 1.1])
    infinite, same_p = signed_rank([*values, math.inf])
    assert same_p == p == 2 / 2**8
    assert plain.low <= infinite.low < 1
    assert infinite.high > plain.high
    unknown, unknown_p = signed_rank([*values, math.nan])
    assert unknown.low < plain.low
    assert unknown_p > p
    assert signed_rank([math.nan] * 9)[1] == 1
    assert signed_rank([0.0] * 9) == (Interval(0, 0, 0, 9), 1)
    with pytest.raises(ValueError, match="no values"):
        signed_rank([])


def test_holm_multiplies_the_smallest_p_value_most_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


# Items in clusters


def test_pairs_of_one_problem_that_are_right_together_count_once() -> None:
    values = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0] * 20
    clusters = [index // 3 for index in range(120)]
    found = clustered_share(values, clusters)
    assert (found.value, found.n) == (0.5, 120)
    assert (found.low, found.high) == pytest.approx(wilson_interval(20, 40), abs=0.005)


def test_independent_items_have_about_wilsons_interval() -> None:
    values = list((np.random.default_rng(0).random(400) < 0.9).astype(float))
    found = clustered_share(values, [index // 4 for index in range(400)])
    assert (found.low, found.high) == pytest.approx(wilson_interval(sum(values), 400), abs=0.01)
    assert clustered_share(values, range(400)).low == pytest.approx(wilson_interval(sum(values), 400)[0], abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_an_error_each_cluster_is_one_item(value) -> None:
    found = clustered_share([value] * 30, ["a", "b", "c"] * 10)
    assert (found.low, found.high) == wilson_interval(3 * value, 3)


def test_the_interval_of_clustered_items_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    hits = plain = 0
    for _ in range(800):
        values = (draw.random((90, 4)) < draw.beta(4.5, 0.5, size=90)[:, None]).astype(float).ravel()
        found = clustered_share(values, [index // 4 for index in range(360)])
        hits += found.low <= 0.9 <= found.high
        low, high = wilson_interval(values.sum(), 360)
        plain += low <= 0.9 <= high
    assert 0.92 < hits / 800 < 0.98
    assert plain < hits - 20


# Shares per row, and the same rows twice


def test_shares_of_zero_and_one_have_the_interval_of_single_values() -> None:
    for values in ([0.0] * 12, [1.0] * 5, [0.0, 1.0, 1.0, 0.0, 1.0]):
        found, expected = mean_share(values, 8), estimate(values)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_rows_that_vary_less_have_a_narrower_interval_and_no_completion_counts_twice() -> None:
    apart, close, same = ([0.0, 1.0] * 20, [0.4, 0.6] * 20, [0.5] * 40)
    widths = [mean_share(values, 8).high - mean_share(values, 8).low for values in (apart, close, same)]
    assert widths[1] < widths[0]
    assert widths[2] == pytest.approx(widths[0])
    low, high = wilson_interval(160, 320)
    assert widths[1] == pytest.approx(high - low)


def test_the_interval_of_a_paired_change_has_the_value_inside_and_is_never_empty() -> None:
    # Agresti and Min's formula by hand: 10 and 2 rows changed of 50.
    change = paired_shares(10, 2, 50)
    assert change.value == pytest.approx(0.16)
    assert (change.low, change.high) == pytest.approx((0.0245, 0.2832), abs=5e-5)
    unchanged = paired_shares(0, 0, 20)
    assert unchanged.value == 0
    assert unchanged.low < 0 < unchanged.high


def test_mcnemars_test_is_the_binomial_one_of_the_changed_rows() -> None:
    from scipy.stats import binomtest

    for gained, lost in ((0, 0), (3, 0), (10, 2), (5, 5)):
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected)


def test_the_sign_flip_test_is_exact_for_few_differences_and_drawn_for_many() -> None:
    assert sign_flip([0.5, 0.25, 0.0, 0.125]) == 2 / 8
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.5, -0.5]) == 1.0
    assert sign_flip([0.1] * 30) < 0.001
    assert sign_flip([0.1, -0.1] * 15) > 0.9
