import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
def test_the_report_of_many_rollouts_is_written_and_opened(tmp_path) -> None:
    figures = quick_figures("report_page.py", tmp_path, bounds=False)
    assert figures["rollouts"] == 1000
    assert 2 < figures["mb"] < 4
