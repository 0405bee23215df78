"""Rewards in tests: called as TRL calls them, with the outcomes of the last call at hand."""

import asyncio
from typing import Any

import rewards
from rewards import Outcome, Reward
from rewards.build import wrap as wrap_reward
from rewards.runner import AsyncReward

# Parameters of the built-in rewards, where they need some.
BUILT_IN_PARAMETERS = {
    "accuracy": {"fallback": "last_number"},
    "get_soft_overlong_punishment": {"max_completion_len": 10, "soft_punish_cache": 4},
    "soft_overlong": {"max_completion_len": 10, "soft_punish_cache": 4},
    "soft_overlong_punishment": {"max_completion_len": 10, "soft_punish_cache": 4},
    "get_cosine_scaled_reward": {"max_len": 100},
    "http": {"url": "http://127.0.0.1:9/", "retries": 0},
    "judge": {"engine": "http://127.0.0.1:9/v1#judge", "criteria": "Is it right?", "deadline": 1.0},
    "prm": {"model": "no/model"},
    "structure": {"alignment": "f1"},
    "think_format": {"answer_tags": True},
}


class Recorded:
    """A reward that keeps the outcomes of its last call; all else is the reward's own."""

    def __init__(self, reward: Reward):
        self.reward = reward
        self.outcomes: list[Outcome] = []

    def __call__(self, **arguments: Any) -> Any:
        self.outcomes = []
        if isinstance(self.reward, AsyncReward):
            return self._call_async(arguments)
        return self._record(self.reward.score(**arguments), arguments)

    async def _call_async(self, arguments: dict[str, Any]) -> list[float | None]:
        return self._record(await self.reward.score_async(**arguments), arguments)

    def _record(self, outcomes: list[Outcome], arguments: dict[str, Any]) -> list[float | None]:
        self.outcomes = outcomes
        return self.reward.report(outcomes, arguments.get("log_metric"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["reward"], name)

    def __reduce__(self) -> Any:
        return Recorded, (self.reward,)


def build_reward(*arguments: Any, **settings: Any) -> Recorded:
    """`rewards.build_reward`, recorded."""
    return Recorded(rewards.build_reward(*arguments, **settings))


def wrap(*arguments: Any, **settings: Any) -> Recorded:
    """`rewards.build.wrap`, recorded."""
    return Recorded(wrap_reward(*arguments, **settings))


def chat(*texts: str) -> list[list[dict[str, str]]]:
    """Completions as a chat model gives them."""
    return [[{"role": "assistant", "content": text}] for text in texts]


def statuses(reward: Recorded) -> list[str]:
    """The status of each outcome."""
    return [outcome.status for outcome in reward.outcomes]


def causes(reward: Recorded) -> list[str | None]:
    """The cause of each outcome."""
    return [outcome.cause for outcome in reward.outcomes]


def reused(reward: Recorded) -> list[str | None]:
    """Where each outcome was found, if it was not scored."""
    return [outcome.reused for outcome in reward.outcomes]


def call(reward: Any, *texts: str, **columns: Any) -> list[float | None]:
    """Call a reward as TRL calls it."""
    given = {
        "prompts": ["?"] * len(texts),
        "completions": chat(*texts),
        "completion_ids": [[1] * len(t) for t in texts],
    }
    returned = reward(**(given | columns))
    return asyncio.run(returned) if asyncio.iscoroutine(returned) else returned
