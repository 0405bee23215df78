"""A top-k teacher behind an engine that gives the log-probabilities of a prompt's tokens, such as a vLLM server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.engines import Engine, EngineError, TopLogprobsEngine, open_engine, run
from rlkd.registry import SpecError
from rlkd.teachers.topk import TopK, check_k, checked_sequences
from rlkd.teachers.vocabulary import PROBE, vocabulary_fingerprint


class EngineTeacher:
    """A `TopKTeacher` behind any engine with the capability `TopLogprobsEngine`.

    Args:
        spec: spec of the engine (`rlkd.engines.open_engine`).
        k: tokens per position; a vLLM server must allow as many (`--max-logprobs`, by default 20).
        tokenizer: the student's; the first call refuses an engine whose ids of a text of many scripts differ.
        deadline: seconds for one call of `top_k`; until then requests wait for a server that restarts.
        options: options of the engine if it has them; by default 16 requests at a time and 300 s for an attempt.

    Raises `SpecError` for an engine without the capability, `UsageError` for an invalid k; `top_k` raises
    `EngineError`.
    """

    def __init__(self, spec: str, k: int, *, tokenizer: Any, deadline: float | None = None, **options: Any) -> None:
        check_k(k)
        self.engine: Engine = open_engine(spec, defaults={"concurrency": 16, "timeout": 300.0, **options})
        if not isinstance(self.engine, TopLogprobsEngine):
            raise SpecError(
                f"{self.engine.name} cannot be a top-k teacher: it does not give the log-probabilities of a prompt's "
                f"tokens. Name a vLLM server (http://HOST:PORT/v1#MODEL), or a backend with `encode` and "
                f"`top_logprobs`"
            )
        self._source: TopLogprobsEngine = self.engine
        self.k = k
        self.vocabulary = vocabulary_fingerprint(tokenizer)
        self.deadline = deadline
        self._probe: list[int] | None = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])

    @property
    def name(self) -> str:
        """The model's name at a server; without one in the spec, the address until the first request."""
        return f"vllm:{self.engine.identity or self.engine.name}" if self.engine.is_remote else self.engine.name

    def __repr__(self) -> str:
        return f"<top-{self.k} teacher {self.name}>"

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`: all sequences in one call, as many at a time as the engine's concurrency allows."""
        import torch

        sequences = checked_sequences(sequences, starts)
        self._check_tokenizer()
        results = []
        replies = run(self._source.top_logprobs(sequences, list(starts), self.k, deadline=self.deadline))
        for index, reply in enumerate(replies):
            if isinstance(reply, EngineError):
                what = f"sequence {index} of {len(replies)} ({len(sequences[index])} tokens): {reply.what}"
                raise EngineError(reply.engine, what, reply.way_out)
            ids, logprobs = torch.as_tensor(reply.ids), torch.as_tensor(reply.logprobs)
            shape = (len(reply.taken), self.k)
            taken = torch.as_tensor(reply.taken, dtype=torch.float32)
            results.append(TopK(ids.int().reshape(shape), logprobs.float().reshape(shape), taken))
        return results

    def _check_tokenizer(self) -> None:
        if self._probe is None:
            return
        [ids] = run(self._source.encode([PROBE], deadline=self.deadline))
        if isinstance(ids, EngineError):
            raise ids
        if ids != self._probe:
            pairs = enumerate(zip(ids, self._probe, strict=False))
            first = next((index for index, (teacher, student) in pairs if teacher != student), 0)
            raise EngineError(
                self.engine.name,
                f"the server's tokenizer is not the student's: for a text of many scripts it has {len(ids)} ids and "
                f"the student's {len(self._probe)}; the first that differ are {ids[first : first + 3]} and "
                f"{self._probe[first : first + 3]}.",
                "Serve a model with the student's vocabulary, or train on the teacher's texts: recipes/sft.py.",
            )
        self._probe = None
