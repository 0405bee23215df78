"""What rewards say within groups of solutions: see `long_traces.py` for the figures.

Suffixes of arrays: C solutions, Q groups, P pairs of solutions of one group, D bootstrap draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from divided_rewards import USUAL, Condition
from rlkd.statistics import Interval, bootstrap_mean


class Pairs:
    """All pairs (P) of solutions of one group."""

    def __init__(self, condition: Condition, n_groups: int):
        self.n_groups = n_groups
        self.group_C = np.array(condition.group)
        self.right_C = np.array(condition.right)
        self.steps_C = np.array(condition.steps)
        members = [np.flatnonzero(self.group_C == group) for group in range(n_groups)]
        pairs = [(i, j) for own in members for place, i in enumerate(own) for j in own[place + 1 :]]
        self.first_P, self.second_P = np.array(pairs, dtype=int).reshape(-1, 2).T
        self.group_P = self.group_C[self.first_P]

    def sign(self, values_C: np.ndarray) -> np.ndarray:
        """Which of two solutions has more: 1 the first, -1 the second, 0 neither."""
        return np.sign(np.round(values_C[self.first_P] - values_C[self.second_P], 9))

    def agreement(self, one_P: np.ndarray, other_P: np.ndarray, where_P: np.ndarray | None = None) -> np.ndarray:
        """(agreeing - opposed) / pairs that `other_P` tells apart, of each group (Q,); NaN without such a pair."""
        counted_P = other_P != 0 if where_P is None else (other_P != 0) & where_P
        n_Q = np.bincount(self.group_P, counted_P, self.n_groups)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.group_P, one_P * other_P * counted_P, self.n_groups) / n_Q

    def deviation(self, values_C: np.ndarray) -> np.ndarray:
        """The standard deviation within each group (Q,); NaN without two solutions."""
        return _std(self.group_C, values_C, self.n_groups)


def _std(group_C: np.ndarray, values_C: np.ndarray, n: int) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        count_Q = np.bincount(group_C, minlength=n)
        mean_Q = np.bincount(group_C, values_C, n) / count_Q
        variance_Q = np.bincount(group_C, (values_C - mean_Q[group_C]) ** 2, n) / count_Q
    deviation_Q = np.sqrt(variance_Q)
    deviation_Q[deviation_Q < 1e-9] = 0.0
    return np.where(count_Q > 1, deviation_Q, np.nan)


def share_beside(structure_Q: np.ndarray, accuracy_Q: np.ndarray, weight: float = 1.0) -> np.ndarray:
    """The structure reward's part of the deviation, in groups in which accuracy has one; else NaN."""
    both_Q = accuracy_Q + weight * structure_Q
    return np.where(accuracy_Q > 0, weight * structure_Q / np.where(both_Q > 0, both_Q, 1.0), np.nan)


def restoring_weight(structure_Q: np.ndarray, accuracy_Q: np.ndarray, share: float) -> float:
    """The weight at which the mean share is the one given; infinite where none is large enough."""
    low, high = 1e-3, 1e4
    if np.nanmean(share_beside(structure_Q, accuracy_Q, high)) < share:
        return math.inf
    for _ in range(60):
        middle = math.sqrt(low * high)
        enough = np.nanmean(share_beside(structure_Q, accuracy_Q, middle)) >= share
        low, high = (low, middle) if enough else (middle, high)
    return high


def advantages(rewards_C: np.ndarray, group_C: np.ndarray, n: int) -> np.ndarray:
    """GRPO's, divided by the group's deviation as in TRL, which divides by one solution less and adds 1e-4."""
    count_Q = np.bincount(group_C, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_Q = np.bincount(group_C, rewards_C, n) / count_Q
        deviation_Q = _std(group_C, rewards_C, n) * np.sqrt(count_Q / (count_Q - 1))
    return (rewards_C - mean_Q[group_C]) / (deviation_Q[group_C] + 1e-4)


def figures(condition: Condition, against: Condition, n_groups: int, counts_DQ: np.ndarray) -> dict[str, Any]:
    """All figures of a condition, by score; `against` has the same solutions under the short trace."""
    pairs = Pairs(condition, n_groups)
    right_P = pairs.sign(pairs.right_C.astype(float))
    length_P = pairs.sign(pairs.steps_C.astype(float))
    accuracy_Q = pairs.deviation(pairs.right_C.astype(float))
    wrong_C = ~pairs.right_C
    found: dict[str, Any] = {}
    rest: dict[str, np.ndarray] = {}
    for name, values in condition.full.items():
        value_C, short_C, rest_C = (np.array(v) for v in (values, against.full[name], condition.rest[name]))
        value_P, std_Q = pairs.sign(value_C), pairs.deviation(value_C)
        wrong_Q = _std(pairs.group_C[wrong_C], value_C[wrong_C], n_groups)
        by_group = {
            "auroc": (1 + pairs.agreement(value_P, right_P)) / 2,
            "auroc_rest": (1 + pairs.agreement(pairs.sign(rest_C), right_P)) / 2,
            "std": std_Q,
            "silent": np.where(np.isnan(std_Q), np.nan, std_Q == 0),
            "silent_wrong": np.where(np.isnan(wrong_Q), np.nan, wrong_Q == 0),
            "agreement": pairs.agreement(value_P, pairs.sign(short_C)),
            "verbosity": pairs.agreement(value_P, length_P, right_P == 0),
            "share": share_beside(std_Q, accuracy_Q),
        }
        rest[name] = by_group["auroc_rest"]
        short_share = np.nanmean(share_beside(pairs.deviation(short_C), accuracy_Q))
        mean = float(value_C.mean())
        found[name] = {key: _plain(bootstrap_mean(values_Q, counts_DQ)) for key, values_Q in by_group.items()} | {
            "mean": mean,
            "repeated": float(np.mean(condition.twice[name])) / mean - 1 if mean else math.nan,
            "weight": restoring_weight(std_Q, accuracy_Q, float(short_share)),
        }
    for name in found:
        whole, part, _ = name.partition(", ")
        if part:
            found[name]["gain"] = _plain(bootstrap_mean(rest[name] - rest[whole], counts_DQ))
    return found


def _plain(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def cancelling(condition: Condition, n_groups: int) -> dict[str, float]:
    """How much the divisor `teacher` changes advantages (mean of the absolute change), alone and beside accuracy."""
    group_C = np.array(condition.group)
    right_C = np.array(condition.right, dtype=float)
    found = {}
    for rule in USUAL:
        undivided_C, divided_C = (np.array(condition.full[f"{rule} / {name}"]) for name in ("nothing", "teacher"))
        for name, base_C in (("alone", 0 * right_C), ("beside accuracy", right_C)):
            one, other = (advantages(base_C + each, group_C, n_groups) for each in (undivided_C, divided_C))
            found[f"{rule}, {name}"] = float(np.abs(one - other).mean())
    return found
