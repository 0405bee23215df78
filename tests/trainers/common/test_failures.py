"""The watch over failures of rewards and scorers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.errors import UsageError
from trainers.common.failures import FailureWatch, check_failure_limits


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12), st.integers(1, 4))
def test_the_watch_agrees_with_counting_the_last_batches_by_hand(batches, window) -> None:
    watch = FailureWatch(["a"], 0.5, window)
    for place, batch in enumerate(batches, start=1):
        found = watch.add([sum(batch)], len(batch))
        last = [failed for counted in batches[max(0, place - window) : place] for failed in counted]
        expected = place >= window and sum(last) > len(last) / 2
        assert (found is not None) == expected
        if found is not None:
            assert found == ("a", sum(last), len(last))


@pytest.mark.parametrize("at", range(6))
def test_a_resumed_watch_continues_to_count(at) -> None:
    counts = [0, 3, 1, 4, 4, 0]
    whole, before, after = (FailureWatch(["a"], 0.5, 3) for _ in range(3))
    found = [whole.add([count], 4) for count in counts]
    again = [before.add([count], 4) for count in counts[:at]]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert again + [after.add([count], 4) for count in counts[at:]] == found
    assert any(found)


def test_the_failures_that_ended_a_run_do_not_end_the_resumed_one() -> None:
    ended, resumed = (FailureWatch(["a"], 0.5, 2) for _ in range(2))
    ended.add([4], 4)
    ended.add([4], 4)
    ended.end_run("reward 'a'", 8, 8, "completions", "no answer")
    resumed.load_state_dict(ended.state_dict())
    assert resumed.error == ""
    assert resumed.add([4], 4) is None


def test_without_rewards_of_its_own_a_run_has_nothing_to_watch() -> None:
    watch = FailureWatch([], 0.5, 2)
    assert [watch.add([], 4) for _ in range(5)] == [None] * 5


def test_batches_without_a_question_do_not_end_a_run() -> None:
    watch = FailureWatch(["a"], 0.0, 2)
    assert [watch.add([0], 0) for _ in range(3)] == [None, None, None]
    assert watch.add([1], 1) == ("a", 1, 1)


@pytest.mark.parametrize(("most", "window"), [(-0.1, 4), (1.5, 4), (0.5, 0)])
def test_limits_outside_their_ranges_are_refused(most, window) -> None:
    with pytest.raises(UsageError, match=r"max_failure_rate|failure_window"):
        check_failure_limits(most, window)
