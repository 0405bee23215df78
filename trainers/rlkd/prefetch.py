"""Computes rewards while the model computes the log-probabilities of the completions.

TRL calls the rewards after the forward passes that follow generation: those of the old policy, if several optimizer
steps share one generation, and those of the reference model, if `beta` is above 0. A judge on a server could have
answered meanwhile. With `reward_prefetch`, rewards get the completions at once, and TRL's own call finds the outcomes.
They are the same either way: a call with other arguments than those of the prefetch is computed as without it.

Prefetched are rewards that run elsewhere or concurrently anyway: asynchronous ones, those in worker processes, and
`per_sample` ones. Any other function in this process may use what the model is using.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rewards import Outcome, Reward
from rewards.runner import AsyncReward


class PrefetchedReward:
    """A reward that computes its outcomes in a thread from `start` on; `score` returns them."""

    def __init__(self, reward: Reward):
        self.reward = reward
        self._arguments: dict[str, Any] | None = None
        self._outcomes: Future[list[Outcome]] = Future()
        self._logged: list[tuple[str, Any, Any]] = []

    def start(self, rows: Sequence[Mapping[str, Any]], completions: Any, completion_ids: Any, state: Any) -> None:
        """Start on a batch, with the columns that TRL will pass."""
        columns = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
        self._arguments = {name: [row[name] for row in rows] for name in columns}
        self._arguments |= {"prompts": [row["prompt"] for row in rows], "completions": completions}
        self._arguments |= {"completion_ids": completion_ids, "trainer_state": state}
        self._outcomes, self._logged = Future(), []
        logged = self._logged
        # Logged only when TRL calls: until then, TRL may still be at the batch before.
        recorders: dict[str, Any] = {
            "log_metric": lambda name, value: logged.append(("log_metric", name, value)),
            "log_extra": lambda column, values: logged.append(("log_extra", column, values)),
        }
        # A daemon instead of a thread pool: the end of the process does not wait for a judge.
        arguments = (self.reward, self._arguments | recorders, self._outcomes)
        threading.Thread(target=_compute, args=arguments, daemon=True).start()

    def score(self, **arguments: Any) -> list[Outcome]:
        """The outcomes of the batch that was started; for other arguments, those of the reward."""
        given = {name: value for name, value in arguments.items() if name not in ("log_metric", "log_extra")}
        try:
            is_started = bool(given == self._arguments)
        except Exception:  # a column of arrays
            is_started = False
        self._arguments = None
        if not is_started:
            return self.reward.score(**arguments)
        outcomes = self._outcomes.result()
        for callback, name, value in self._logged:
            if arguments.get(callback) is not None:
                arguments[callback](name, value)
        return outcomes


def prefetched_rewards(rewards: Sequence[Any]) -> dict[str, PrefetchedReward]:
    """The rewards that may run while the model computes, by name."""
    return {
        reward.__name__: PrefetchedReward(reward)
        for reward in rewards
        if isinstance(reward, Reward)
        and (isinstance(reward, AsyncReward) or reward.is_isolated or reward.options.per_sample)
    }


def _compute(reward: Reward, arguments: dict[str, Any], outcomes: Future[list[Outcome]]) -> None:
    try:
        outcomes.set_result(reward.score(**arguments))
    except BaseException as error:
        outcomes.set_exception(error)
