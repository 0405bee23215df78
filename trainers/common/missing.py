"""What becomes of a missing reward: the arithmetic, on plain tensors.

Shape letters: N completions of the whole generation batch (all processes, groups in a row), G completions a group, F
rewards.

A reward that is missing for a completion must not move it within its group. TRL adds the weighted rewards of a
completion with `nansum`, so that a missing one counts as 0 there: below every better score, above every penalty. So a
missing entry is filled with the mean of that reward over the rest of its group, before anything is added up. Our
choice; then, with any weights, the group mean of a reward is the mean of what was observed, a filled entry lies
exactly there and adds nothing to the advantage, and equal completions stay equal whichever of them failed.
"""

import torch
from torch import Tensor


def fill_missing(rewards_NF: Tensor, group_size: int) -> Tensor:
    """Fill each NaN with the mean of its column over the observed entries of its group.

    A column that a whole group lacks stays NaN there: adding 0 to every member moves none of them.
    """
    if not torch.isnan(rewards_NF).any():
        return rewards_NF
    groups_MGF = rewards_NF.view(-1, group_size, rewards_NF.shape[1])
    holes_MGF = torch.isnan(groups_MGF)
    means_M1F = torch.nanmean(groups_MGF, dim=1, keepdim=True)
    # The mean of equal scores may differ from them in its last bit, and TRL divides by a standard deviation.
    lowest_M1F = groups_MGF.masked_fill(holes_MGF, torch.inf).amin(dim=1, keepdim=True)
    highest_M1F = groups_MGF.masked_fill(holes_MGF, -torch.inf).amax(dim=1, keepdim=True)
    means_M1F = torch.where(torch.isnan(means_M1F), means_M1F, means_M1F.maximum(lowest_M1F).minimum(highest_M1F))
    return torch.where(holes_MGF, means_M1F, groups_MGF).view_as(rewards_NF)


def drop_failed(rewards_NF: Tensor, failed_NF: Tensor) -> Tensor:
    """Make every reward of a completion with a failed one missing, so that TRL leaves it out (advantage 0)."""
    if not failed_NF.any():
        return rewards_NF
    return torch.where(failed_NF.any(dim=1, keepdim=True), torch.nan, rewards_NF)


def apply_gates(rewards_NF: Tensor, gates: dict[int, int]) -> Tensor:
    """Multiply column `gated` by column `condition`, clipped to [0, 1], for each entry `gated: condition` of `gates`.

    For a condition of 0 or 1, as `accuracy`, the gated reward counts where the condition holds. A condition that was
    filled with a group mean acts as its expectation; one that is missing makes the gated reward missing. Conditions
    are read before any gate is applied, so the order of gates does not matter. A missing gated reward stays missing.
    """
    if not gates:
        return rewards_NF
    gated_NF = rewards_NF.clone()
    for gated, condition in gates.items():
        gated_NF[:, gated] = rewards_NF[:, gated] * rewards_NF[:, condition].clamp(0.0, 1.0)
    return gated_NF
