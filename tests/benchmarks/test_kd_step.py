"""The quick form of `benchmarks/kd_step.py`; its times are not looked at."""

import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.nightly
def test_with_weights_of_1_the_trainer_ends_with_trls_parameters(tmp_path) -> None:
    figures = quick_figures("kd_step.py", tmp_path)
    assert figures["parameter_gap"] < 1e-3
    assert figures["counts"] is False  # so few rounds say nothing about time
    assert figures["step_ratio"] > 0
    assert figures["stock_ratio"] > 0
