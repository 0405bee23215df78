"""Validity by rollouts: how often a model that continues after a step reaches the gold answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from rlkd.answers import VerificationError, are_correct, extract_answer
from rlkd.engines.base import EngineError, Sampling
from rlkd.validity.contract import Scale, StepQuestion, Undecided, warn_of_failed_steps
from rlkd.validity.engine import EngineScorer


class RolloutScorer(EngineScorer):
    """The scorer `rollout`: (k + 1) / (N + 2), where k of N sampled continuations announce the gold answer.

    This is Laplace's rule: with 4 samples a validity is at least 1/6 and at most 5/6. Where no continuation of any
    proposal under a prefix is right, the samples say nothing about their order, nor that the teacher's step is bad
    (the model may be too weak): all of them are undecided, hence weight 1. So both proposals must come in one call, as
    `score_pairs` does. A step that announces an answer is judged by it, without sampling.

    Needs `answer`: a question without one, or with one that cannot be parsed, gets None. Continuations that fail are
    left out of N.

    Args:
        engine: spec of the continuing model: the teacher, or any model that solves a good share of the problems.
        samples: N.
        temperature, top_p, max_new_tokens: sampling of the continuations. A truncated one counts as wrong.
        fallback: `last_number` takes the last number of a continuation that announces no answer.
        seed: random seed of the samples, the same in every call, so that a resumed run draws the same.
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
        super().__init__(engine, deadline, tokenizer, new_tokens=max_new_tokens)

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | Undecided | None]:
        """As `ValidityScorer`."""
        counts = await self.count(questions)
        right: dict[str, int] = defaultdict(int)
        prefixes = [repr((question.prompt, question.prefix)) for question in questions]
        for prefix, count in zip(prefixes, counts, strict=True):
            right[prefix] += count[0] if count else 0
        values: list[float | Undecided | None] = []
        for prefix, count in zip(prefixes, counts, strict=True):
            if count is None:
                values.append(None)
            else:
                values.append((count[0] + 1) / (count[1] + 2) if right[prefix] else "undecided")
        return values

    async def count(self, questions: Sequence[StepQuestion]) -> list[tuple[int, int] | None]:
        """(k, N) of each question; None where N is 0, which is logged."""
        traces, causes = await self._traces(questions)
        golds = [question.answer or "" for question in questions for _ in range(self.samples)]
        flat = [trace or "" for row in traces for trace in row]
        verdicts = await asyncio.to_thread(are_correct, flat, golds, self.fallback)
        counts: list[tuple[int, int] | None] = []
        for index, (question, row) in enumerate(zip(questions, traces, strict=True)):
            if not question.answer:
                causes.append("the question has no answer to verify against")
                counts.append(None)
                continue
            correct = []
            for trace, verdict in zip(row, verdicts[index * self.samples :], strict=False):
                if trace is None:
                    continue
                if verdict is None:
                    causes.append(f"the answer {question.answer[:80]!r} cannot be parsed")
                elif isinstance(verdict, VerificationError):
                    causes.append(str(verdict))
                else:
                    correct.append(verdict)
            counts.append((sum(correct), len(correct)) if correct else None)
        consequence = f"continuations failed, {counts.count(None)} of {len(questions)} steps have none"
        warn_of_failed_steps(self.__name__, causes, len(questions) * self.samples, consequence)
        return counts

    async def _traces(self, questions: Sequence[StepQuestion]) -> tuple[list[list[str | None]], list[str]]:
        undecided = [
            index
            for index, question in enumerate(questions)
            if question.answer and extract_answer(question.prefix + question.step) is None
        ]
        traces: list[list[str | None]] = [[q.prefix + q.step] * self.samples for q in questions]
        causes = []
        if undecided:
            texts = await self.texts([questions[index] for index in undecided])
            starts = [text + questions[index].step for text, index in zip(texts, undecided, strict=True)]
            prompts = [start for start in starts for _ in range(self.samples)]
            replies = await self.engine.generate(prompts, self.sampling, deadline=self.deadline)
            for number, reply in enumerate(replies):
                index, sample = undecided[number // self.samples], number % self.samples
                if isinstance(reply, EngineError):
                    traces[index][sample] = None
                    causes.append(str(reply))
                else:
                    traces[index][sample] = questions[index].prefix + questions[index].step + reply.text
        return traces, causes
