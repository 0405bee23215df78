"""`benchmarks/gpu_check.py` at toy size on the CPU; its times are not looked at."""

import json
import sys

import pytest

from tests.helpers.scripts import run_script


@pytest.mark.slow
def test_distillation_steps_end_with_the_same_first_loss_by_both_kernels(root, tmp_path) -> None:
    command = [sys.executable, root / "benchmarks/gpu_check.py", "--cpu-smoke", "--only", "kd"]
    done = run_script(command, tmp_path, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:]
    sections = json.loads(done.stdout.splitlines()[-1])["sections"]
    assert set(sections) == {"device", "kd"}
    found = sections["kd"]
    assert found["status"] == "ok"
    assert found["loss_difference"] < 1e-4
    for kernel in ("chunked", "trl"):
        assert found[kernel]["first_loss"] > 0
        assert found[kernel]["weighted_steps"] > 0
        assert found[kernel]["traces_step_s"] > 0
        assert found[kernel]["rollouts_step_s"] > 0
