"""Decomposers: turn reasoning traces into structures.

A trace without steps gives an empty structure, for which its author earns little. A decomposer that fails gives a
`DecompositionError` for that trace, which is never counted against the author.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Protocol, get_args

from rlkd.engines.base import Completion, Engine, EngineError, Message, Sampling
from rlkd.gsrm.grounding import grounded
from rlkd.gsrm.lines import parse_lines
from rlkd.gsrm.prompts import Domain, fine_tuned_request, instruct_request
from rlkd.gsrm.traces import ReasoningTrace, reasoning_part
from rlkd.steps import sentences, split_calculation, strip_calculator_marks
from rlkd.structure import JSON_SCHEMA, Step, Structure, parse

BUILT_IN = {
    "rules": "rlkd.gsrm.decomposers.RulesDecomposer",
    "native": "rlkd.gsrm.decomposers.NativeDecomposer",
    "prompted": "rlkd.gsrm.decomposers.PromptedDecomposer",
    "generative": "rlkd.gsrm.decomposers.GenerativeDecomposer",
}


class DecompositionError(RuntimeError):
    """The decomposer failed on a trace; this says nothing about the trace."""


class UnreadableReply(DecompositionError):
    """The decomposer's model replied, but not with a usable structure."""


Level = Literal["calculation", "sentence", "equation"]
Check = Callable[[ReasoningTrace, Structure], str | None]


class Decomposer(Protocol):
    """Turns traces into structures, many at once.

    Optional attribute: `decomposes_teachers`, true where a teacher's rationale should be decomposed even if the data
    has its structure, because the decomposer's steps look different from those of the data.
    """

    fingerprint: str
    """Equal for two decomposers that give the same structures; part of the key under which results are stored."""
    costly: bool
    """Whether results are worth storing on disk."""

    async def decompose(self, traces: Sequence[ReasoningTrace]) -> list[Structure | DecompositionError]:
        """One structure or error per trace."""


