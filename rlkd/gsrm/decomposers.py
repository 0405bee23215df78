"""Decomposers: from a reasoning trace to its `Structure`.

| name         | how                                                         | needs |
| ------------ | ----------------------------------------------------------- | ----- |
| `rules`      | a step is a sentence with a calculation                     | nothing |
| `native`     | reads the tagged steps that the student itself has written  | a student that writes them |
| `prompted`   | asks an instruct model to rewrite the trace as tagged steps | an engine |
| `generative` | asks a model that was trained to list the steps             | an engine with such a model |

A trace in which there is nothing to find gives a structure without steps: that is a fact about the trace, and its
author earns little for it. A decomposer that breaks down gives a `DecompositionError` for that trace: that is a fact
about the decomposer, and nobody is to be punished for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from rlkd.engines.base import Completion, Engine, EngineError, Message, Sampling
from rlkd.gsrm.grounding import grounded
from rlkd.gsrm.lines import parse_lines
from rlkd.gsrm.training import request
from rlkd.steps import sentences, split_calculation, strip_calculator_marks
from rlkd.structure import JSON_SCHEMA, Step, Structure, parse, render


@dataclass(frozen=True, slots=True)
class Trace:
    """A reasoning trace, and the problem that it is about.

    `teacher`: its structure is what students are measured by. So it must be whole (a teacher cut short would make
    every student look better), and it is worth keeping, as it comes again every epoch and every run.
    """

    question: str
    text: str
    teacher: bool = False


class DecompositionError(RuntimeError):
    """The decomposer gave nothing usable for a trace; this says nothing about the trace."""


class UnreadableReply(DecompositionError):
    """The decomposer's model answered, but not with a structure that can be used."""


Level = Literal["calculation", "sentence", "equation"]
Check = Callable[[Trace, Structure], str | None]


class Decomposer(Protocol):
    """Anything that turns traces into structures, many at once."""

    fingerprint: str
    """What makes two decomposers give the same structures: the key under which results are kept."""
    costly: bool
    """Whether a result is worth keeping on disk."""

    async def decompose(self, traces: Sequence[Trace]) -> list[Structure | DecompositionError]:
        """One structure, or the error in its place, a trace."""


def reasoning_part(text: str) -> str:
    """The reasoning of a completion: what stands before a closing think tag, without the answer block.

    RLKD (arXiv 2505.16142) decomposes the text before `</think>`; a completion without that tag is reasoning as a
    whole, up to an `<answer>` tag.
    """
    before, closing, _ = text.partition("</think>")
    reasoning = before if closing else text.partition("<answer>")[0]
    return reasoning.strip().removeprefix("<think>").strip()


