import sys

import pytest

from rlkd import cli
from rlkd.errors import UsageError
from rlkd.report.cli import run_names
from tests.helpers.run_folder import write_run


def test_the_report_is_written_next_to_the_run(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "report.html" in (said := capsys.readouterr().out)
    assert "40 rollouts" in said


def test_the_same_run_gives_the_same_file(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("a.html", "b.html"):
        assert cli.main(["report", str(run), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is no folder; give the output_dir of a run"),
        (["run", "missing"], "missing is no folder"),
        (["run", "run"], "are the same run; give two to compare"),
        (["run", "--out", "."], "is a folder; give the name of a file"),
        (["run", "--out", "run/metrics.jsonl/report.html"], "cannot be written ("),
    ],
)
def test_what_cannot_be_reported_is_refused_with_a_way_out(tmp_path, monkeypatch, capsys, arguments, message):
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_plotly_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert cli.main(["report", str(write_run(tmp_path / "run"))]) == 1
    assert 'Run  pip install "rlkd[report]"' in capsys.readouterr().err


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    assert run_names([tmp_path / "one", tmp_path / "two"]) == ["one", "two"]
    assert run_names([tmp_path / "one" / "run", tmp_path / "two" / "run"]) == ["one/run", "two/run"]
    with pytest.raises(UsageError, match="the same run"):
        run_names([tmp_path, tmp_path])
