import json
import subprocess
import sys

from rlkd.embedders import open_embedder
from rlkd.rationales.bank.thresholds import known_thresholds


def run(root, *arguments):
    command = [sys.executable, root / "benchmarks/bank_calibration.py", "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_n_grams_are_calibrated_and_offer_most_problems_a_path(root):
    assert known_thresholds(open_embedder("hashed-ngrams")) is None
    done = run(root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["hashed-ngrams"]
    assert found["own"] == sorted(found["own"])
    assert 0 < found["route"] < 0.35
    assert found["eps"] > 0.25
    assert 0.5 <= found["offered"] <= 1
    assert found["joined"] >= 3


def test_an_embedder_that_is_none_is_named(root):
    done = run(root, "--embedder", "no-such")
    assert done.returncode == 1
    assert "no-such" in done.stderr
    assert "Traceback" not in done.stderr
