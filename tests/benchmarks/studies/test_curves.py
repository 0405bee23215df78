import numpy as np
import pytest

from benchmarks.studies.curves import Curve, Panel, draw, fitted_line


def test_a_line_is_fitted_exactly_wherever_its_steps_stand() -> None:
    steps = [1, 2, 4, 8, 16, 32, 33, 34, 50, 60, 61, 70]
    assert fitted_line([5 - 0.01 * step for step in steps], steps) == pytest.approx((4.99, 4.3))


def test_a_figure_is_light_and_the_same_every_time(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    steps, values = list(range(1, 61)), list(np.random.default_rng(0).standard_normal(60))
    panels = [
        Panel("scattered", [Curve(name, steps, values, line=(0.0, 1.0)) for name in ("a", "b")], {"a": ": +1"}),
        Panel("measured", [Curve(name, [0, 20], [0.1, 0.2], low=[0.0, 0.1], high=[0.2, 0.4]) for name in ("a", "b")]),
        Panel("plain", [Curve("a", steps, values)]),
    ]
    for name in ("one.png", "two.png"):
        draw(panels, tmp_path / "deep" / name, "A title")
    one = (tmp_path / "deep" / "one.png").read_bytes()
    assert one == (tmp_path / "deep" / "two.png").read_bytes()
    assert one.startswith(b"\x89PNG")
    assert 5_000 < len(one) < 120_000