class RulesDecomposer:
    """Steps by rules: a sentence and its calculation. Instant, exact on GSM8K's notation, blind to anything else.

    meta is the sentence, question the calculation, answer its result (`rlkd.steps.split_calculation`).

    Args:
        level: `calculation` (default) keeps only sentences with a result, so that filler does not shift the later
            steps against the teacher's. `sentence` keeps every sentence. `equation` takes every calculation with a
            result, also two in one sentence, and no sentence: steps without meta.
    """

    costly = False
    decomposes_teachers = True

    def __init__(self, level: Level = "calculation"):
        if level not in get_args(Level):
            raise ValueError(f"level {level!r}: expected 'calculation', 'sentence' or 'equation'")
        self.level = level
        self.fingerprint = f"rules/{level}/1"

    async def decompose(self, traces: Sequence[ReasoningTrace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`."""
        return [self._structure(trace.text) for trace in traces]

    def _structure(self, text: str) -> Structure:
        if self.level == "equation":
            return grounded(Structure(), reasoning_part(text))
        steps = []
        for sentence in sentences(reasoning_part(text)):
            # The plain calculation first: a student's text has no calculator marks, and both sides must read alike.
            question, answer = split_calculation(strip_calculator_marks(sentence))
            if answer is None:
                question, answer = split_calculation(sentence)
            if answer is not None or self.level == "sentence":
                steps.append(Step(meta=strip_calculator_marks(sentence), question=question, answer=answer))
        return Structure(tuple(steps))


class NativeDecomposer:
    """The steps that the author of the trace tagged itself (`rlkd.structure` defines the form)."""

    costly = False
    fingerprint = "native/1"

    async def decompose(self, traces: Sequence[ReasoningTrace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`. A trace without tags has no steps."""
        # Not `reasoning_part`: without think tags that ends at an answer tag, and every step has one.
        return [parse(trace.text.partition("</think>")[0]).structure for trace in traces]


class _EngineDecomposer(ABC):
    """A model that writes structures, greedily: one call for all traces, one more for those that failed.

    A reply without a complete step, or with a fault that `check` finds, is an `UnreadableReply` after one retry with a
    little randomness. A request that the engine failed on is repeated once.
    """

    costly = True
    kind: ClassVar[str]
    default_tokens: ClassVar[int]

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int | None = None,
        deadline: float | None = 300.0,
        check: Check | None = None,
    ):
        self.engine = engine
        self.max_new_tokens = self.default_tokens if max_new_tokens is None else max_new_tokens
        self.deadline = deadline
        self.check = check
        prompt = hashlib.sha256(json.dumps(self._messages(ReasoningTrace("", ""))).encode()).hexdigest()[:12]
        checked = f"{check.__name__}/" if check else ""
        self.fingerprint = f"{self.kind}/{engine.name}/{self.max_new_tokens}/{prompt}/{checked}1"

    @abstractmethod
    def _messages(self, trace: ReasoningTrace, guided: bool = False) -> list[Message]:
        """The prompt for one trace."""

    @abstractmethod
    def _read(self, reply: Completion) -> Structure:
        """The complete steps of a reply; none where it cannot be read."""

    def _finished(self, trace: ReasoningTrace, structure: Structure) -> Structure:
        """The final form of a structure that could be read."""
        return structure

    async def decompose(self, traces: Sequence[ReasoningTrace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`."""
        deadline = None if self.deadline is None else self.deadline / 2
        greedy = Sampling(max_new_tokens=self.max_new_tokens)
        random = Sampling(max_new_tokens=self.max_new_tokens, temperature=0.7, seed=1)
        results: list[Structure | DecompositionError] = [Structure() for _ in traces]
        # Without any reasoning to read, a model would solve the problem itself, to the student's credit.
        sent = [i for i, trace in enumerate(traces) if reasoning_part(trace.text)]

        async def send(indices: Sequence[int], sampling: Sampling) -> None:
            guided = self.guided
            if guided:
                sampling = replace(sampling, json_schema=JSON_SCHEMA)
            prompts = [self._messages(traces[i], guided) for i in indices]
            replies = await self.engine.generate(prompts, sampling, deadline=deadline)
            for i, reply in zip(indices, replies, strict=True):
                results[i] = self._result(traces[i], reply)

        if sent:
            await send(sent, greedy)
        # Greedy decoding would repeat an unreadable reply; a request that failed is simply repeated.
        unreadable = [i for i in sent if isinstance(results[i], UnreadableReply)]
        failed = [i for i in sent if isinstance(results[i], DecompositionError) and i not in set(unreadable)]
        retries = [(unreadable, random), (failed, greedy)]
        await asyncio.gather(*(send(indices, sampling) for indices, sampling in retries if indices))
        return results

    def _result(self, trace: ReasoningTrace, reply: Completion | EngineError) -> Structure | DecompositionError:
        if isinstance(reply, EngineError):
            return DecompositionError(str(reply))
        if trace.teacher and reply.finish_reason == "length":
            return UnreadableReply(
                f"{self.engine.name} ran out of max_new_tokens ({self.max_new_tokens}) in the middle of a "
                f"teacher's structure; raise it"
            )
        structure = self._read(reply)
        if not len(structure):
            return UnreadableReply(f"no complete step in the reply of {self.engine.name}: {reply.text[:200]!r}")
        if self.check and (fault := self.check(trace, structure)):
            return UnreadableReply(fault)
        return self._finished(trace, structure)

    @property
    def guided(self) -> bool:
        """Whether replies follow a JSON schema."""
        return self.engine.guided


class PromptedDecomposer(_EngineDecomposer):
    """An instruct model rewrites a trace as steps, with two few-shot examples of our own.

    The reply is JSON under a schema where the engine supports guided decoding, else tagged text.

    Args:
        max_new_tokens: maximum tokens per structure. A student's truncated structure counts up to its last complete
            step; a teacher's is an error.
        deadline: seconds for one batch of traces; the retry has half of them.
        check: function that returns the fault of a structure, or None; a faulty structure is retried once.
        domain: of the few-shot examples: `math`, `code`, `puzzle` or `science`.
    """

    kind = "prompted"
    default_tokens = 1024

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int | None = None,
        deadline: float | None = 300.0,
        check: Check | None = None,
        domain: Domain = "math",
    ):
        if domain not in get_args(Domain):
            raise ValueError(f"domain {domain!r}: expected one of {', '.join(get_args(Domain))}")
        self.domain: Domain = domain  # read by `_messages`, of which the fingerprint is made
        super().__init__(engine, max_new_tokens=max_new_tokens, deadline=deadline, check=check)

    def _messages(self, trace: ReasoningTrace, guided: bool = False) -> list[Message]:
        return instruct_request(trace.question, reasoning_part(trace.text), as_json=guided, domain=self.domain)

    def _read(self, reply: Completion) -> Structure:
        return parse(reply.text).structure


class GenerativeDecomposer(_EngineDecomposer):
    """A model fine-tuned to list the steps of a trace, one per line (`recipes/gsrm.py`, `rlkd.gsrm.lines`).

    This is the GSRM of RLKD (arXiv 2505.16142). It needs no few-shot examples, so a small model and a quarter of the
    prompt are enough. Repeated lines are dropped: small models that lose the thread repeat themselves.

    Args (others as for `PromptedDecomposer`):
        ground: whether calculations and results are corrected by the trace (`rlkd.gsrm.grounding`).
    """

    kind = "generative"
    default_tokens = 256
    guided = False
    decomposes_teachers = True

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int | None = None,
        deadline: float | None = 300.0,
        ground: bool = True,
    ):
        super().__init__(engine, max_new_tokens=max_new_tokens, deadline=deadline)
        self.ground = ground
        self.fingerprint += "/grounded-1" if ground else ""

    def _messages(self, trace: ReasoningTrace, guided: bool = False) -> list[Message]:
        return fine_tuned_request(trace.question, reasoning_part(trace.text))

    def _read(self, reply: Completion) -> Structure:
        return Structure(dict.fromkeys(parse_lines(reply.text, complete=reply.finish_reason == "stop")))

    def _finished(self, trace: ReasoningTrace, structure: Structure) -> Structure:
        # Where the model made up all steps, the trace has none; a reply without steps is an error.
        return grounded(structure, reasoning_part(trace.text)) if self.ground else structure
