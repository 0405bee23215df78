import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_blocks_route_as_a_plain_reference_does_within_little_memory(root, tmp_path) -> None:
    command = [sys.executable, str(root / "benchmarks/bank_retrieval.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["results_equal"] is True
    assert figures["peak_mib"] <= 1024
    assert figures["similarity_error"] < 1e-5
    assert (figures["questions"], figures["intents"], figures["paths"]) == (4000, 250, 1000)
    # Both cases were compared: a path offered, and none.
    assert 0.1 < figures["offered_share"] < 0.9
    assert figures["time_ratio"] > 0
