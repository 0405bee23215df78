import json
import os
import subprocess
import sys

import pytest

from rlkd.doctor.cli import main
from tests.helpers import ROOT
from tests.helpers.ports import free_port


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))


def test_each_topic_has_a_line_and_nothing_is_written(capsys, tmp_path):
    status = main([])
    shown = capsys.readouterr().out
    for topic in ("machine", "versions", "devices", "disk", "hub", "sandbox"):
        assert f"\n{topic}\n" in f"\n{shown}"
    assert status == int(" problem " in shown)
    assert list(tmp_path.iterdir()) == []


def test_json_has_the_same_findings_and_a_problem_is_the_exit_status(capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["--json", "--server", url]) == 1
    found = json.loads(capsys.readouterr().out)
    [server] = [finding for finding in found if finding["topic"] == "servers"]
    assert server["level"] == "problem"
    assert url in server["text"]
    assert server["way_out"]


def test_no_model_library_is_imported_on_a_machine_without_a_gpu():
    code = (
        "import sys; from rlkd.doctor.cli import examine; examine()\n"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    )
    environment = os.environ | {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if "GPU" in done.stdout:
        pytest.skip("this machine has a GPU")
    assert done.stdout == "[]\n"
