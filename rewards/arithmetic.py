"""The arithmetic on the rewards of a generation batch: missing entries, gates, and how rewards relate.

Shape letters: N completions of the whole generation batch (all processes, groups in a row), G completions per group,
M groups, F rewards. A missing reward is NaN.

TRL adds the weighted rewards with `nansum`, so that a missing one would count as 0: below every better score, above
every penalty. So a missing entry becomes the mean of its reward over the other members of the group that have it,
before anything is added up. Our choice; a filled entry adds nothing to the advantage, and equal completions stay equal
whichever of them failed.

Under `normalize_then_sum` it would not be so: each reward is divided by its deviation within the group, which filled
entries lower. There TRL leaves missing entries out of both mean and deviation, and they stay missing (`fill=False`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rewards.contract import RewardError

if TYPE_CHECKING:
    from torch import Tensor


def settle(
    rewards_NF: Tensor,
    failed_NF: Tensor,
    group_size: int,
    *,
    on_failure: str = "impute",
    gates: Mapping[int, int] | None = None,
    fill: bool = True,
    describe: Callable[[], str] = lambda: "a reward failed",
) -> Tensor:
    """The rewards to add up: missing entries filled or dropped, and gates applied.

    Args:
        rewards_NF: the rewards, NaN where missing.
        failed_NF: whether a missing reward failed, instead of being not applicable.
        group_size: completions per group.
        on_failure: `impute` treats a failed reward as any missing one; `drop` makes all rewards of its completion
            missing, so that TRL leaves it out (advantage 0); `raise` raises a `RewardError` with the text of
            `describe()`.
        gates: {gated column: condition column}, see `apply_gates`.
        fill: fill missing entries; false leaves them missing where the observed ones of their group differ
            (`normalize_then_sum`). Where these are equal the deviation is 0 with and without them.
    """
    if on_failure == "raise" and failed_NF.any():
        raise RewardError(describe())
    # A dropped completion neither enters the means of its group nor is filled from them.
    dropped_N1 = failed_NF.any(dim=1, keepdim=True) & (on_failure == "drop")
    observed_NF = rewards_NF.masked_fill(dropped_N1, math.nan) if dropped_N1.any() else rewards_NF
    filled_NF = fill_missing(observed_NF, group_size)
    settled_NF = apply_gates(filled_NF, gates or {})
    if not fill and filled_NF is not observed_NF:
        settled_NF = settled_NF.masked_fill(observed_NF.isnan() & _differ(observed_NF, group_size), math.nan)
    return settled_NF.masked_fill(dropped_N1, math.nan) if dropped_N1.any() else settled_NF


def fill_missing(rewards_NF: Tensor, group_size: int) -> Tensor:
    """Fill each NaN with the mean of its column over the observed entries of its group.

    A column that a whole group lacks stays NaN there: adding 0 to every member moves none of them.
    """
    import torch

    if not torch.isnan(rewards_NF).any():
        return rewards_NF
    groups_MGF = rewards_NF.view(-1, group_size, rewards_NF.shape[1])
    holes_MGF = torch.isnan(groups_MGF)
    means_M1F = torch.nanmean(groups_MGF, dim=1, keepdim=True)
    # The mean of equal scores may differ from them in its last bit, and TRL divides by a standard deviation.
    low_M1F, high_M1F = (bound.unsqueeze(1) for bound in _range(groups_MGF))
    means_M1F = torch.where(torch.isnan(means_M1F), means_M1F, means_M1F.maximum(low_M1F).minimum(high_M1F))
    return torch.where(holes_MGF, means_M1F, groups_MGF).view_as(rewards_NF)


def _differ(rewards_NF: Tensor, group_size: int) -> Tensor:
    """Whether the observed entries of the same column and group differ, for each entry."""
    low_MF, high_MF = _range(rewards_NF.view(-1, group_size, rewards_NF.shape[1]))
    return (low_MF < high_MF).repeat_interleave(group_size, dim=0)


def _range(groups_MGF: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest observed entry of each column and group; infinite without one."""
    holes_MGF = groups_MGF.isnan()
    low_MF = groups_MGF.masked_fill(holes_MGF, math.inf).amin(dim=1)
    return low_MF, groups_MGF.masked_fill(holes_MGF, -math.inf).amax(dim=1)


def apply_gates(rewards_NF: Tensor, gates: Mapping[int, int]) -> Tensor:
    """Multiply column `gated` by column `condition`, clipped to [0, 1], for each entry `gated: condition` of `gates`.

    For a condition of 0 or 1, as `accuracy`, the gated reward counts where the condition holds. A condition that was
    filled with a group mean acts as its expectation; one that is missing makes the gated reward missing. Conditions
    are read before any gate is applied, so the order of gates does not matter. A missing gated reward stays missing.

    A gate is for rewards that are 0 or above: it turns a penalty into a prize for failing the condition
    (`penalised_by_gate`).
    """
    return rewards_NF * gate_factors(rewards_NF, gates) if gates else rewards_NF


def gate_factors(rewards_NF: Tensor, gates: Mapping[int, int]) -> Tensor:
    """What `apply_gates` multiplies each entry by: its condition, clipped to [0, 1]; 1 without a gate."""
    factors_NF = rewards_NF.new_ones(rewards_NF.shape)
    for gated, condition in gates.items():
        factors_NF[:, gated] = rewards_NF[:, condition].clamp(0.0, 1.0)
    return factors_NF


def penalised_by_gate(settled_NF: Tensor, gates: Mapping[int, int]) -> tuple[int, int] | None:
    """The first gate whose gated reward is negative somewhere: completions that fail its condition earn more there."""
    return next(((gated, condition) for gated, condition in gates.items() if (settled_NF[:, gated] < 0).any()), None)


def frac_zero_std(rewards_NF: Tensor, group_size: int) -> list[float]:
    """For each reward, the share of groups in which all observed entries are equal (NaN: no group has two)."""
    groups_MGF = rewards_NF.view(-1, group_size, rewards_NF.shape[1])
    low_MF, high_MF = _range(groups_MGF)
    counted_MF = (~groups_MGF.isnan()).sum(dim=1) >= 2
    zero_std_F = ((low_MF == high_MF) & counted_MF).sum(dim=0)
    return [
        zero_std / counted if counted else math.nan
        for zero_std, counted in zip(zero_std_F.tolist(), counted_MF.sum(dim=0).tolist(), strict=True)
    ]


def groups_with_spread(settled_NF: Tensor, weights_F: Tensor, group_size: int) -> list[bool]:
    """Whether the weighted sums of rewards of a group differ, for each group; others have advantage 0 everywhere.

    `settled_NF`: as `settle` returns them. Completions without any reward are left out, as TRL does.
    """
    import torch

    totals_N = (settled_NF * weights_F.to(settled_NF)).nansum(dim=1)
    totals_N = totals_N.masked_fill(settled_NF.isnan().all(dim=1), math.nan)
    low_M, high_M = (bound.squeeze(1) for bound in _range(totals_N.view(-1, group_size, 1)))
    # Equal scores of several rewards may add up to sums that differ in the last bit.
    return ((high_M > low_M) & ~torch.isclose(high_M, low_M)).tolist()


def correlations(rewards_NF: Tensor) -> dict[tuple[int, int], float]:
    """Pearson's correlation of each pair of rewards over the samples that both scored; none where it is undefined."""
    import torch

    found = {}
    for first in range(rewards_NF.shape[1]):
        for second in range(first + 1, rewards_NF.shape[1]):
            pair_N2 = rewards_NF[:, [first, second]].double()
            pair_N2 = pair_N2[~torch.isnan(pair_N2).any(dim=1)]
            spread = pair_N2.std(dim=0) if len(pair_N2) > 2 else torch.zeros(2)
            if (spread > 0).all():
                value = torch.corrcoef(pair_N2.T)[0, 1].item()
                if math.isfinite(value):
                    found[first, second] = value
    return found
