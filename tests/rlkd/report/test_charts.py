import math

import numpy as np
import pytest

from rlkd.report.charts import POINTS, Chart, charts_of, moving_mean
from rlkd.report.records import read_run
from tests.helpers.run_folder import evaluation, metrics, weighted_trace, write_run


def charts(*folders) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts_of([read_run(folder, most_rollouts=1000) for folder in folders])}


def test_a_chart_has_the_curves_that_the_run_logs(tmp_path):
    found = charts(write_run(tmp_path / "run"))
    assert [curve.name for curve in found["Reward"].curves] == ["all, weighted", "accuracy"]
    assert found["Reward"].curves[1].raw == pytest.approx([step / 100 for step in range(1, 11)])
    assert "KL" not in found
    assert "Weights of steps" not in found


def test_a_metric_that_no_chart_names_gets_its_own(tmp_path):
    found = charts(write_run(tmp_path / "run", log=[metrics(1, my_metric=3, text="no number", epoch=0.1)]))
    assert found["my_metric"].section == found["rewards/accuracy/words"].section == "Other metrics"
    assert not {"text", "step", "epoch"} & found.keys()


def test_missing_rewards_are_shown_only_where_some_are_missing(tmp_path):
    assert "Missing rewards" not in charts(write_run(tmp_path / "without"))
    log = [metrics(step, **{"rewards/accuracy/failed": 0.25 * step}) for step in (1, 2)]
    (curve,) = charts(write_run(tmp_path / "with", log=log))["Missing rewards"].curves
    assert (curve.name, curve.raw) == ("accuracy failed", [0.25, 0.5])


def test_a_step_without_a_value_has_no_point(tmp_path):
    log = [metrics(1, entropy=None), metrics(2, entropy=0.5), metrics(3)]
    (curve,) = charts(write_run(tmp_path / "run", log=log))["Entropy"].curves
    assert curve.x == [2, 3]


def test_two_records_of_a_step_are_one_point_of_each_metric(tmp_path):
    log = [metrics(1), metrics(2, entropy=0.5), {"step": 2, "eval_loss": 3.0}]
    found = charts(write_run(tmp_path / "run", log=log))
    assert [curve.x for curve in found["Entropy"].curves] == [[1, 2]]
    assert [curve.x for curve in found["eval_loss"].curves] == [[2]]


def test_shares_stay_within_their_bounds(tmp_path):
    log = [metrics(step, frac_reward_zero_std=float(step % 2)) for step in range(1, 31)]
    (curve,) = charts(write_run(tmp_path / "run", log=log))["Zero-std groups"].curves
    assert min(curve.low) == 0.0
    assert max(curve.high) <= 1.0


def test_a_long_run_is_drawn_by_means_of_equal_stretches(tmp_path):
    log = [metrics(step, entropy=float(step)) for step in range(1, 4 * POINTS + 1)]
    (curve,) = charts(write_run(tmp_path / "run", log=log, rollouts=[]))["Entropy"].curves
    assert len(curve.x) == POINTS
    assert (curve.x[0], curve.raw[0]) == (2, 2.5)
    assert curve.raw[-1] == pytest.approx(4 * POINTS - 1.5)


def test_the_mean_around_a_value_has_students_interval():
    values = np.random.default_rng(0).normal(size=200)
    mean, low, high = moving_mean(values)
    window = values[100 - 12 : 100 + 13]
    half = 2.0639 * window.std(ddof=1) / math.sqrt(25)  # Student's quantile for 24 degrees of freedom
    assert mean[100] == pytest.approx(window.mean())
    assert high[100] - low[100] == pytest.approx(2 * half, rel=1e-4)
    assert mean[0] == pytest.approx(values[:25].mean())
    assert mean[-1] == pytest.approx(values[-25:].mean())


def test_the_interval_covers_the_true_mean_in_95_percent_of_cases():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        _, low, high = moving_mean(generator.normal(3.0, 1.0, size=9))
        covered += low[4] <= 3.0 <= high[4]
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_few_values_have_no_interval(tmp_path):
    mean, low, _ = moving_mean(np.array([1.0, 5.0]))
    assert mean.tolist() == [1.0, 5.0]
    assert np.isnan(low).all()
    (curve,) = charts(write_run(tmp_path / "run", log=[metrics(1), metrics(2)]))["Entropy"].curves
    assert curve.low == [None, None]


def test_held_out_accuracy_has_the_recorded_intervals(tmp_path):
    evaluations = [evaluation(0, [0.0, 1.0]), evaluation(5, [1.0, 1.0], sampled=[0.5, 1.0])]
    greedy, sampled = charts(write_run(tmp_path / "run", evaluations=evaluations))["Held-out accuracy"].curves
    assert (greedy.x, greedy.y, greedy.low, greedy.high) == ([0, 5], [0.5, 1.0], [0.1, 0.1], [0.9, 0.9])
    assert (sampled.name, sampled.x, sampled.y) == ("sampled", [5], [0.75])


def test_weights_by_position_are_means_of_first_to_last_steps(tmp_path):
    traces = [weighted_trace(1, [1.0, 0.8, 0.2]), weighted_trace(2, [2.0, 1.0, 0.4]), weighted_trace(3, [9.0])]
    traces.append(weighted_trace(4, [1.0, 1.0], policy="teacher"))
    student, teacher = charts(write_run(tmp_path / "run", rollouts=traces))["Weights by position"].curves
    assert student.x == [0.1, 0.5, 0.9]
    assert student.y == pytest.approx([1.5, 0.9, 0.3])
    assert student.low[0] < 1.5 < student.high[0]
    assert (teacher.x, teacher.y) == ([0.1, 0.9], [1.0, 1.0])


def test_two_runs_share_their_charts(tmp_path):
    found = charts(write_run(tmp_path / "one"), write_run(tmp_path / "two", log=[metrics(1, kl=0.1)]))
    assert [curve.run for curve in found["Entropy"].curves] == [0, 1]
    assert [curve.run for curve in found["KL"].curves] == [1]