class RulesDecomposer:
    """Steps by rules: a sentence and its calculation. Instant, exact on GSM8K's notation, blind to everything else.

    meta is the sentence, question the calculation, answer its result (`rlkd.steps.split_calculation`).

    Args:
        level: `calculation` (default) keeps only sentences that have a result, so that a sentence of mere talk does
            not push the later steps out of line with the teacher's. `sentence` keeps every sentence. `equation` takes
            every calculation that has a result, two in one sentence as well, and no sentence: steps without meta.
    """

    costly = False

    def __init__(self, level: Level = "calculation"):
        if level not in get_args(Level):
            raise ValueError(f"level {level!r}: expected 'calculation', 'sentence' or 'equation'")
        self.level = level
        self.fingerprint = f"rules/{level}/1"

    async def decompose(self, traces: Sequence[Trace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`."""
        return [self._structure(trace.text) for trace in traces]

    def _structure(self, text: str) -> Structure:
        if self.level == "equation":
            return grounded(Structure(), reasoning_part(text))
        steps = []
        for sentence in sentences(reasoning_part(text)):
            # The plain calculation first: the student's text has no calculator marks, and like goes with like.
            question, answer = split_calculation(strip_calculator_marks(sentence))
            if answer is None:
                question, answer = split_calculation(sentence)
            if answer is not None or self.level == "sentence":
                steps.append(Step(meta=strip_calculator_marks(sentence), question=question, answer=answer))
        return Structure(tuple(steps))


class NativeDecomposer:
    """The steps that the author of the trace has tagged itself (`rlkd.structure` says how they are written)."""

    costly = False
    fingerprint = "native/1"

    async def decompose(self, traces: Sequence[Trace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`. A trace without tags has no steps."""
        # Not `reasoning_part`: without think tags it ends at an answer tag, and a step holds one.
        return [parse(trace.text.partition("</think>")[0]).structure for trace in traces]


class _EngineDecomposer(ABC):
    """A model that writes structures, greedily: one call for all traces, one more for those it spoilt.

    A reply without a complete step is asked for once more, with a little randomness, then given up as an
    `UnreadableReply`; so is one in which `check` finds a fault. A request that the engine failed is repeated once. A
    trace without any reasoning has no steps, and is not asked about.
    """

    costly = True

    kind: str

    def __init__(self, engine: Engine, *, max_new_tokens: int, deadline: float | None, check: Check | None = None):
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self.deadline = deadline
        self.check = check
        asked = hashlib.sha256(json.dumps(self._messages(Trace("", ""))).encode()).hexdigest()[:12]
        checked = f"{check.__name__}/" if check else ""
        self.fingerprint = f"{self.kind}/{engine.name}/{max_new_tokens}/{asked}/{checked}1"

    @abstractmethod
    def _messages(self, trace: Trace, guided: bool = False) -> list[Message]:
        """The request about one trace."""

    @abstractmethod
    def _read(self, reply: Completion) -> Structure:
        """The complete steps of a reply; none where it cannot be read."""

    def _finished(self, trace: Trace, structure: Structure) -> Structure:
        """What becomes of a structure that could be read."""
        return structure

    async def decompose(self, traces: Sequence[Trace]) -> list[Structure | DecompositionError]:
        """See `Decomposer`."""
        share = None if self.deadline is None else self.deadline / 2
        greedy = Sampling(max_new_tokens=self.max_new_tokens)
        random = Sampling(max_new_tokens=self.max_new_tokens, temperature=0.7, seed=1)
        found: list[Structure | DecompositionError] = [Structure() for _ in traces]
        # Asked about no reasoning at all, a model would solve the problem itself, to the student's credit.
        asked = [i for i, trace in enumerate(traces) if reasoning_part(trace.text)]

        async def ask(places: Sequence[int], sampling: Sampling) -> None:
            replies = await self._ask([traces[i] for i in places], sampling, share)
            for i, structure in zip(places, replies, strict=True):
                found[i] = structure

        if asked:
            await ask(asked, greedy)
        # A spoilt reply would be spoilt again without some randomness; a request that got none is simply repeated.
        spoilt = [i for i in asked if isinstance(found[i], UnreadableReply)]
        unanswered = [i for i in asked if isinstance(found[i], DecompositionError) and i not in set(spoilt)]
        again = [(spoilt, random), (unanswered, greedy)]
        await asyncio.gather(*(ask(places, sampling) for places, sampling in again if places))
        return found

    async def _ask(
        self, traces: Sequence[Trace], sampling: Sampling, deadline: float | None
    ) -> list[Structure | DecompositionError]:
        guided = self.guided
        if guided:
            sampling = replace(sampling, json_schema=JSON_SCHEMA)
        prompts = [self._messages(trace, guided) for trace in traces]
        replies = await self.engine.generate(prompts, sampling, deadline=deadline)
        structures: list[Structure | DecompositionError] = []
        for trace, reply in zip(traces, replies, strict=True):
            if isinstance(reply, EngineError):
                structures.append(DecompositionError(str(reply)))
                continue
            if trace.teacher and reply.finish_reason == "length":
                structures.append(
                    UnreadableReply(
                        f"{self.engine.name} ran out of max_new_tokens ({self.max_new_tokens}) in the middle of a "
                        f"teacher's structure; raise it"
                    )
                )
                continue
            structure = self._read(reply)
            if not len(structure):
                structures.append(
                    UnreadableReply(f"no complete step in the reply of {self.engine.name}: {reply.text[:200]!r}")
                )
            elif self.check and (fault := self.check(trace, structure)):
                structures.append(UnreadableReply(fault))
            else:
                structures.append(self._finished(trace, structure))
        return structures

    @property
    def guided(self) -> bool:
        """Whether replies follow a JSON schema."""
        return self.engine.guided


class PromptedDecomposer(_EngineDecomposer):
    """Any instruct model, asked to rewrite a trace as steps, with two worked examples of our own.

    Where the engine can guide its decoding, the reply is JSON under a schema; else it is tagged text.

    Args:
        engine: the model.
        max_new_tokens: room for the structure, in tokens. A student's structure that runs out of it counts up to
            its last complete step; a teacher's is an error.
        deadline: seconds for one batch of traces, retry included half and half.
        check: what is wrong with a structure of a trace, or None; such a structure is asked for again, then an error.
    """

    kind = "prompted"

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int = 1024,
        deadline: float | None = 300.0,
        check: Check | None = None,
    ):
        super().__init__(engine, max_new_tokens=max_new_tokens, deadline=deadline, check=check)

    def _messages(self, trace: Trace, guided: bool = False) -> list[Message]:
        form = _as_json if guided else render
        messages: list[Message] = [{"role": "system", "content": _INSTRUCTIONS}]
        for example, structure in _EXAMPLES:
            messages.append({"role": "user", "content": _request(example)})
            messages.append({"role": "assistant", "content": form(structure)})
        messages.append({"role": "user", "content": _request(Trace(trace.question, reasoning_part(trace.text)))})
        return messages

    def _read(self, reply: Completion) -> Structure:
        return parse(reply.text).structure


class GenerativeDecomposer(_EngineDecomposer):
    """A model that was fine-tuned to list the steps of a trace, one a line (`recipes/gsrm.py`, `rlkd.gsrm.lines`).

    This is the GSRM of RLKD (arXiv 2505.16142): it needs no worked examples, and so a small model will do, and a
    quarter of the prompt. A line that comes again is left out: small models that lose the thread repeat themselves.

    Args:
        engine: the fine-tuned model, such as `transformers:embedded-gsrm`.
        max_new_tokens: room for the structure, in tokens, as for `PromptedDecomposer`.
        deadline: seconds for one batch of traces, retry included half and half.
        ground: hold the calculations and results of the reply against the trace (`rlkd.gsrm.grounding`).
    """

    kind = "generative"
    guided = False

    def __init__(
        self,
        engine: Engine,
        *,
        max_new_tokens: int = 256,
        deadline: float | None = 300.0,
        ground: bool = True,
    ):
        super().__init__(engine, max_new_tokens=max_new_tokens, deadline=deadline)
        self.ground = ground
        self.fingerprint += "/grounded-1" if ground else ""

    def _messages(self, trace: Trace, guided: bool = False) -> list[Message]:
        return request(trace.question, reasoning_part(trace.text))

    def _read(self, reply: Completion) -> Structure:
        return Structure(dict.fromkeys(parse_lines(reply.text, complete=reply.finish_reason == "stop")))

    def _finished(self, trace: Trace, structure: Structure) -> Structure:
        # A trace to which the model made up all steps has none; a reply without steps is another matter.
        return grounded(structure, reasoning_part(trace.text)) if self.ground else structure


def _as_json(structure: Structure) -> str:
    return json.dumps({"steps": structure.to_list()}, ensure_ascii=False)


def _request(trace: Trace) -> str:
    return f"Problem:\n{trace.question}\n\nReasoning:\n{trace.text}\n\nList the steps that this reasoning takes."


_INSTRUCTIONS = """\
You read a piece of reasoning about a problem and write down the steps it takes, in order. You report, you do not \
solve: a step that is wrong in the reasoning stays wrong in your list, and a step that is not there is not added.

Each step has three parts:
- meta: the sub-problem that the step turns to, as a question, so that one sees why it comes now. It does not give \
away the result.
- question: what exactly is worked out there, for instance the calculation, without its result.
- answer: the result that the reasoning gets, as short as possible.

Take the finest steps that still have a result of their own. Leave out repeated facts of the problem. Stop when the \
problem is answered; the last answer is the final one."""

_EXAMPLES: tuple[tuple[Trace, Structure], ...] = (
    (
        Trace(
            "A cinema has 12 rows of 9 seats. On Friday 70 seats were taken. How many stayed empty?",
            "Let me see. The hall has 12 * 9 = 108 seats in all. 70 of these were taken, which leaves 108 - 70 = 38 "
            "empty seats.",
        ),
        Structure(
            (
                Step("How many seats does the cinema have?", "12 * 9", "108"),
                Step("How many seats stayed empty on Friday?", "108 - 70", "38"),
            )
        ),
    ),
    (
        Trace(
            "Solve x^2 - 5x + 6 = 0 and give the larger solution.",
            "I look for two numbers with product 6 and sum 5, and these are 2 and 3. So the polynomial is (x-2)(x-3). "
            "A product is zero when a factor is, so x = 2 or x = 3. The larger one is 3.",
        ),
        Structure(
            (
                Step("Which two numbers factor the polynomial?", "product 6 and sum 5", "2 and 3"),
                Step("What does the polynomial look like as a product?", "factor x^2 - 5x + 6", "(x-2)(x-3)"),
                Step("For which x is the product zero?", "(x-2)(x-3) = 0", "x = 2 or x = 3"),
                Step("Which solution is the larger one?", "compare 2 and 3", "3"),
            )
        ),
    ),
)
