import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_structure_reward_needs_fewer_requests_than_the_authors_scheme_for_the_same_scores(root, tmp_path) -> None:
    command = [sys.executable, root / "benchmarks/gsrm_calls.py", "--quick"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=110)
    # The exit status also holds the time, which a busy machine may spoil; counts and scores it may not.
    assert done.stdout.strip(), done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["scores_equal"] is True
    assert figures["structure_call_ratio"] == (8 + 1) / (2 * 8)
    assert figures["structure_call_ratio_next_epoch"] == 1 / 2
    assert figures["wall_ratio"] > 0
    assert figures["repeat_epoch_judge_calls"] == 0
