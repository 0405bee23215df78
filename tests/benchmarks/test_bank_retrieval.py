import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.nightly
def test_blocks_route_as_a_plain_reference_does_within_little_memory(tmp_path) -> None:
    figures = quick_figures("bank_retrieval.py", tmp_path)
    assert figures["results_equal"] is True
    assert figures["peak_mib"] <= 1024
    assert figures["similarity_error"] < 1e-5
    assert (figures["questions"], figures["intents"], figures["paths"]) == (4000, 250, 1000)
    # Both cases were compared: a path offered, and none.
    assert 0.1 < figures["offered_share"] < 0.9
    assert figures["time_ratio"] > 0
