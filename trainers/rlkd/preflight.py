"""Checks of an RLKD run before any model loads, for mistakes that would show late or never."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards import Reward, RewardError
from rewards.composite import check_combination
from trainers.common.preflight import (
    check_columns,
    check_save_steps,
    check_size,
    check_unused_columns,
    named_datasets,
)
from trainers.vllm.checks import check_installed

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def check_run(
    args: RLKDConfig, rewards: Sequence[Any], names: Sequence[str], train_dataset: Any, eval_dataset: Any
) -> None:
    """Check config, data and the servers that rewards need; raises `UsageError` (`RewardError`)."""
    check_combination(names, args.reward_weights, args.gates())
    check_unused_columns(args, "the columns that rewards need")
    if args.use_vllm:
        check_installed()
    check_save_steps(args, rollout_window(args))
    own = [reward for reward in rewards if isinstance(reward, Reward)]
    for part, dataset in named_datasets(train_dataset, eval_dataset):
        columns = check_columns(dataset, part)
        for reward in own if columns is not None else ():
            check_reward_columns(reward, dataset, columns or (), part)
        if part == "train_dataset":
            assert args.generation_batch_size is not None  # TRL has filled both in
            assert args.num_generations is not None
            check_size(
                dataset,
                part,
                args.generation_batch_size // args.num_generations,
                f"generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}; "
                f"generation_batch_size is per_device_train_batch_size x processes x steps_per_generation",
                also=", or raise num_generations",
            )
    for reward in own:
        reward.check_ready()


def rollout_window(args: RLKDConfig) -> int:
    """The optimizer steps per batch of rollouts, at least 1."""
    assert args.steps_per_generation is not None  # TRL has filled it in
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


def check_reward_columns(reward: Reward, dataset: Any, columns: Sequence[str], part: str) -> None:
    """Check that the columns a reward needs exist and hold values; raises `RewardError`."""
    reward.check_columns(columns)
    if not hasattr(dataset, "__len__"):
        return
    alternatives: list[tuple[str, ...]] = [(column,) for column in reward.required_columns]
    if reward.needs_any:
        alternatives.append(reward.needs_any)
    for names in alternatives:
        present = [name for name in names if name in columns]
        if any(value is not None and value != [] for name in present for value in dataset[name]):
            continue
        problem = f"empty in all {len(dataset)} rows of" if present else "missing in"
        raise RewardError(
            f"reward {reward.__name__!r} needs the column {' or '.join(map(repr, names))}, which is {problem} {part}. "
            f"Fill it, or remove the reward from reward_funcs."
        )
