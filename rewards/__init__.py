"""Rewards: the public API, and the names of the built-in ones.

A reward is a callable over the columns of a batch that returns one score per completion:

    from rewards import reward

    @reward("brevity")
    def brevity(completions, *, limit=400, **columns):
        return [max(0.0, 1 - len(c[0]["content"]) / limit) for c in completions]

A config names it by its registered name, by a dotted path, or as `path/to/file.py:brevity`. Parameters with a default
(`limit`) can be set there; parameters without one are columns that the data must have. The outcome for a completion is
one of three:

1. a number: the score;
2. `None`: not applicable, there is nothing to judge;
3. `Failed("why")`, or an exception for the whole batch: the reward broke down. A failure is never a 0.0, since an
   unreachable server must not punish a completion.

`build_reward` turns a spec into a `Reward` that distinguishes these, and that TRL's own GRPOTrainer accepts.
"""

from collections.abc import Callable
from typing import Any

from rewards.build import build_reward, build_rewards
from rewards.composite import CompositeReward
from rewards.contract import Failed, Outcome, RewardError, RewardOptions, Scored
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
    "get_cosine_scaled_reward": "rewards.verified.CosineScaledReward",
    "get_repetition_penalty_reward": "rewards.repetition.TokenRepetition",
    "get_soft_overlong_punishment": "rewards.lengths.SoftOverlong",
    "length": "rewards.lengths.RelativeLength",
    "multiple_choice": "rewards.choices.MultipleChoice",
    "numeric": "rewards.choices.Numeric",
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
    "Reward",
    "RewardError",
    "RewardOptions",
    "Scored",
    "build_reward",
    "build_rewards",
    "reward",
]
