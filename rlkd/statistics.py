"""Intervals, bootstraps and AUROC: the statistics of every figure that a command, a run or a benchmark reports.

| values | function | interval |
| --- | --- | --- |
| rows of a test set | `estimate` | Wilson's for values of 0 and 1, else a percentile bootstrap |
| rows with a share each, as of eight completions | `mean_share` | Wilson's, for as many values as vary like the rows |
| the same rows twice, right or wrong | `paired_shares`, `mcnemar` | Agresti and Min's |
| items that hang together, such as pairs of one problem | `clustered_share` | Wilson's, for fewer items |
| questions, several figures on the same draws | `resample`, then `bootstrap_mean` or `auroc` | percentile bootstrap |
| seeds of a study x rows of its test set | `crossed_mean` | Student's, from the variances of seeds and of rows |
| a few values, some of them infinite | `signed_rank` | Wilcoxon's, from the order of the means of pairs |
| times of a benchmark | `median_interval` | from the order of the values |

Steps of a run are in `rlkd.series`. All are seeded. A difference is a figure like any other: of the paired
differences, or of the same draws.

Suffixes of arrays: C candidates (a solution of some question), Q questions, D bootstrap draws, K distinct values of a
score.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure on `n` observations with its 95 % interval.

    All are NaN where nothing was measured; the bounds are infinite where there are too few observations.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def within(self, least: float, most: float) -> Interval:
        """The same with its bounds no further than the figure can be; infinite bounds stay."""
        low, high = (
            min(max(bound, least), most) if math.isfinite(bound) else bound for bound in (self.low, self.high)
        )
        return Interval(self.value, low, high, self.n)

    def short(self, spec: str = ".3f") -> str:
        """The figure in a cell of a table: `0.300 (0.100 to 0.500)`."""
        return self._render(spec, "", "")

    def __format__(self, spec: str) -> str:
        """Every number in the format `spec`: `f"{interval:.1%}"`."""
        return self._render(spec or ".3f", "95 % interval ", f", n = {self.n}")

    def __str__(self) -> str:
        return format(self)

    def _render(self, spec: str, name: str, count: str) -> str:
        if math.isnan(self.value):
            return "n/a"
        if not math.isfinite(self.high - self.low):
            return f"{self.value:{spec}} (no interval{count})"
        return f"{self.value:{spec}} ({name}{self.low:{spec}} to {self.high:{spec}}{count})"


# Rows


def estimate(values: Sequence[float]) -> Interval:
    """The mean: Wilson's interval for values of 0 and 1, a percentile bootstrap (2,000 draws) else."""
    n = len(values)
    mean = sum(values) / n
    if set(values) <= {0.0, 1.0}:
        return Interval(mean, *wilson_interval(sum(values), n), n)
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=n)) / n for _ in range(DRAWS))
    return Interval(mean, means[49], means[1949], n)


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share (E. B. Wilson, 1927); sensible at 0 and n, where the plain one is empty."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_share(shares: Sequence[float], items: int = 1) -> Interval:
    """The mean of shares between 0 and 1, one per row, each of at most `items` completions.

    Wilson's interval with as many independent values of 0 and 1 as have the variance that the rows show: at least one
    per row, since no values with that mean vary more, and at most `items`. With shares of 0 and 1 it is that of
    `estimate`. Where rows do not vary at all, each counts as one value.

    With 12 to 150 rows of eight completions it covers in 91 to 97 % of cases, also where nearly every row is 0 or 1
    (there, a percentile bootstrap and Student's interval cover in 45 to 93 %).
    """
    y = np.asarray(shares, dtype=float)
    n, share, variance = len(y), float(y.mean()), float(y.var())
    independent = min(n * items, n * share * (1 - share) / variance) if variance > 0 else n
    return Interval(share, *wilson_interval(share * independent, independent), n)


