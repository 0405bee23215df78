import json

import pytest

from rlkd.report import run_curve
from rlkd.report.run_curve import draw_run
from tests.helpers.study_runs import write_run


def test_a_run_has_a_picture_of_its_held_out_accuracy_and_its_training(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path, [0.2, 0.4, 0.5])
    assert draw_run(tmp_path) == [tmp_path / "curve.svg", tmp_path / "curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    whole = len((tmp_path / "curve.svg").read_bytes())
    # A run of distillation without an evaluation: its loss alone.
    (tmp_path / "eval.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / i}) + "\n" for i in (1, 2, 3)))
    assert draw_run(tmp_path)
    assert len((tmp_path / "curve.svg").read_bytes()) < whole


def test_a_run_without_two_points_has_no_picture(tmp_path) -> None:
    assert draw_run(tmp_path) == []
    write_run(tmp_path, [0.2])
    assert draw_run(tmp_path) == []


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run_curve, "can_plot", lambda: False)
    write_run(tmp_path, [0.2, 0.4])
    assert draw_run(tmp_path) == []
    assert not list(tmp_path.glob("curve.*"))
