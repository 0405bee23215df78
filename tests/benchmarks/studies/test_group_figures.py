"""Figures within groups, on rewards that are known beforehand."""

import math

import numpy as np
import pytest

from divided_rewards import USUAL, Condition
from group_figures import cancelling, figures, restoring_weight, share_beside
from rlkd.statistics import resample


def made(rewards, right, group, steps=None, rest=None):
    found = Condition("made", right=right, group=group, steps=steps or [3] * len(right))
    found.full = {"score": rewards}
    found.rest, found.twice = {"score": rest or rewards}, {"score": [2 * value for value in rewards]}
    return found


def measured(condition, against=None, n=2):
    return figures(condition, against or condition, n, resample(n, 50, 0))["score"]


RIGHT, GROUP = [True, False, False, True, True, False], [0, 0, 0, 1, 1, 1]


def test_a_reward_that_knows_the_right_ones_is_told_from_one_that_prefers_the_wrong_ones() -> None:
    good = made([1.0, 0.0, 0.5, 0.7, 0.7, 0.0], RIGHT, GROUP)
    bad = made([0.0, 1.0, 1.0, 0.0, 0.0, 0.3], RIGHT, GROUP, rest=[0.5] * 6)
    assert measured(good)["auroc"][0] == 1
    found = measured(bad, good)
    assert (found["auroc"][0], found["auroc_rest"][0]) == (0, 0.5)
    assert found["agreement"][0] == pytest.approx((-2 / 3 - 1) / 2)  # one of three pairs of the first group is a tie
    assert found["repeated"] == pytest.approx(1)


def test_groups_without_any_difference_are_silent() -> None:
    found = measured(made([0.4, 0.4, 0.4, 1.0, 0.0, 0.0], RIGHT, GROUP))
    assert found["silent"][0] == 0.5
    assert found["silent_wrong"][0] == 1  # only the first group has two wrong solutions
    assert found["std"][0] == pytest.approx(np.std([1, 0, 0]) / 2)


def test_verbosity_compares_only_solutions_that_are_both_right_or_both_wrong() -> None:
    found = measured(made([0.0, 0.1, 0.2, 0.5, 0.9, 0.0], RIGHT, GROUP, steps=[9, 2, 3, 2, 4, 9]))
    assert found["verbosity"][0] == 1


def test_the_restoring_weight_undoes_a_divisor() -> None:
    accuracy, structure = np.array([0.4, 0.5, 0.0]), np.array([0.3, 0.1, 0.2])
    share = np.nanmean(share_beside(structure, accuracy))
    assert share == pytest.approx((0.3 / 0.7 + 0.1 / 0.6) / 2)
    assert restoring_weight(structure / 8, accuracy, share) == pytest.approx(8)
    assert restoring_weight(0 * structure, accuracy, share) == math.inf


def test_a_divisor_of_the_group_cancels_alone_and_not_beside_accuracy() -> None:
    condition = made([0.0] * 6, RIGHT, GROUP)
    undivided = [3.0, 1.0, 0.0, 2.0, 1.0, 1.0]
    for rule in USUAL:
        condition.full[f"{rule} / nothing"] = undivided
        condition.full[f"{rule} / teacher"] = [value / 30 for value in undivided]
    found = cancelling(condition, 2)
    assert found["ordered, alone"] < 0.01
    assert found["ordered, beside accuracy"] > 0.1
