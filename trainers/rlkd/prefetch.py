"""Rewards that are worked out while the model computes the log-probabilities of the completions.

TRL asks the rewards when the forward passes behind the generation are over: those for the old policy, where several
optimizer steps share one generation, and those for the reference model, where `beta` is above 0. A judge on a server
could have answered meanwhile. With `reward_prefetch`, rewards get the completions as soon as they are there, and TRL's
own call finds the outcomes. They are the same either way: if that call turns out to be about anything else than what
was sent ahead, it is answered as if nothing had been.

Sent ahead are rewards that run elsewhere or side by side anyway: asynchronous ones, those in worker processes, and
`per_sample` ones. A function in this process that is none of these may use what the model is using.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from rewards import Outcome, Reward
from rewards.runner import AsyncReward
from rlkd.engines import run


class Ahead:
    """What a reward was asked before TRL asks it."""

    def __init__(self, arguments: dict[str, Any], judge: Callable[..., list[Outcome]]):
        self._arguments = arguments
        self._logged: list[tuple[str, Any, Any]] = []
        # What it logs is handed on when TRL asks: before that, TRL may still be at the batch before.
        recorders: dict[str, Any] = {
            "log_metric": lambda name, value: self._logged.append(("log_metric", name, value)),
            "log_extra": lambda column, values: self._logged.append(("log_extra", column, values)),
        }
        self._future: Future[list[Outcome]] = Future()
        # A daemon, and no pool of threads: the end of the process does not wait for a judge.
        threading.Thread(target=self._ask, args=(judge, {**arguments, **recorders}), daemon=True).start()

    def _ask(self, judge: Callable[..., list[Outcome]], arguments: dict[str, Any]) -> None:
        try:
            self._future.set_result(judge(**arguments))
        except BaseException as error:
            self._future.set_exception(error)

    def answers(self, arguments: dict[str, Any]) -> bool:
        """Whether `arguments`, as TRL gives them, are those that were sent ahead."""
        asked = {name: value for name, value in arguments.items() if name not in ("log_metric", "log_extra")}
        try:
            return bool(asked == self._arguments)
        except Exception:  # a column of arrays
            return False

    def result(self, arguments: dict[str, Any]) -> list[Outcome]:
        """The outcomes; what was logged goes on through the callbacks in `arguments`. Raises what was raised."""
        outcomes = self._future.result()
        for callback, name, value in self._logged:
            if arguments.get(callback) is not None:
                arguments[callback](name, value)
        return outcomes


class Prefetch:
    """Sends the completions of a generation batch to rewards ahead of TRL's own call."""

    def __init__(self, rewards: Sequence[Any]):
        self._rewards = [reward for reward in rewards if isinstance(reward, Reward) and _may_run_ahead(reward)]

    @property
    def names(self) -> list[str]:
        """The rewards that are sent ahead."""
        return [reward.__name__ for reward in self._rewards]

    def start(self, rows: Sequence[dict[str, Any]], completions: Any, completion_ids: Any, state: Any) -> None:
        """Send a batch, with the columns that TRL is going to give."""
        if not rows:
            return
        columns = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
        arguments: dict[str, Any] = {name: [row[name] for row in rows] for name in columns}
        arguments |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": completions,
            "completion_ids": completion_ids,
            "trainer_state": state,
        }
        for reward in self._rewards:
            reward.ahead = Ahead(arguments, _judge(reward))


def _may_run_ahead(reward: Reward) -> bool:
    return isinstance(reward, AsyncReward) or reward.is_isolated or reward.options.per_sample


def _judge(reward: Reward) -> Callable[..., list[Outcome]]:
    if isinstance(reward, AsyncReward):
        return lambda **arguments: run(reward.judge(**arguments))
    return reward.judge
