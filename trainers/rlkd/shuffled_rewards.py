"""The control of a reward: its values change places among the completions of each group.

Mean and spread of the group stay; what the reward says of a completion is gone. If a run learns as well with it, the
judgement of the reward is not what teaches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkd.errors import UsageError


def read_shuffled(given: Any) -> dict[str, int]:
    """The key `shuffle_rewards` as {reward: seed}; raises `UsageError`."""
    found = given
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except ValueError as error:
            raise UsageError(f"shuffle_rewards: {given!r} is not a JSON object ({error})") from error
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(type(seed) is int for seed in found.values()):
        raise UsageError(f"shuffle_rewards: expected {{reward: seed}}, such as {{prm: 7}}; found {given!r}")
    return dict(found)


def check_shuffled(seeds: Mapping[str, int], names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that is no reward of the run."""
    for name in seeds:
        if name not in names:
            raise UsageError(f"shuffle_rewards names {name!r}, which is no reward of this run ({', '.join(names)})")


def shuffled_in_groups(
    rewards_NF: Tensor, failed_NF: Tensor, names: Sequence[str], seeds: Mapping[str, int], group_size: int, step: int
) -> tuple[Tensor, Tensor]:
    """Rewards (N completions, F rewards) and which of them failed; those in `seeds` in another order in each group.

    `group_size`: completions of a prompt, which stand together; N is a multiple of it.
    The order depends on seed, name, `step` and place of the group alone, so a resumed run repeats it, and all
    processes have the same.
    """
    rewards_NF, failed_NF = rewards_NF.clone(), failed_NF.clone()
    for name, seed in seeds.items():
        column, order = names.index(name), list[int]()
        for start in range(0, len(rewards_NF), group_size):
            group = list(range(start, start + group_size))
            random.Random(f"{seed} {name} {step} {start}").shuffle(group)
            order += group
        places = torch.tensor(order, device=rewards_NF.device)
        rewards_NF[:, column], failed_NF[:, column] = rewards_NF[places, column], failed_NF[places, column]
    return rewards_NF, failed_NF
