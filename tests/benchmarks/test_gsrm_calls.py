import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.nightly
def test_the_structure_reward_needs_fewer_requests_than_the_authors_scheme_for_the_same_scores(tmp_path) -> None:
    figures = quick_figures("gsrm_calls.py", tmp_path, bounds=False)
    assert figures["scores_equal"] is True
    assert figures["structure_call_ratio"] == (8 + 1) / (2 * 8)
    assert figures["structure_call_ratio_next_epoch"] == 1 / 2
    assert figures["wall_ratio"] > 0
    assert figures["repeat_epoch_judge_calls"] == 0
