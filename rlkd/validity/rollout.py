"""Validity by rollouts: how often a model that goes on from a step arrives at the right answer."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from rlkd.answers import VerificationError, are_correct, extract_answer
from rlkd.engines.base import EngineError, Sampling
from rlkd.validity.asking import Asking
from rlkd.validity.contract import Scale, StepQuestion

logger = logging.getLogger(__name__)


class Rollout:
    """(k + 1) / (N + 2), where k of N sampled completions of prefix and step announce the right answer.

    This is Laplace's rule: with 4 samples a validity is never surer than 1/6 or 5/6. Where no completion of any
    proposal under a prefix is right, the sampling says nothing about their order, nor that the teacher's step is bad
    (the model may just be too weak): all of them get None, hence weight 1. So both proposals must come in one call,
    as they do by `score_pairs`. A step that announces an answer itself is judged by it, and nothing is sampled.

    Needs `answer`: a question without one, or with one that cannot be read, gets None. Completions that fail are left
    out of N.

    Args:
        engine: spec of the model that goes on; the teacher, or any model that solves a good share of the problems.
        samples: N.
        temperature, top_p, max_new_tokens: of the completions. One that is cut off before it answers counts as wrong.
        fallback: `last_number` takes the last number of a completion that announces no answer
            (`rlkd.answers.extract_answer`).
        seed: of the samples; the same in every call, so that a resumed run goes on as it would have.
        tokenizer: name of the tokenizer whose chat template renders messages; by default that of the engine's model.
        deadline: seconds for one call.

    Raises ValueError for values outside their ranges.
    """

    __name__ = "rollout"
    scale: Scale = "probability"

    def __init__(
        self,
        engine: str,
        *,
        samples: int = 4,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        fallback: Literal["none", "last_number"] = "none",
        seed: int = 0,
        tokenizer: str | None = None,
        deadline: float | None = 600.0,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: expected at least 1")
        if samples > 1 and temperature == 0:
            raise ValueError(f"samples={samples} at temperature 0 are all the same: set samples 1, or a temperature")
        self.samples = samples
        self.sampling = Sampling(max_new_tokens, temperature, top_p, seed=seed)
        self.fallback: Literal["none", "last_number"] = fallback
        self.asking = Asking("validity scorer 'rollout'", engine, deadline, tokenizer)

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine is a server that does not answer or lacks the model."""
        self.asking.check_ready()

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | None]:
        """See `rlkd.validity.contract`."""
        counted = await self.count(questions)
        hits: dict[str, int] = defaultdict(int)
        keys = [repr((question.prompt, question.prefix)) for question in questions]
        for key, found in zip(keys, counted, strict=True):
            hits[key] += found[0] if found else 0
        return [
            None if found is None or not hits[key] else (found[0] + 1) / (found[1] + 2)
            for key, found in zip(keys, counted, strict=True)
        ]

    async def count(self, questions: Sequence[StepQuestion]) -> list[tuple[int, int] | None]:
        """(k, N) of each question, each for itself; None where nothing could be counted, which is logged."""
        traces, causes = await self._traces(questions)
        golds = [question.answer or "" for question in questions for _ in range(self.samples)]
        flat = [trace or "" for row in traces for trace in row]
        verdicts = await asyncio.to_thread(are_correct, flat, golds, self.fallback)
        counted: list[tuple[int, int] | None] = []
        for place, (question, row) in enumerate(zip(questions, traces, strict=True)):
            if not question.answer:
                causes.append("the question has no answer to verify against")
                counted.append(None)
                continue
            found = []
            for trace, verdict in zip(row, verdicts[place * self.samples :], strict=False):
                if trace is None:
                    continue
                if verdict is None:
                    causes.append(f"the answer {question.answer[:80]!r} cannot be read")
                elif isinstance(verdict, VerificationError):
                    causes.append(str(verdict))
                else:
                    found.append(verdict)
            counted.append((sum(found), len(found)) if found else None)
        if causes:
            failed = counted.count(None)
            logger.warning(
                "validity scorer 'rollout': %d completions failed, %d of %d steps have none; first: %s",
                len(causes),
                failed,
                len(questions),
                causes[0],
            )
        return counted

    async def _traces(self, questions: Sequence[StepQuestion]) -> tuple[list[list[str | None]], list[str]]:
        """N whole traces a question (None for one that failed), and why those failed that did."""
        open_places = [
            place
            for place, question in enumerate(questions)
            if question.answer and extract_answer(question.prefix + question.step) is None
        ]
        traces: list[list[str | None]] = [[q.prefix + q.step] * self.samples for q in questions]
        causes = []
        if open_places:
            texts = await self.asking.texts([questions[place] for place in open_places])
            starts = [text + questions[place].step for text, place in zip(texts, open_places, strict=True)]
            prompts = [start for start in starts for _ in range(self.samples)]
            replies = await self.asking.engine.generate(prompts, self.sampling, deadline=self.asking.deadline)
            for index, reply in enumerate(replies):
                place, sample = open_places[index // self.samples], index % self.samples
                if isinstance(reply, EngineError):
                    traces[place][sample] = None
                    causes.append(str(reply))
                else:
                    traces[place][sample] = questions[place].prefix + questions[place].step + reply.text
        return traces, causes
