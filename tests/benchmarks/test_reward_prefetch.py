"""The quick form of `benchmarks/reward_prefetch.py`; its times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_all_arms_end_with_the_same_parameters(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "reward_prefetch.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["parameters_equal"] is True
    assert figures["delay_s"] > 0
