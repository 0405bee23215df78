"""The quick form of `benchmarks/kd_loss_memory.py`; times are not looked at."""

import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
def test_our_loss_has_the_exact_gradients_and_takes_less_memory_than_both_others(tmp_path) -> None:
    figures = quick_figures("kd_loss_memory.py", tmp_path)
    assert figures["gradient_error"] < 1e-5
    # Even here, where all logits are smaller than a tile may be.
    assert 0 < figures["peak_over_dense"] < 1
    assert 0 < figures["peak_over_trl"] < 1
    assert figures["time_over_dense"] > 0