def paired_shares(gained: int, lost: int, n: int) -> Interval:
    """The change of a share on the same n rows, of which `gained` became right and `lost` became wrong.

    The interval of Agresti and Min (2005) puts half a row into each of four cells. Unlike the plain one it is not
    empty where no row has changed.
    """
    more, less, rows = gained + 0.5, lost + 0.5, n + 2
    centre = (more - less) / rows
    half = 1.959964 * math.sqrt(more + less - (more - less) ** 2 / rows) / rows
    return Interval((gained - lost) / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test of `paired_shares`: two-sided p-value of as many gains as losses."""
    from scipy.stats import binomtest  # slow to import, and few callers need it

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(differences: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a mean of 0: how often the mean is as far from 0 where each sign is drawn by a fair coin.

    Exact with up to 13 differences other than 0 (of 10,000 `resamples`), else drawn.
    """
    from scipy.stats import permutation_test  # slow to import, and few callers need it

    values = np.asarray([value for value in differences if value], dtype=float)
    if not len(values):
        return 1.0
    # Exact where `resamples` are enough for all signs.
    options = {"permutation_type": "samples", "n_resamples": resamples, "batch": 500, "vectorized": True}
    return float(permutation_test((values,), np.sum, rng=np.random.default_rng(seed), **options).pvalue)


def clustered_share(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """The mean of values of 0 and 1 whose items hang together within clusters, such as the problem they are from.

    Wilson's interval with as many independent items as have the variance that the sums of clusters show (never more
    than there are). Where all values are equal they show none, and every cluster counts as one item.
    """
    y = np.asarray(values, dtype=float)
    n, share = len(y), float(y.mean())
    _, cluster_n = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)
    count = int(cluster_n.max()) + 1
    independent = float(count)
    if 0 < share < 1 and count > 1:
        sums_C = np.bincount(cluster_n, weights=y - share)
        variance = float(sums_C @ sums_C) / n**2 * count / (count - 1)
        independent = n if variance == 0 else min(n, share * (1 - share) / variance)
    return Interval(share, *wilson_interval(share * independent, independent), n)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from the order of the values alone; the whole range where there are few.

    The k-th smallest and the k-th largest of n values miss the median with probability 2 P(Binomial(n, 1/2) < k).
    """
    ordered, n = sorted(values), len(values)
    k = max((k for k in range(1, n // 2) if 2 * sum(math.comb(n, i) for i in range(k)) / 2**n <= 0.05), default=1)
    return ordered[k - 1], ordered[-k]


# Questions: draws that several figures share


def percentile(ordered: Sequence[float], share: int) -> float | None:
    """The nearest-rank percentile of sorted values; None without a value."""
    return ordered[-(-len(ordered) * share // 100) - 1] if ordered else None


def resample(n_questions: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each question is drawn in each bootstrap draw: (D, Q), rows that sum to Q."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_questions, np.full(n_questions, 1 / n_questions), size=draws).astype(float)


def percentile_interval(value: float, draws_D: np.ndarray, n: int) -> Interval:
    """A figure with the middle 95 % of its draws; draws that are NaN are left out."""
    draws_D = draws_D[~np.isnan(draws_D)]
    low, high = np.percentile(draws_D, [2.5, 97.5]) if len(draws_D) else (math.nan, math.nan)
    return Interval(float(value), float(low), float(high), n)


def bootstrap_mean(values_Q: np.ndarray, counts_DQ: np.ndarray) -> Interval:
    """The mean over questions; NaN marks a question to which the figure does not apply."""
    values_Q = np.asarray(values_Q, dtype=float)
    applies_Q = ~np.isnan(values_Q)
    if not applies_Q.any():
        return percentile_interval(math.nan, np.array([]), 0)
    with np.errstate(invalid="ignore"):
        means_D = counts_DQ @ np.where(applies_Q, values_Q, 0.0) / (counts_DQ @ applies_Q)
    return percentile_interval(values_Q[applies_Q].mean(), means_D, int(applies_Q.sum()))


def auroc(
    scores_C: np.ndarray,
    right_C: np.ndarray,
    question_C: np.ndarray,
    counts_DQ: np.ndarray,
    stratum_C: np.ndarray | None = None,
) -> np.ndarray:
    """The probability that a right candidate scores above a wrong one, ties one half, in each draw: (D,).

    Only candidates of one stratum are compared; without strata all are. NaN in a draw without such a pair.
    """
    strata_C = np.zeros(len(scores_C), dtype=int) if stratum_C is None else stratum_C
    wins_D, pairs_D = np.zeros(len(counts_DQ)), np.zeros(len(counts_DQ))
    for stratum in np.unique(strata_C):
        inside = strata_C == stratum
        levels_K, level_C = np.unique(scores_C[inside], return_inverse=True)
        tally = np.zeros((2, len(levels_K), counts_DQ.shape[1]))
        np.add.at(tally, (right_C[inside].astype(int), level_C, question_C[inside]), 1.0)
        wrong_KD, right_KD = tally[0] @ counts_DQ.T, tally[1] @ counts_DQ.T
        wins_D += (right_KD * (wrong_KD.cumsum(axis=0) - wrong_KD / 2)).sum(axis=0)
        pairs_D += right_KD.sum(axis=0) * wrong_KD.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return wins_D / pairs_D


def auroc_within(scores_C: np.ndarray, right_C: np.ndarray, question_C: np.ndarray, n_questions: int) -> np.ndarray:
    """The AUROC among the candidates of each question: (Q,), NaN for a question without both kinds.

    A group of GRPO is of this kind: only differences between completions of one question count.
    """
    alone = np.ones((1, 1))
    values_Q = np.full(n_questions, np.nan)
    for question in np.unique(question_C):
        members = question_C == question
        here = np.zeros(members.sum(), dtype=int)
        values_Q[question] = auroc(scores_C[members], right_C[members], here, alone)[0]
    return values_Q


# Seeds and rows


def crossed_mean(values_SR: np.ndarray, least: float = -math.inf, most: float = math.inf) -> Interval | None:
    """The mean of a study's values, its seeds x the rows of its test set; None without a value.

    `least` and `most`: what the mean can be, such as 0 and 1 for shares; finite bounds end there.

    Every seed is measured on the same rows, so a row that is easy for one seed is easy for all: the variance of the
    mean is that of the seeds' means, plus that of the rows' means, less what both contain. Student's quantile has the
    degrees of freedom of that sum (Satterthwaite, 1946): about 4 where five seeds differ, many where rows decide. With
    one seed the interval does not cover other seeds. Rows with a NaN are left out.

    With 3 to 10 seeds and 100 to 200 rows it covers in 92 to 98 % of cases, however the variance is divided (a
    bootstrap that draws rows anew for each seed: down to 48 %).
    """
    found = _crossed(values_SR)
    if found is None:
        return None
    value, error, freedom, n = found
    from scipy.stats import t  # slow to import, and few callers need it

    half = float(t.ppf(0.975, freedom)) * error if math.isfinite(error) else math.inf
    return Interval(value, value - half, value + half, n).within(least, most)


def crossed_p(values_SR: np.ndarray) -> float | None:
    """The two-sided p-value of a mean of 0, with the error of `crossed_mean`; None for fewer than two seeds."""
    found = _crossed(values_SR)
    if found is None or len(values_SR) < 2:
        return None
    value, error, freedom, _ = found
    if value == 0 or math.isinf(error):
        return 1.0
    from scipy.stats import t

    return float(2 * t.sf(abs(value) / error, freedom)) if error else 0.0


def _crossed(values_SR: np.ndarray) -> tuple[float, float, float, int] | None:
    """Mean, standard error, degrees of freedom and number of a study's values; None without a value."""
    values_SR = np.asarray(values_SR, dtype=float)
    values_SR = values_SR[:, ~np.isnan(values_SR).any(axis=0)]
    seeds, rows = values_SR.shape
    if not seeds or not rows:
        return None
    value, seed_S, row_R = float(values_SR.mean()), values_SR.mean(axis=1), values_SR.mean(axis=0)
    if rows == 1:
        return value, math.inf, 1.0, values_SR.size
    of_rows = float(row_R.var(ddof=1)) / rows
    variance, freedom = of_rows, rows - 1.0
    if seeds > 1:
        of_seeds = float(seed_S.var(ddof=1)) / seeds
        rest_SR = values_SR - seed_S[:, None] - row_R + value
        rest_freedom = (seeds - 1) * (rows - 1)
        of_both = float((rest_SR**2).sum()) / rest_freedom / (seeds * rows)
        variance = of_seeds + of_rows - of_both
        if variance > max(of_seeds, of_rows):
            parts = of_seeds**2 / (seeds - 1) + of_rows**2 / (rows - 1) + of_both**2 / rest_freedom
            freedom = variance**2 / parts
        else:  # one of the two is below its noise
            variance, freedom = max((of_seeds, seeds - 1.0), (of_rows, rows - 1.0))
    return value, math.sqrt(variance), freedom, values_SR.size


# A few values


def signed_rank(values: Sequence[float]) -> tuple[Interval, float]:
    """The centre of values that scatter symmetrically, with its 95 % interval, and the p-value of a centre of 0.

    The centre is the median of the means of all pairs, each value with itself included (Hodges and Lehmann, 1963);
    interval and p-value are those of Wilcoxon's signed-rank test, exact without ties. Only the order of those means
    counts, so a value may be infinite: it says on which side it is, not how far. The interval is unbounded for fewer
    than six values. A value that is NaN is unknown: it is 0 in the centre, and whatever is worst in each bound and
    in the p-value.

        >>> signed_rank([-1.0, -2.0, -0.5, -1.5, -0.8, -math.inf])
        (Interval(value=-1.4, low=-inf, high=-0.5, n=6), 0.03125)

    Raises ValueError for no values.
    """
    given = np.asarray(values, dtype=float)
    n = len(given)
    if not n:
        raise ValueError("no values: a centre needs at least one")
    least, middle, most = (_pair_means(np.where(np.isnan(given), fill, given)) for fill in (-math.inf, 0.0, math.inf))
    tail_W = _rank_sum_tail(n)
    k = int(np.searchsorted(tail_W, 0.025, side="right"))  # the largest with P(W < k) <= 2.5 %
    low, high = (least[k - 1], most[-k]) if k else (-math.inf, math.inf)
    sums = [float((pairs > 0).sum() + (pairs == 0).sum() / 2) for pairs in (least, most)]
    largest = len(middle)
    # The p-value of the value of W that is closest to its centre.
    nearest = min(max(largest / 2, sums[0]), sums[1])
    p = min(1.0, 2 * float(tail_W[math.ceil(min(nearest, largest - nearest))]))
    return Interval(float(np.median(middle)), float(low), float(high), n), p


def _pair_means(values: np.ndarray) -> np.ndarray:
    """The means of all pairs, each value with itself included, in order; opposite infinities have the mean 0."""
    first, second = np.triu_indices(len(values))
    with np.errstate(invalid="ignore"):
        return np.sort(np.nan_to_num((values[first] + values[second]) / 2, nan=0.0, posinf=math.inf, neginf=-math.inf))


def _rank_sum_tail(n: int) -> np.ndarray:
    """P(W <= w) of Wilcoxon's W for w = 0, 1 ...: the sum of those of the ranks 1 to n that a fair coin picks."""
    ways_W = np.ones(1)
    for rank in range(1, n + 1):
        ways_W = (np.pad(ways_W, (0, rank)) + np.pad(ways_W, (rank, 0))) / 2
    return np.cumsum(ways_W)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, adjusted so that all of them together err in 5 % of cases (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted
