"""The arithmetic of missing rewards, as properties of TRL's own aggregation over our tensors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import RewardError
from rewards.arithmetic import (
    apply_gates,
    correlations,
    fill_missing,
    frac_zero_std,
    groups_with_spread,
    penalised_by_gate,
    settle,
)


@st.composite
def groups(draw: st.DrawFn, low: float = -1.0, high: float = 1.0) -> tuple[torch.Tensor, int]:
    """Rewards of 1 to 3 groups with holes; the range includes penalties in [-1, 0]."""
    n_groups, size, columns = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    entry = st.one_of(st.none(), st.floats(low, high, allow_nan=False, width=32))
    count = n_groups * size * columns
    values = draw(st.lists(entry, min_size=count, max_size=count))
    flat = [math.nan if value is None else value for value in values]
    return torch.tensor(flat, dtype=torch.float64).view(n_groups * size, columns), size


def centred(rewards: torch.Tensor, size: int) -> torch.Tensor:
    """What `sum_then_normalize` makes of rewards before it scales: the sum, less the mean of its group."""
    unscorable = torch.isnan(rewards).all(dim=1)
    total = rewards.nansum(dim=1)
    total[unscorable] = math.nan
    grouped = total.view(-1, size)
    return (grouped - grouped.nanmean(dim=1, keepdim=True)).view(-1)


def observed_means(rewards: torch.Tensor, size: int) -> torch.Tensor:
    return rewards.view(-1, size, rewards.shape[1]).nanmean(dim=1).repeat_interleave(size, dim=0)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(groups())
def test_a_centred_reward_is_the_sum_of_the_observed_scores_less_their_column_means(case) -> None:
    rewards, size = case
    found = centred(fill_missing(rewards, size), size)
    # A missing entry contributes nothing: exactly what leaving that reward out for that completion means.
    expected = (rewards - observed_means(rewards, size)).nansum(dim=1)
    scorable = ~torch.isnan(found)
    assert torch.allclose(found[scorable], expected[scorable], atol=1e-9)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(groups(low=-1.0, high=0.0))
def test_a_failed_penalty_is_no_prize(case) -> None:
    rewards, size = case
    filled = fill_missing(rewards, size).view(-1, size, rewards.shape[1])
    holes = torch.isnan(rewards).view(-1, size, rewards.shape[1]) & ~torch.isnan(filled)
    lows = rewards.view_as(filled).nan_to_num(nan=9.0).amin(dim=1, keepdim=True).expand_as(filled)
    highs = rewards.view_as(filled).nan_to_num(nan=-9.0).amax(dim=1, keepdim=True).expand_as(filled)
    assert (filled[holes] <= highs[holes] + 1e-12).all()
    assert (filled[holes] >= lows[holes] - 1e-12).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2), st.sets(st.integers(0, 11), max_size=11))
def test_equal_completions_stay_equal_whoever_fails(scores, failed) -> None:
    rewards = torch.tensor([scores] * 6, dtype=torch.float64)
    rewards.view(-1)[list(failed)] = math.nan
    filled = fill_missing(rewards, 6)
    advantages = centred(filled, 6)
    assert torch.allclose(advantages.nan_to_num(), torch.zeros(6, dtype=torch.float64), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(groups())
def test_what_was_observed_is_not_touched(case) -> None:
    rewards, size = case
    filled = fill_missing(rewards, size)
    seen = ~torch.isnan(rewards)
    assert torch.equal(filled[seen], rewards[seen])


def test_a_reward_that_a_whole_group_lacks_stays_missing_and_moves_nobody() -> None:
    nan = math.nan
    rewards = torch.tensor([[1.0, nan], [0.0, nan], [1.0, 0.2], [0.0, nan]])
    filled = fill_missing(rewards, 2)
    assert torch.isnan(filled[:2, 1]).all()
    assert centred(filled, 2).tolist() == pytest.approx([0.5, -0.5, 0.5, -0.5])


def test_complete_rewards_come_back_as_the_same_object() -> None:
    rewards = torch.rand(8, 2)
    assert fill_missing(rewards, 4) is rewards


def test_plain_trl_would_turn_a_failed_penalty_into_a_prize() -> None:
    # The reason for this module, in one line: three completions punished alike, for one the punishment broke down.
    rewards = torch.tensor([[-1.0], [-1.0], [-1.0]])
    with_ok = torch.cat([torch.zeros(3, 1), rewards], dim=1)
    with_ok[2, 1] = math.nan
    assert centred(with_ok, 3)[2] > 0.6
    assert centred(fill_missing(with_ok, 3), 3)[2] == 0.0


def test_dropping_takes_the_whole_completion_out() -> None:
    rewards = torch.tensor([[1.0, 0.5], [0.0, math.nan]])
    failed = torch.tensor([[False, False], [False, True]])
    dropped = settle(rewards, failed, 2, on_failure="drop")
    assert torch.isnan(dropped[1]).all()
    assert dropped[0].tolist() == [1.0, 0.5]


def test_a_dropped_completion_does_not_enter_the_means_of_its_group() -> None:
    rewards = torch.tensor([[1.0, math.nan], [3.0, 0.5], [8.0, math.nan]])
    failed = torch.tensor([[False, False], [False, False], [False, True]])
    settled = settle(rewards, failed, 3, on_failure="drop")
    assert settled[:2].tolist() == [[1.0, 0.5], [3.0, 0.5]]
    assert torch.isnan(settled[2]).all()


def test_raise_ends_with_the_description_of_the_failure() -> None:
    failed = torch.tensor([[True], [False]])
    with pytest.raises(RewardError, match="the judge is down"):
        settle(torch.tensor([[math.nan], [1.0]]), failed, 2, on_failure="raise", describe=lambda: "the judge is down")
    observed = torch.tensor([[0.5], [1.0]])
    assert settle(observed, failed & False, 2, on_failure="raise").equal(observed)


@settings(max_examples=100, deadline=None)
@given(groups(low=0.0))
def test_a_gate_multiplies_by_its_condition_and_leaves_other_columns_alone(case) -> None:
    rewards, _ = case
    if rewards.shape[1] < 2:
        return
    gated = apply_gates(rewards, {0: 1})
    expected = rewards[:, 0] * rewards[:, 1].clamp(0, 1)
    assert torch.equal(gated[:, 0].nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))
    assert torch.equal(gated[:, 1:].nan_to_num(nan=-7.0), rewards[:, 1:].nan_to_num(nan=-7.0))


def test_a_missing_condition_makes_the_gated_reward_missing() -> None:
    assert math.isnan(apply_gates(torch.tensor([[0.5, math.nan]]), {0: 1})[0, 0].item())


def test_spread_and_correlation_pass_over_what_is_missing() -> None:
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0], [nan, 1.0], [2.0, 2.0], [3.0, nan], [5.0, 5.0], [nan, 1.0]])
    assert frac_zero_std(rewards, 3) == [0.0, 0.0]
    assert frac_zero_std(torch.tensor([[1.0], [nan], [1.0], [nan], [nan], [2.0]]), 3) == [1.0]
    assert math.isnan(frac_zero_std(torch.tensor([[nan], [1.0]]), 2)[0])
    assert correlations(rewards)[0, 1] == pytest.approx(93 / math.sqrt(78 * 114))
    assert correlations(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 4.0]])) == {}


def normalised(rewards: torch.Tensor, size: int) -> torch.Tensor:
    """The first half of TRL's `normalize_then_sum`: each reward over its group, missing entries left out."""
    grouped = rewards.view(-1, size, rewards.shape[1])
    deviation = grouped - grouped.nanmean(dim=1, keepdim=True)
    count = (~grouped.isnan()).sum(dim=1, keepdim=True)
    spread = (deviation.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return (deviation / (spread + 1e-4)).view_as(rewards).nan_to_num(nan=0.0)


@pytest.mark.parametrize(("size", "missing"), [(8, 1), (8, 4), (4, 2), (4, 3), (2, 1)])
def test_missing_entries_do_not_inflate_normalised_rewards(size, missing) -> None:
    scores = torch.linspace(0, 1, size, dtype=torch.float64).unsqueeze(1)
    scores[:missing] = math.nan
    failed = scores.isnan()
    alone = normalised(scores[missing:].clone(), size - missing)
    found = normalised(settle(scores, failed, size, fill=False), size)
    assert torch.allclose(found[missing:], alone)
    assert torch.equal(found[:missing], torch.zeros(missing, 1, dtype=torch.float64))
    inflated = normalised(settle(scores, failed, size), size)[missing:]
    if size - missing > 1:
        expected = alone * math.sqrt((size - 1) / (size - missing - 1))
        assert torch.allclose(inflated, expected, rtol=2e-3)


def test_without_filling_a_gate_still_reads_a_missing_condition_as_its_expectation() -> None:
    nan = math.nan
    rewards = torch.tensor([[0.5, 1.0], [nan, 0.0], [1.0, nan], [0.25, 1.0]])
    settled = settle(rewards, rewards.isnan(), 4, fill=False, gates={0: 1})
    assert settled[[0, 2, 3], 0].tolist() == pytest.approx([0.5, 2 / 3, 0.25])
    assert settled.isnan().tolist() == [[False, False], [True, False], [False, True], [False, False]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2), st.sets(st.integers(0, 11), max_size=11))
