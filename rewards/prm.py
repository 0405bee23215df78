"""The reward `prm`: a process reward model scores each step of a completion, and the steps' scores become one.

The models are those with a classification head: for tokens, read at the separator after each step in one pass over the
completion (TRL's former PRMTrainer made such models, and Qwen2.5-Math-PRM has the same form with `<extra_0>` as
separator); or for sequences, read once for each step with all steps before it.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from rewards.contract import Failed, RewardError, RewardOptions, Scored
from rlkd.classifiers import Classifier, ClassifierFacts, load_classifier, read_classifier
from rlkd.data.rows import completion_text, question_of
from rlkd.engines.base import identified
from rlkd.engines.local import Dtype, ModelInProcess, ModelUse
from rlkd.engines.tokens import batches_by_length
from rlkd.errors import UsageError
from rlkd.gsrm.traces import reasoning_part
from rlkd.steps import sentences

Reduce = Literal["min", "mean", "product", "last"]
Layout = Literal["plain", "chat"]
Sample = tuple[str, tuple[str, ...]]
"""A problem and the steps of a completion."""
Row = tuple[list[int], list[int]]
"""The ids of an input, and the indices at which its steps end."""

_REDUCED: Mapping[Reduce, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
    "last": lambda scores: scores[-1],
}


class ProcessReward:
    """The probability that the steps of a completion are good, by a process reward model, in [0, 1].

    Steps are the sentences of the reasoning (`rlkd.steps.sentences`, `rlkd.gsrm.traces.reasoning_part`); the line
    `#### 72` is none. A completion without steps scores 0, also under `product`. A completion fails, which is never a
    0, if its input does not fit the model's context, if the deadline passes before it, or if the model fails.

    Args:
        model: folder or hub id of a model for token classification or sequence classification.
        reduce: `min` over the steps, `mean`, `product`, or the `last` step's score.
        good: class that means a good step, by name or number; default: the second of two. A model with one output is
            read as a logit.
        separator: text after each step, whose last token has the score; TRL's default was the line break. A
            special token of the tokenizer is taken out of the steps, so that a completion adds no places to be read.
        layout: `plain`: ids of the problem, then of each step and the separator, as TRL's PRMTrainer joined them.
            `chat`: the chat template around the problem and, as the assistant's message, the steps, each followed by
            the separator, which must be one token then (Qwen2.5-Math-PRM).
        system_prompt: of `chat`.
        device: by default cuda, else mps, else cpu.
        dtype: of the weights; `auto` is float32 on a CPU, and the checkpoint's elsewhere.
        batch_tokens: limit of rows x longest row in a batch.
        deadline: seconds for a call.
    """

    __name__ = "prm"
    # Asynchronous: the pass runs in a thread, and a batch is one call. Equal completions are scored once.
    reward_options = RewardOptions(per_sample=True, timeout=None)
    loads_models = True

    def __init__(
        self,
        model: str,
        *,
        reduce: Reduce = "min",
        good: str | int | None = None,
        separator: str = "\n",
        layout: Layout = "plain",
        system_prompt: str | None = None,
        device: str | None = None,
        dtype: Dtype = "auto",
        batch_tokens: int = 8192,
        deadline: float | None = 300.0,
    ):
        for name, value, known in (("reduce", reduce, Reduce), ("layout", layout, Layout), ("dtype", dtype, Dtype)):
            if value not in get_args(known):
                raise ValueError(f"{name} {value!r}: expected {', '.join(get_args(known))}")
        if not separator:
            raise ValueError("separator '': expected a text, which marks the end of a step")
        if system_prompt is not None and layout != "chat":
            raise ValueError(f"system_prompt is for layout 'chat'; this is {layout!r}")
        self.reduce = reduce
        self.good = good
        self.separator = separator
        self.layout = layout
        self.system_prompt = system_prompt
        self.deadline = deadline
        self._model = ModelInProcess(str(model), dtype, device, batch_tokens)
        self.models_in_process = [ModelUse("process reward model", self._model)]
        # Part of the keys of cached scores, beside the parameters: the weights, not only the name.
        self.fingerprint = f"{identified(str(model))}/1"
        self.card_settings = {"process reward model": str(model), "reduce": reduce}
        self._facts: ClassifierFacts | None = None
        self._loaded: Classifier | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"} | {
            "_facts": None,
            "_loaded": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def describe(self) -> str:
        """What computes this reward, in a line."""
        return f"{self._model.model}, {self.reduce} over the steps"

    def check_ready(self) -> None:
        """Raise `RewardError` where the checkpoint is no such model, or its tokenizer does not fit; no weights."""
        self._read()

    def _read(self) -> ClassifierFacts:
        if self._facts is None:
            role = f"reward {self.__name__!r}"
            try:
                facts = read_classifier(self._model.model, self.good, role=role)
            except UsageError as error:
                raise RewardError(str(error)) from error
            if fault := self._fault(facts):
                raise RewardError(f"{role}: {fault}")
            self._facts = facts
        return self._facts

    def _fault(self, facts: ClassifierFacts) -> str | None:
        """Why the separator or the layout does not fit the checkpoint; None where they do."""
        if self.layout == "plain":
            there = facts.tokenizer(self.separator, add_special_tokens=False)["input_ids"]
            return None if there else f"separator {self.separator!r} has no tokens in {facts.name}"
        if not facts.per_token:
            return f"layout 'chat' is for token classification; {facts.name} classifies sequences"
        if not facts.tokenizer.chat_template:
            return f"{facts.name} has no chat template, which layout 'chat' needs"
        if self.separator not in facts.tokenizer.get_added_vocab():
            return (
                f"separator {self.separator!r} is no special token of {facts.name}, by which layout 'chat' finds the "
                f"ends of steps (Qwen2.5-Math-PRM has <extra_0>)"
            )
        return None

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | Scored | Failed | None]:
        """Score a batch; raises `RewardError` where the model does not load."""
        return await asyncio.to_thread(self._score, self._samples(prompts, completions))

    def keys(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        """What decides each score: the problem and the steps."""
        return [[problem, list(steps)] for problem, steps in self._samples(prompts, completions)]

    def _samples(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[Sample]:
        return [
            (question_of(prompt), tuple(sentences(reasoning_part(completion_text(completion)))))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _score(self, samples: Sequence[Sample]) -> list[float | Scored | Failed | None]:
        end = math.inf if self.deadline is None else time.monotonic() + self.deadline
        with self._lock:  # one pass at a time, and one load
            facts = self._read()
            results: list[float | Scored | Failed | None] = [Scored(0.0, {"steps": []}) for _ in samples]
            rows: list[tuple[int, Row]] = []
            for index, (problem, steps) in enumerate(samples):
                if not steps:
                    continue
                own = self._rows(facts, problem, steps)
                longest = max(len(ids) for ids, _ in own)
                if longest > facts.context:
                    results[index] = Failed(
                        f"{longest} tokens do not fit the context of {facts.context} of {facts.name}"
                    )
                elif (read := sum(len(places) for _, places in own)) != len(steps):
                    results[index] = Failed(
                        f"the chat template of {facts.name} shows {read} ends of {len(steps)} steps"
                    )
                else:
                    rows += [(index, row) for row in own]
            shares: dict[int, list[float] | str] = {}
            for index, found in self._shares(facts, rows, end):
                before = shares.setdefault(index, [])
                if isinstance(found, str):
                    shares[index] = found
                elif isinstance(before, list):
                    before += found
            for index, values in shares.items():
                results[index] = self._reduced(values)
            return results

    def _reduced(self, values: list[float] | str) -> Scored | Failed:
        if isinstance(values, str):
            return Failed(values)
        if not all(map(math.isfinite, values)):
            return Failed(f"the model returned {next(value for value in values if not math.isfinite(value))}")
        return Scored(_REDUCED[self.reduce](values), {"steps": values})

    def _shares(
        self, facts: ClassifierFacts, rows: Sequence[tuple[int, Row]], end: float
    ) -> list[tuple[int, list[float] | str]]:
        """The scores at the places of each row, in the order of the rows; a text says why there are none."""
        if not rows:
            return []
        if self._loaded is None:
            try:
                self._loaded = load_classifier(
                    facts, device=self._model.device, dtype=self._model.dtype, role=f"reward {self.__name__!r}"
                )
            except UsageError as error:
                raise RewardError(str(error)) from error
        found: list[list[float] | str] = [[] for _ in rows]
        limit = 0 if self._loaded.pad_id is None else self._model.batch_tokens
        for batch in batches_by_length([len(ids) for _, (ids, _) in rows], limit):
            if time.monotonic() >= end:
                values: Sequence[list[float] | str] = [f"the deadline of {self.deadline} s passed"] * len(batch)
            else:
                try:
                    values = self._loaded.good_shares(*zip(*(rows[i][1] for i in batch), strict=True))
                except Exception as error:  # out of memory, or whatever a model raises
                    values = [f"the model failed ({type(error).__name__}: {error})"] * len(batch)
            for i, value in zip(batch, values, strict=True):
                found[i] = value
        return [(index, value) for (index, _), value in zip(rows, found, strict=True)]

    def _rows(self, facts: ClassifierFacts, problem: str, steps: Sequence[str]) -> list[Row]:
        """The input of a completion with the ends of its steps; for a head for sequences, one for each step."""
        tokenizer = facts.tokenizer
        if self.separator in tokenizer.get_added_vocab():
            steps = [step.replace(self.separator, " ") for step in steps]
        if self.layout == "chat":
            return [self._chat_row(tokenizer, problem, steps)]

        def encoded(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        ids = [*([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]), *encoded(problem)]
        mark, places, rows = encoded(self.separator), [], []
        for step in steps:
            ids = [*ids, *encoded(step), *mark]
            places.append(len(ids) - 1)
            rows.append((ids, [len(ids) - 1]))
        return [(ids, places)] if facts.per_token else rows

    def _chat_row(self, tokenizer: Any, problem: str, steps: Sequence[str]) -> Row:
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt is not None else []
        messages.append({"role": "user", "content": problem.replace(self.separator, " ")})
        messages.append({"role": "assistant", "content": "".join(f"{step}{self.separator}" for step in steps)})
        ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        mark = tokenizer.convert_tokens_to_ids(self.separator)
        return ids, [place for place, token in enumerate(ids) if token == mark]
