import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
def test_a_cache_takes_few_bytes_and_gives_back_what_was_coded(tmp_path) -> None:
    figures = quick_figures("teacher_cache.py", tmp_path)
    assert figures["bits_equal"] is True
    assert 268 <= figures["bytes_per_token"] <= 400
    assert 1e-6 < figures["largest_error"] < 1e-3
    assert figures["forward_kl"] > 0.1
    assert max(figures["forward_kl_error"]) < 1e-3
    assert figures["lookup_over_forward"] > 0
