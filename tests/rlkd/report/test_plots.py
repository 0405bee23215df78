import subprocess
import sys

import pytest

from rlkd.report.plots import as_percent, new_figure, save, set_title


def test_a_figure_is_two_files_that_are_the_same_every_time(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        figure, (left, right) = new_figure(6, 3, (2.0, 1.0))
        left.plot([0, 1, 2], [0.1, 0.3, 0.2])
        as_percent(left.yaxis)
        set_title(right, "A title")
        assert save(figure, tmp_path / name) == [tmp_path / f"{name}.svg", tmp_path / f"{name}.png"]
    for kind in ("svg", "png"):
        one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert 2_000 < len(one) < 80_000


def test_matplotlib_is_loaded_only_for_a_figure() -> None:
    code = "import sys, rlkd.report.run_curve, rlkd.study.figure; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
