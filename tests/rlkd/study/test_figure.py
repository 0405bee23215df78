import numpy as np
import pytest

from rlkd.study.analysis import analyse
from rlkd.study.definition import Stage, Study
from rlkd.study.figure import band, common_points, draw
from tests.helpers.study_runs import made_up


def test_curves_of_other_lengths_share_the_points_that_all_cover() -> None:
    x, values = common_points([[(0, 0.0), (10, 1.0), (20, 2.0)], [(0, 1.0), (15, 1.0)]])
    assert list(x) == [0, 10, 15]
    assert values.tolist() == [[0.0, 1.0, 1.5], [1.0, 1.0, 1.0]]


def test_the_band_is_the_interval_of_the_mean_and_at_most_the_range() -> None:
    values = np.linspace(0, 1, 9)[:, None]
    low, high = band(values)
    half = 2.306 * values.std(ddof=1) / 3
    assert (low[0], high[0]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)
    assert [bound.tolist() for bound in band(values[:2])] == [[0.0], [0.125]]


def test_a_study_with_many_arms_is_drawn_and_one_without_a_run_is_not(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    names = ["plain", *(f"arm-{i}" for i in range(12))]
    study = Study(
        "s",
        "t",
        "q",
        {name: [Stage("rlkd", "rlkd", None, {}, {})] for name in names},
        "plain",
        [1, 2],
        ["accuracy"],
        [],
    )
    runs = [made_up(name, seed, 0.2, 0.3 + i / 50 + seed / 100) for i, name in enumerate(names) for seed in (1, 2)]
    drawn = draw(study, runs, analyse(runs, "plain", study.primary, []), tmp_path)
    assert drawn == [tmp_path / "figure.svg", tmp_path / "figure.png"]
    assert all(20_000 < path.stat().st_size < 300_000 for path in drawn)
    assert draw(study, [], analyse([], "plain", study.primary, []), tmp_path) == []
