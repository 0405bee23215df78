"""Checks that a run makes before any model loads: what would otherwise fail late, or fail in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards import Reward, RewardError
from rlkd.data.rows import RESERVED_COLUMNS
from rlkd.errors import UsageError
from rlkd.registry import suggestion
from trainers.vllm.checks import check_installed

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def check_config(args: RLKDConfig, reward_names: Sequence[str]) -> None:
    """Check weights, gates and switches against the rewards of the run; raise UsageError."""
    if args.reward_weights is not None and len(args.reward_weights) != len(reward_names):
        raise UsageError(
            f"reward_weights has {len(args.reward_weights)} entries {args.reward_weights} for {len(reward_names)} "
            f"rewards {list(reward_names)}; give one weight a reward, in that order"
        )
    for gated, condition in args.gates().items():
        for name in (gated, condition):
            if name not in reward_names:
                raise UsageError(f"reward_gates: {name!r} is no reward of this run.{suggestion(name, reward_names)}")
        if gated == condition:
            raise UsageError(f"reward_gates: {gated!r} cannot be its own condition")
    if args.remove_unused_columns:
        raise UsageError("remove_unused_columns=True takes away the columns that rewards need; leave it at False")
    if args.use_vllm:
        check_installed()
    window = rollout_window(args)
    if args.save_strategy == "steps" and window > 1 and args.save_steps >= 1 and args.save_steps % window:
        raise UsageError(
            f"save_steps ({args.save_steps:g}) must be a multiple of {window}, the optimizer steps that one batch of "
            f"rollouts serves (steps_per_generation {args.steps_per_generation} x num_iterations "
            f"{args.num_iterations} / gradient_accumulation_steps {args.gradient_accumulation_steps}): a run resumed "
            f"in between would not repeat the interrupted one. "
            f"Set save_steps: {window * max(1, round(args.save_steps / window))}"
        )


def rollout_window(args: RLKDConfig) -> int:
    """The optimizer steps that one batch of rollouts serves, at least 1."""
    assert args.steps_per_generation is not None  # TRL has filled it in
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


def check_dataset(args: RLKDConfig, rewards: Sequence[Any], dataset: Any, part: str = "train_dataset") -> None:
    """Check a `datasets.Dataset` against the rewards and the batch; raise `UsageError` or `RewardError`."""
    columns = getattr(dataset, "column_names", None)
    if columns is None:  # a streaming dataset of unknown features
        return
    for name in RESERVED_COLUMNS:
        if name in columns:
            raise UsageError(f"{part}: the column name {name!r} is reserved by TRL; rename the column")
    if "prompt" not in columns:
        raise UsageError(f"{part} has no column 'prompt'; there are {', '.join(columns)}")
    for reward in rewards:
        if isinstance(reward, Reward):
            _check_columns(reward, dataset, columns, part)
    if part == "train_dataset" and hasattr(dataset, "__len__"):
        assert args.generation_batch_size is not None  # TRL has filled both in
        assert args.num_generations is not None
        prompts = args.generation_batch_size // args.num_generations
        if len(dataset) < prompts:
            raise UsageError(
                f"{part} has {len(dataset)} prompts, but one generation batch takes {prompts} "
                f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}; "
                f"generation_batch_size is per_device_train_batch_size x processes x steps_per_generation). TRL would "
                f"train zero steps without a word. Give more prompts, or lower per_device_train_batch_size or "
                f"gradient_accumulation_steps, or raise num_generations."
            )


def check_services(rewards: Sequence[Any]) -> None:
    """Check that the servers which rewards need are there; raise `RewardError`."""
    for reward in rewards:
        if isinstance(reward, Reward):
            reward.check_ready()


def _check_columns(reward: Reward, dataset: Any, columns: Sequence[str], part: str) -> None:
    reward.check_columns(columns)
    alternatives: list[tuple[str, ...]] = [(column,) for column in reward.required_columns]
    if reward.needs_any:
        alternatives.append(reward.needs_any)
    if not hasattr(dataset, "__len__"):
        return
    for names in alternatives:
        present = [name for name in names if name in columns]
        if any(_holds_anything(dataset, name) for name in present):
            continue
        shown = " or ".join(map(repr, names))
        raise RewardError(
            f"reward {reward.__name__!r} needs the column {shown}, which is "
            f"{f'empty in all {len(dataset)} rows of' if present else 'missing in'} {part}. Fill it, or take the "
            f"reward out of reward_funcs."
        )


def _holds_anything(dataset: Any, column: str) -> bool:
    return any(value is not None and value != [] for value in dataset[column])
