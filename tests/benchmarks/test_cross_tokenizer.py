import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
def test_a_student_learns_by_the_loss_on_spans_and_by_golds(tmp_path) -> None:
    figures = quick_figures("cross_tokenizer.py", tmp_path)
    assert figures["teacher"] < figures["start"]
    for name in ("ours", "gold_observed", "gold_bayesian"):
        assert figures[name]["last"] > 0
    assert figures["ours"]["nats_per_character"] < figures["start"]
    assert figures["time_ratio"] > 0
