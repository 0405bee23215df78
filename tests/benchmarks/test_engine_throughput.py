import importlib.util
from pathlib import Path

import pytest

from tests.helpers.scripts import quick_figures

_spec = importlib.util.find_spec("vllm")
HAS_VLLM = _spec is not None and _spec.origin is not None  # a folder of that name is not vLLM


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_the_throughput_benchmark_compares_equal_work_and_prints_both_ratios(tmp_path: Path) -> None:
    figures = quick_figures("engine_throughput.py", tmp_path, bounds=False, timeout=580)
    assert figures["texts_equal"] is True
    assert figures["server_over_offline"] > 0
    assert figures["server_over_sequential"] > 0
