import sys

import pytest

from rlkd.embedders import open_embedder
from rlkd.rationales.bank.thresholds import known_thresholds
from tests.helpers.scripts import quick_figures, run_script


@pytest.mark.slow
def test_the_n_grams_are_calibrated_and_offer_most_problems_a_path(tmp_path):
    assert known_thresholds(open_embedder("hashed-ngrams")) is None
    found = quick_figures("bank_calibration.py", tmp_path)["hashed-ngrams"]
    assert found["own"] == sorted(found["own"])
    assert 0 < found["route"] < 0.35
    assert found["eps"] > 0.25
    assert 0.5 <= found["offered"] <= 1
    assert found["joined"] >= 3


def test_an_unknown_embedder_is_named(root, tmp_path):
    command = [sys.executable, root / "benchmarks/bank_calibration.py", "--quick", "--embedder", "no-such"]
    done = run_script(command, tmp_path)
    assert done.returncode == 1
    assert "no-such" in done.stderr
    assert "Traceback" not in done.stderr
