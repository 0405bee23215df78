import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_cache_takes_few_bytes_and_gives_back_what_was_coded(root, tmp_path) -> None:
    command = [sys.executable, str(root / "benchmarks/teacher_cache.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["bits_equal"] is True
    assert 268 <= figures["bytes_per_token"] <= 400
    assert 1e-6 < figures["largest_error"] < 1e-3
    assert figures["forward_kl"] > 0.1
    assert max(figures["forward_kl_error"]) < 1e-3
    assert figures["lookup_over_forward"] > 0
