"""The quick form of `benchmarks/reward_prefetch.py`; its times are not looked at."""

import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.nightly
def test_all_arms_end_with_the_same_parameters(tmp_path) -> None:
    figures = quick_figures("reward_prefetch.py", tmp_path)
    assert figures["parameters_equal"] is True
    assert figures["delay_s"] > 0
