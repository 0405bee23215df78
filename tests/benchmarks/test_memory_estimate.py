"""The quick form of `benchmarks/memory_estimate.py`, one shape."""

import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
def test_a_run_is_estimated_and_measured_in_processes_of_their_own(tmp_path) -> None:
    figures = quick_figures("memory_estimate.py", tmp_path, "--only", "kd")["kd"]
    assert 0.75 < figures["ratio"] < 1.25
    assert 0.3 < figures["measured_gib"] < 3
