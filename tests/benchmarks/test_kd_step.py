"""The quick form of `benchmarks/kd_step.py`; its times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_with_weights_of_1_the_trainer_ends_with_trls_parameters(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "kd_step.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["parameter_gap"] < 1e-3
    assert figures["counts"] is False  # so few rounds say nothing about time
    assert figures["step_ratio"] > 0
    assert figures["stock_ratio"] > 0
