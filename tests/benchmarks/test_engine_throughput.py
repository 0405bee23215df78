import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

_spec = importlib.util.find_spec("vllm")
HAS_VLLM = _spec is not None and _spec.origin is not None  # a folder of that name is not vLLM


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_the_throughput_benchmark_compares_equal_work_and_prints_both_ratios(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "benchmarks/engine_throughput.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    # The exit status also holds a ratio of times, which a busy machine may spoil; the texts it may not.
    assert done.stdout.strip(), done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["texts_equal"] is True
    assert figures["server_over_offline"] > 0
    assert figures["server_over_sequential"] > 0
