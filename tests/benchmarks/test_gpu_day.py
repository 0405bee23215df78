"""`benchmarks/gpu_day.py` at toy size on the CPU; its times are not looked at."""

import json
import sys

import pytest

from tests.helpers.scripts import run_script


def smoke(root, tmp_path, *parts: str) -> dict:
    command = [sys.executable, root / "benchmarks/gpu_day.py", "run", "--smoke", "--out", tmp_path / "out"]
    done = run_script([*command, "--only", *parts], tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["parts"] == json.loads((tmp_path / "out/gpu_day.json").read_text())["parts"]
    assert set(results["parts"]) == set(parts)
    return results["parts"]


@pytest.mark.slow
def test_the_divergence_is_compared_with_trls_and_the_exact_one(root, tmp_path) -> None:
    found = smoke(root, tmp_path, "device", "divergence")["divergence"]
    for head in ("head_frozen", "head_trained"):
        assert set(found[head]) == {"products", "ours", "trl", "dense", "liger"}
        assert found[head]["ours"]["gradient_error"] < 1e-5
        assert found[head]["trl"]["gradient_error"] < 1e-4


@pytest.mark.nightly
def test_trainers_equal_trls_and_measured_steps_have_estimates(root, tmp_path) -> None:
    found = smoke(root, tmp_path, "equality", "rlkd_0.5b", "kd", "attention")
    assert found["equality"]["rlkd"]["parameter_gap"] < 1e-5
    assert found["equality"]["kd"]["parameter_gap"] < 1e-3
    assert found["rlkd_0.5b"]["estimated_gb"] > 0
    assert found["kd"]["loss_difference"] < 1e-4
    for kernel in ("chunked", "trl"):
        assert found["kd"][kernel]["first_loss"] > 0
        assert found["kd"][kernel]["weighted_steps"] > 0
    assert found["attention"]["sdpa"]["mean_difference"] < 1e-3


@pytest.mark.nightly
def test_the_laboratory_compares_runs_that_ended_in_time(root, tmp_path) -> None:
    found = smoke(root, tmp_path, "lab")["lab"]
    assert found["runs"] == 2
    assert found["seeds"] == {"accuracy": 1, "ordered": 1}
    assert (tmp_path / "out/rlkd-lab-seeds.json").exists()
