"""A laboratory study with as many seeds as the time allows, several runs side by side on the one device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.day import GpuDay
from rlkd.process import cores

STUDY = Path(__file__).parent / "rlkd-lab-seeds.yaml"
# A run has a process with a model of a million parameters; each needs a core for what is no kernel.
MOST_AT_ONCE = 12
ANALYSIS_S = 25.0
CODE = "import sys; from rlkd.study.cli import main; sys.exit(main(sys.argv[1:]))"


def lab(day: GpuDay) -> Iterator[dict[str, Any]]:
    """Run the study until its time is over, then read the runs that are done; saves its `results.json` beside ours.

    Raises `RuntimeError` where no run was done in time.
    """
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-lab-") as name:
        yield from study(day, Path(name))


def study(day: GpuDay, folder: Path) -> Iterator[dict[str, Any]]:
    """The same with the runs in `folder`."""
    deadline = time.monotonic() + day.limit_s - ANALYSIS_S
    at_once = day.pick(max(1, min(MOST_AT_ONCE, cores())), 1)
    words = [sys.executable, "-c", CODE, str(STUDY), "--out", str(folder)]
    # One seed for the smoke test.
    size = day.pick(["--at_once", str(at_once)], ["--smoke", "--seeds", "101", "--at_once", "1"])
    device = day.pick(["--bf16", "false"], ["--use_cpu", "true"])
    started = time.monotonic()
    yield {"study": STUDY.stem, "at_once": at_once, "runs": 0}
    process = subprocess.Popen([*words, *size, "--", *device], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
            done = finished(folder)
            yield {"runs": done, "runs_per_minute": round(60 * done / (time.monotonic() - started), 2)}
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if not finished(folder):
        logs = sorted(folder.glob("*/log.txt"))
        tail = logs[0].read_text(errors="replace")[-300:] if logs else ""
        raise RuntimeError(f"no run was done in {day.limit_s - ANALYSIS_S:.0f} s; the first log ends with: {tail}")
    subprocess.run([*words, "--analyse"], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((folder / "results.json").read_text())
    shutil.copy(folder / "results.json", day.out / f"{STUDY.stem}.json")
    yield {
        "runs": finished(folder),
        "seeds": {arm: len(figures["seeds"]) for arm, figures in results["arms"].items()},
        "minutes_per_run": {arm: figures["minutes"] for arm, figures in results["arms"].items()},
        "comparisons": results["comparisons"],
    }


def finished(folder: Path) -> int:
    """The runs that are done."""
    return len(list(folder.glob("*/done")))
