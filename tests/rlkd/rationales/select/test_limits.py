"""Cuts over (score, id): right on cases by hand, and the same in any order and for any shards."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select import SelectorError
from rlkd.rationales.select.limits import LimitItem, SelectionLimits, count_pieces

SCORES = {"q1": [3.0, 1.0, 2.0], "q2": [0.5, 5.0], "q3": [4.0]}


def questions(scores=SCORES, name="log_rd"):
    return [
        Question(
            each,
            "?",
            None,
            tuple(Candidate(f"{each}-{v:g}", "one two three", "ready", scores={name: v}) for v in values),
        )
        for each, values in scores.items()
    ]


def kept(limits, given=None):
    remaining, dropped = limits.apply(questions() if given is None else given)
    return [each.id for item in remaining for each in item.candidates], {
        each.candidate.id: each.reason for each in dropped
    }


def test_at_most_n_of_each_question_lowest_first():
    left, dropped = kept(SelectionLimits(by="log_rd", per_question=2))
    assert left == ["q1-1", "q1-2", "q2-0.5", "q2-5", "q3-4"]
    assert dropped == {"q1-3": "over the number a question"}


def test_a_share_of_all_over_the_whole_set():
    left, dropped = kept(SelectionLimits(by="log_rd", keep_ratio=0.5))
    assert left == ["q1-1", "q1-2", "q2-0.5"]
    assert set(dropped.values()) == {"over the share of all"}
    assert kept(SelectionLimits(by="log_rd", keep_ratio=1.0))[1] == {}


def test_a_minus_turns_the_order_round():
    assert kept(SelectionLimits(by="-log_rd", keep_ratio=0.5))[0] == ["q1-3", "q2-5", "q3-4"]


def test_a_budget_ends_at_the_first_that_does_not_fit():
    left, dropped = kept(SelectionLimits(by="log_rd", token_budget=7))
    assert left == ["q1-1", "q2-0.5"]  # three pieces each
    assert set(dropped.values()) == {"over the token budget"}
    items = [LimitItem("q", "a", 1.0, 4), LimitItem("q", "b", 2.0, 9), LimitItem("q", "c", 3.0, 1)]
    assert SelectionLimits(by="x", token_budget=6).cut(items) == {("q", "a")}


def test_tokens_are_those_of_whoever_counts():
    limits = SelectionLimits(by="log_rd", token_budget=20)
    assert len(limits.apply(questions(), len)[1]) == 5  # 13 characters each
    assert count_pieces("Half of 48/2 is 12.5, so <<1+1=2>>.") == 10


def test_tokens_are_counted_only_where_a_budget_needs_them():
    def count(text):
        raise AssertionError(f"counted {text!r}")

    [first, *_] = questions()
    assert [item.tokens for item in SelectionLimits(by="log_rd", per_question=1).items(first, count)] == [0, 0, 0]
    assert len(SelectionLimits(keep_ratio=0.5).apply(questions(), count)[1]) == 3
    assert [item.tokens for item in SelectionLimits(token_budget=9).items(first)] == [3, 3, 3]


def test_the_cuts_follow_each_other():
    left, dropped = kept(SelectionLimits(by="log_rd", per_question=1, keep_ratio=0.67, token_budget=3))
    assert left == ["q2-0.5"]
    assert dropped == {
        "q1-3": "over the number a question",
        "q1-2": "over the number a question",
        "q2-5": "over the number a question",
        "q3-4": "over the share of all",
        "q1-1": "over the token budget",
    }


def test_without_a_score_the_seed_draws():
    many = questions({f"q{n}": [1.0, 2.0] for n in range(100)})
    first, again, other = (kept(SelectionLimits(keep_ratio=0.3, seed=seed), many)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 60
    assert 15 <= sum(name.endswith("-1") for name in first) <= 45


def test_no_limits_keep_everything_and_a_missing_score_is_named():
    assert kept(SelectionLimits())[1] == {}
    with pytest.raises(SelectorError, match=r"'log_RD'.*candidate q1-3 of question 'q1'.*Did you mean 'log_rd'"):
        SelectionLimits(by="log_RD").apply(questions())


@pytest.mark.parametrize(
    "wrong", [{"per_question": 0}, {"keep_ratio": 0}, {"keep_ratio": 1.5}, {"token_budget": True}, {"by": "-"}]
)
def test_a_number_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SelectionLimits(**wrong)


ITEMS = st.lists(
    st.builds(
        LimitItem,
        st.sampled_from("abc"),
        st.text("xyz", min_size=1, max_size=3),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(1, 9),
    ),
    max_size=25,
    unique_by=lambda item: (item.question_id, item.id),
)
LIMITS = st.builds(
    SelectionLimits,
    by=st.just("score"),
    per_question=st.none() | st.integers(1, 4),
    keep_ratio=st.none() | st.floats(0.05, 1.0),
    token_budget=st.none() | st.integers(1, 60),
)


@given(ITEMS, LIMITS, st.integers(0, 10**6))
def test_what_is_kept_is_the_same_in_any_order_and_within_the_limits(items, limits, seed):
    expected = limits.cut(items)
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    assert limits.cut(shuffled) == expected
    left = [item for item in items if (item.question_id, item.id) in expected]
    if limits.per_question is not None:
        assert all(sum(item.question_id == name for item in left) <= limits.per_question for name in "abc")
    if limits.token_budget is not None:
        assert sum(item.tokens for item in left) <= limits.token_budget
    if limits.keep_ratio is not None:
        assert len(left) <= limits.keep_ratio * len(items) + 0.5


@given(ITEMS, LIMITS)
def test_of_two_candidates_of_a_question_the_better_is_never_dropped_alone(items, limits):
    keys = {(item.question_id, item.id): (item.score, item.id) for item in items}
    left = limits.cut(items)
    for mine in keys.keys() - left:
        for theirs in left:
            if mine[0] == theirs[0]:
                assert keys[theirs] < keys[mine]


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_that_hand_in_their_items_keep_together_what_one_process_keeps(shards):
    source = random.Random(3)
    given = questions({f"q{n}": [source.random() for _ in range(4)] for n in range(40)})
    limits = SelectionLimits(by="log_rd", per_question=3, keep_ratio=0.5, token_budget=150)
    parts = [given[start::shards] for start in range(shards)]
    names = limits.cut(item for part in reversed(parts) for each in part for item in limits.items(each))
    whole, _ = limits.apply(given)
    assert names == {(item.id, each.id) for item in whole for each in item.candidates}