def test_without_filling_equal_completions_stay_equal_to_the_last_bit(scores, failed) -> None:
    rewards = torch.tensor([scores] * 6, dtype=torch.float32)
    holes = rewards.clone()
    holes.view(-1)[list(failed)] = math.nan
    settled = settle(holes, holes.isnan(), 6, fill=False)
    for column in range(2):
        if not holes[:, column].isnan().all():
            assert torch.equal(settled[:, column], rewards[:, column])


def test_a_gate_on_a_penalty_is_seen_by_its_first_negative_score() -> None:
    rewards = torch.tensor([[1.0, -0.5], [0.0, -0.5], [0.0, 0.0]])
    assert penalised_by_gate(apply_gates(rewards, {1: 0}), {1: 0}) == (1, 0)
    assert penalised_by_gate(apply_gates(rewards[1:], {1: 0}), {1: 0}) is None
    assert penalised_by_gate(rewards.abs(), {1: 0}) is None


def test_a_group_has_spread_where_its_weighted_sums_differ() -> None:
    nan = math.nan
    rewards = [
        *([1.0, 0.0], [1.0, 0.0]),
        *([1.0, 0.0], [0.0, 1.0]),  # equal by their weights
        *([1.0, 0.0], [0.0, 0.0]),
        *([nan, 1.0], [nan, nan]),  # one completion counts
        *([nan, nan], [nan, nan]),
        *([0.1 + 0.2, 0.0], [0.3, 0.0]),  # equal but for the last bit
    ]
    found = groups_with_spread(torch.tensor(rewards, dtype=torch.float64), torch.tensor([1.0, 1.0]), 2)
    assert found == [False, False, True, False, False, False]
    assert groups_with_spread(torch.tensor(rewards[2:4]), torch.tensor([1.0, 0.5]), 2) == [True]
