import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.nightly
def test_the_accuracy_reward_gives_trls_verdicts_and_checks_each_question_once(tmp_path) -> None:
    figures = quick_figures("rewards_throughput.py", tmp_path, bounds=False)
    for name in ("group", "distinct"):
        batch = figures[name]
        assert batch["verdicts_equal"] is True
        assert sum(batch["verdicts"].values()) == figures["completions"]
        assert batch["verdicts"]["1.0"] > 0 < batch["verdicts"]["0.0"]
        # All that a cold run reuses is what is asked for the second time, and a warm one is asked nothing.
        assert batch["cold_from_batch"] == figures["completions"] - batch["distinct_questions"] > 0
        assert batch["warm_from_cache"] == figures["completions"]
    assert figures["group"]["distinct_questions"] < figures["distinct"]["distinct_questions"]


@pytest.mark.slow
@pytest.mark.nightly
def test_completions_that_hang_are_wrong_and_change_no_other_score_and_leave_no_process(tmp_path) -> None:
    figures = quick_figures("rewards_hangs.py", tmp_path, bounds=False)
    assert figures["hangs"] == figures["kinds"] == 6
    assert list(figures["callers"]) == ["main thread", "thread", "asyncio.to_thread"]
    for caller in figures["callers"].values():
        assert caller["not_wrong"] == 0
        assert caller["others_equal"] is True
        assert caller["left_computing"] == 0
        assert caller["orphans"] == 0
    assert figures["orphans"] == 0
    # The kinds hang indeed: TRL's reward does not come back from one either.
    assert figures["trl"]["another thread"] == "does not return"
