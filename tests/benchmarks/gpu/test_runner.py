import json
import math
import signal
import subprocess
import sys
import time

import psutil
import pytest

from gpu import runner
from gpu.parts import GpuPart
from gpu.runner import DayRun
from rlkd.process import is_running

STUBS = """
import os, subprocess, sys, time

def good(day):
    yield {"size": "smoke" if day.smoke else "full"}

def wrong(day):
    yield {"measured": 1}
    raise ValueError("no such thing")

def crash(day):
    yield {"measured": 2}
    os._exit(3)

def hang(day):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield {"measured": 3, "child": child.pid}
    time.sleep(100)
"""


@pytest.fixture
def stubs(tmp_path, monkeypatch) -> dict[str, GpuPart]:
    """Parts that end in each way, in place of the real ones."""
    (tmp_path / "stub_parts.py").write_text(STUBS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = {name: GpuPart(f"stub_parts:{name}", 60) for name in ("wrong", "crash", "hang", "good")}
    parts |= {"gpu_only": GpuPart("stub_parts:good", 60, on_cpu=False)}
    parts |= {"not_there": GpuPart("stub_parts:good", 60, package="no_such_package")}
    monkeypatch.setattr(runner, "PARTS", parts)
    monkeypatch.setattr(runner, "SMOKE_LIMIT_S", 3.0)
    return parts


@pytest.mark.slow
def test_a_part_that_fails_crashes_or_hangs_keeps_its_figures_and_the_others_run(stubs, tmp_path) -> None:
    status = DayRun(tmp_path / "out", smoke=True, budget_s=math.inf).run(list(stubs))
    results = json.loads((tmp_path / "out" / "gpu_day.json").read_text())
    parts = results["parts"]
    assert status == 1
    assert parts["wrong"]["measured"] == 1
    assert parts["wrong"]["error"] == "ValueError: no such thing"
    assert "ValueError: no such thing" in parts["wrong"]["log"]
    assert parts["crash"]["measured"] == 2
    assert parts["crash"]["error"] == "its process ended with status 3"
    assert parts["hang"]["measured"] == 3
    assert parts["hang"]["error"] == "not finished after 3 s"
    assert not psutil.pid_exists(child := parts["hang"]["child"]) or not is_running(psutil.Process(child))
    assert parts["good"] == {"status": "ok", "size": "smoke", "seconds": parts["good"]["seconds"]}
    assert parts["gpu_only"]["why"] == "needs a GPU"
    assert parts["not_there"]["why"] == "not installed: no_such_package"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu_day.json", "log.txt"]


def test_parts_that_no_longer_fit_are_listed(stubs, tmp_path) -> None:
    assert DayRun(tmp_path / "out", smoke=True, budget_s=5).run(["good", "wrong"]) == 0
    parts = json.loads((tmp_path / "out" / "gpu_day.json").read_text())["parts"]
    assert [figures["status"] for figures in parts.values()] == ["skipped", "skipped"]
    assert parts["good"]["why"] == "no time left of 5 s; run it alone: --only good"


def test_what_was_measured_survives_the_end_of_the_whole_and_nothing_keeps_running(stubs, root, tmp_path) -> None:
    out, script = tmp_path / "out", tmp_path / "with_stubs.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(root / 'benchmarks')!r})\n"
        "from gpu.parts import PARTS, GpuPart\n"
        "PARTS.clear()\n"
        "PARTS.update({name: GpuPart(f'stub_parts:{name}', 60) for name in ('good', 'hang')})\n"
        "import gpu_day\n"
        f"sys.exit(gpu_day.main(['run', '--smoke', '--out', {str(out)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (saved := out / "running.json").exists() or "child" not in saved.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert len(below) == 2
    psutil.wait_procs(below, timeout=10)
    assert not [one for one in below if is_running(one)]
    assert json.loads((out / "gpu_day.json").read_text())["parts"]["good"]["status"] == "ok"
    assert json.loads((out / "running.json").read_text())["measured"] == 3
