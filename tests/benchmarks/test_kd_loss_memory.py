"""The quick form of `benchmarks/kd_loss_memory.py`; times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_our_loss_has_the_exact_gradients_and_takes_less_memory_than_both_others(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "kd_loss_memory.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["gradient_error"] < 1e-5
    # Even here, where all logits are smaller than a tile may be.
    assert 0 < figures["peak_over_dense"] < 1
    assert 0 < figures["peak_over_trl"] < 1
    assert figures["time_over_dense"] > 0
