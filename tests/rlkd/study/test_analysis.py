import json
import math
from dataclasses import replace

import pytest

from rlkd.study.analysis import analyse, goal_of, plain, ratio_of, rollouts_to
from tests.helpers.study_runs import made_up

SEEDS = range(1, 9)


def arm(name: str, *points: float, shift: float = 0.0) -> list:
    """Runs of eight seeds about the points; `shift` moves the last one."""
    noise = [0.004 * (seed % 4 - 1.5) for seed in SEEDS]
    return [
        made_up(name, s, points[0], *(p + n for p in points[1:-1]), points[-1] + n + shift)
        for s, n in zip(SEEDS, noise, strict=True)
    ]


def test_an_arm_is_compared_with_the_control_of_the_same_seed_and_row() -> None:
    found = analyse(
        [*arm("plain", 0.2, 0.3, 0.4), *arm("better", 0.2, 0.35, 0.4, shift=0.05)],
        "plain",
        ["sampled_accuracy"],
        [("better", "plain")],
    )
    plain_arm, better = found.arms["plain"], found.arms["better"]
    assert plain_arm.sampled.over_control is None
    # The noise of a seed and of a row is the same in both arms, so nothing of it is left.
    over = better.sampled.over_control
    assert (over.value, over.low, over.high) == pytest.approx((0.05, 0.05, 0.05))
    (comparison,) = found.comparisons
    assert (comparison.figure, comparison.arm, comparison.base) == ("sampled_accuracy", "better", "plain")
    assert comparison.difference == over
    assert comparison.p == comparison.p_holm == pytest.approx(0, abs=1e-9)
    assert better.sampled.gain.value == pytest.approx(0.25)
    assert better.sampled.gain.low < 0.25 < better.sampled.gain.high
    assert better.greedy.over_control.value == pytest.approx(0.10)


def test_a_seed_without_a_run_of_the_control_is_left_out_of_the_comparison_only() -> None:
    runs = [*arm("plain", 0.2, 0.4), *arm("better", 0.2, 0.4, shift=0.1)]
    found = analyse(
        [run for run in runs if (run.arm, run.seed) != ("plain", 3)], "plain", ["accuracy"], [("better", "plain")]
    )
    assert found.arms["better"].seeds == list(SEEDS)
    assert found.arms["better"].greedy.over_control.n == 7 * 40
    assert found.arms["better"].greedy.after.n == 8 * 40


def test_the_comparisons_of_a_primary_figure_are_adjusted_together() -> None:
    runs = [*arm("plain", 0.2, 0.3, 0.4)]
    runs += [run for name in ("a", "b", "c") for run in arm(name, 0.2, 0.3, 0.4)]
    pairs = [("a", "plain"), ("a", "b"), ("c", "plain")]
    found = analyse(runs, "plain", ["sampled_accuracy", "rollouts_to_goal"], pairs)
    assert [(c.figure, c.arm, c.base) for c in found.comparisons] == [
        (figure, *pair) for figure in ("sampled_accuracy", "rollouts_to_goal") for pair in pairs
    ]
    assert all(c.p == c.p_holm == 1 for c in found.comparisons)
    # One of three that differs: its p-value counts three times.
    runs = [run for run in runs if run.arm != "c"] + arm("c", 0.2, 0.3, 0.4, shift=0.01)
    found = analyse(runs, "plain", ["sampled_accuracy", "rollouts_to_goal"], pairs)
    first = next(c for c in found.comparisons if (c.figure, c.arm) == ("sampled_accuracy", "c"))
    assert first.p_holm == pytest.approx(min(1, 3 * first.p))


def test_a_planned_comparison_without_its_runs_counts_in_the_adjustment() -> None:
    runs = [*arm("plain", 0.2, 0.3, 0.4), *arm("a", 0.2, 0.3, 0.4, shift=0.01)]
    first, lacking = analyse(runs, "plain", ["accuracy"], [("a", "plain"), ("b", "plain")]).comparisons
    assert (lacking.difference, lacking.p, lacking.p_holm) == (None, None, None)
    assert first.p_holm == pytest.approx(2 * first.p)


