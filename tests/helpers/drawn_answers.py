"""An engine without a model: its answers depend on prompt, seed and place in the call, as real draws do."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from rlkd.engines import Completion, Engine, EngineError, Sampling


class DrawnAnswers(Engine):
    """Answers "The answer is N." with a small N; `log` has the size of each call.

    `stop_after`: calls after which one is cancelled, as a kill would do; `fails`: texts whose requests fail;
    `seconds` per call.
    """

    def __init__(self, model: str, *, remote: bool = False, seconds: float = 0.0):
        self.model = model
        self.name = f"drawn:{model}"
        self.remote = self.is_remote = remote
        self.seconds = seconds
        self.concurrency = None if remote else 1
        self.log: list[int] = []
        self.stop_after: int | None = None
        self.fails: set[str] = set()

    async def generate(
        self, prompts: Sequence[Any], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        if self.stop_after is not None and len(self.log) >= self.stop_after:
            raise KeyboardInterrupt
        self.log.append(len(prompts))
        await asyncio.sleep(self.seconds)
        return [self._answer(str(prompt), sampling, i) for i, prompt in enumerate(prompts)]

    def _answer(self, prompt: str, sampling: Sampling, place: int) -> Completion | EngineError:
        if any(text in prompt for text in self.fails):
            return EngineError(self.name, "no answer.")
        drawn = [] if sampling.temperature == 0 else [sampling.seed, place]
        number = hashlib.sha256(f"{prompt} {drawn}".encode()).digest()[0] % 4
        return Completion(f"1 + 2 = 3, so the answer is {number}.", "stop" if number else "length", 9)
