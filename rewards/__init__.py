"""Rewards: the public API, and the names of the built-in ones; `docs/rewards.md` shows how to write one.

A reward is a callable over the columns of a batch that returns one score per completion: a number, `None` (not
applicable), or `Failed("why")`. `build_reward` turns a spec into a `Reward` that TRL's own GRPOTrainer accepts.
"""

from collections.abc import Callable
from typing import Any

from rewards.build import build_reward, build_rewards
from rewards.composite import CompositeReward
from rewards.contract import Failed, Outcome, Provisional, RewardError, RewardOptions, Scored, StepScore
from rewards.runner import Reward
from rlkd.registry import register

BUILT_IN = {
    "accuracy": "rewards.accuracy.Accuracy",
    "accuracy_reward": "rewards.verified.AccuracyReward",
    "boolean": "rewards.choices.Boolean",
    "code": "rewards.code.Code",
    "code_format": "rewards.formats.CodeFormat",
    "cosine": "rewards.verified.cosine",
    "format": "rewards.formats.format_of_lines",
    "http": "rewards.remote.HttpReward",
    "judge": "rewards.judge.JudgeReward",
    "get_cosine_scaled_reward": "rewards.verified.CosineScaledReward",
    "get_repetition_penalty_reward": "rewards.repetition.TokenRepetition",
    "get_soft_overlong_punishment": "rewards.lengths.SoftOverlong",
    "length": "rewards.lengths.RelativeLength",
    "multiple_choice": "rewards.choices.MultipleChoice",
    "numeric": "rewards.choices.Numeric",
    "prm": "rewards.prm.ProcessReward",
    "reasoning_accuracy_reward": "rewards.verified.ReasoningAccuracyReward",
    "reasoning_steps": "rewards.formats.reasoning_steps",
    "repetition_penalty": "rewards.repetition.WordRepetition",
    "soft_overlong": "rewards.lengths.SoftOverlong",
    "soft_overlong_punishment": "rewards.lengths.SoftOverlong",
    "structure": "rewards.structure.StructureReward",
    "tag_count": "rewards.formats.tag_count",
    "think_format": "rewards.formats.think_format",
    "think_format_reward": "rewards.formats.think_format_reward",
}


def reward(name: str) -> Callable[[Any], Any]:
    """Decorator that registers a reward function, or a class whose instances are rewards, under `name`."""
    return register("reward", name)


__all__ = [
    "BUILT_IN",
    "CompositeReward",
    "Failed",
    "Outcome",
    "Provisional",
    "Reward",
    "RewardError",
    "RewardOptions",
    "Scored",
    "StepScore",
    "build_reward",
    "build_rewards",
    "reward",
]