def test_the_goal_is_half_of_the_controls_way_and_there_is_none_without_a_way() -> None:
    control = {run.seed: run for run in arm("plain", 0.2, 0.25, 0.4)}
    assert goal_of(control) == pytest.approx(0.3)
    assert goal_of({run.seed: run for run in arm("plain", 0.2, 0.25, 0.2)}) is None
    assert goal_of({}) is None


@pytest.mark.parametrize(
    ("curve", "goal", "needed"),
    [
        ([(0, 0.2), (100, 0.4)], 0.3, 50),
        ([(0, 0.2), (100, 0.1), (200, 0.3)], 0.25, 175),
        ([(0, 0.2), (100, 0.4), (200, 0.1)], 0.4, 100),
        ([(0, 0.2), (100, 0.2)], 0.2, 0),
        ([(0, 0.2), (100, 0.25)], 0.3, None),
        ([], 0.3, None),
    ],
)
def test_rollouts_to_a_goal_are_linear_between_evaluations(curve, goal, needed) -> None:
    assert rollouts_to(curve, goal) == (needed if needed is None else pytest.approx(needed))


def test_an_arm_that_is_twice_as_fast_has_half_the_ratio() -> None:
    found = analyse(
        [*arm("plain", 0.2, 0.25, 0.3, 0.35, 0.4), *arm("fast", 0.2, 0.3, 0.4, 0.4, 0.4)],
        "plain",
        ["rollouts_to_goal"],
        [("fast", "plain")],
    )
    assert found.goal == pytest.approx(0.3)
    ratio = found.arms["fast"].rollouts.ratio
    assert ratio.value == pytest.approx(0.5, abs=0.03)
    assert ratio.low < 0.5 < ratio.high < 0.6
    (comparison,) = found.comparisons
    assert comparison.p == comparison.p_holm == 2 / 2**8  # all eight seeds on one side: the least that is possible


def test_a_run_that_never_reaches_the_goal_counts_as_slower_than_all_others() -> None:
    pairs = [(400.0, 800.0)] * 6 + [(500.0, 800.0)] * 2
    ratio, p = ratio_of(pairs)
    assert ratio.high < 0.7
    censored, censored_p = ratio_of([*pairs[:-1], (None, 800.0)])
    assert censored.value == pytest.approx(0.5)
    assert censored.high > ratio.high
    assert censored_p > p
    worst, _ = ratio_of([(None, 800.0)] * 8)
    assert (worst.value, worst.low, worst.high) == (math.inf, math.inf, math.inf)


def test_where_neither_run_reaches_the_goal_the_ratio_is_unknown_and_widens_both_bounds() -> None:
    pairs = [(400.0 + 10 * i, 800.0) for i in range(8)]
    ratio, p = ratio_of(pairs)
    unknown, unknown_p = ratio_of([*pairs, (None, None)])
    assert unknown.low <= ratio.low
    assert unknown.high >= ratio.high
    assert unknown_p > p
    nothing, nothing_p = ratio_of([(None, None)] * 8)
    assert (nothing.low, nothing.high, nothing_p) == (0, math.inf, 1)


def test_five_seeds_are_too_few_for_an_interval_of_the_ratio() -> None:
    ratio, p = ratio_of([(400.0, 800.0)] * 5)
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(0.5), 0, math.inf)
    assert p == 2 / 2**5
    assert ratio_of([]) == (None, None)


def test_rollouts_of_one_arm_are_not_divided_by_steps_of_another() -> None:
    steps = [replace(run, counts_steps=True) for run in arm("fast", 0.2, 0.4)]
    found = analyse([*arm("plain", 0.2, 0.4), *steps], "plain", ["rollouts_to_goal"], [("fast", "plain")])
    assert found.comparisons[0].difference is None
    assert found.arms["fast"].rollouts.ratio is None


def test_figures_become_json_without_infinities() -> None:
    found = analyse(
        [*arm("plain", 0.2, 0.4), *arm("same", 0.2, 0.2)], "plain", ["rollouts_to_goal"], [("fast", "plain")]
    )
    written = json.loads(json.dumps(plain(found), allow_nan=False))
    assert written["arms"]["same"]["rollouts"]["needed"] == {str(seed): None for seed in SEEDS}
    assert written["arms"]["same"]["rollouts"]["ratio"]["high"] is None
