"""Validity by a process reward model: the probability of "good" under a model trained on labelled steps.

Either a transformers model with a classification head, read at the end of the step, or an engine's model that chooses
between two labels. Code from a checkpoint is never executed, so models that need `trust_remote_code` do not load here;
serve them and use `engine`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from rlkd.classifiers import Classifier, load_classifier, read_classifier
from rlkd.data.rows import question_of
from rlkd.engines import EnginePool
from rlkd.engines.base import EngineError
from rlkd.engines.choice_mass import check_choice_mass
from rlkd.engines.local import ModelInProcess, ModelUse, models_used
from rlkd.engines.tokens import batches_by_length
from rlkd.errors import UsageError
from rlkd.validity.contract import Scale, StepQuestion, ValidityError, warn_of_failed_steps
from rlkd.validity.engine import ROLE
from rlkd.validity.templates import compiled, render, rendered_example

# As in TRL's PRMTrainer: a line end after the problem and each step, and the prediction is read there. A step comes
# without the white space after it, so that both proposals are read at the same token.
TEXT = "{{ problem }}\n{{ prefix }}{{ step }}\n"
CHAT = """\
Problem:
{{ problem }}

Solution so far:
{{ prefix or "(nothing yet)" }}

Next step:
{{ step }}

Is the next step correct?"""


class PRMScorer:
    """The scorer `prm`: the probability of the good class for a step after its prefix.

    Args:
        model: folder or hub id of a model for token classification (read at the last token) or sequence
            classification; or:
        engine: spec of a chat model, read by the log-probabilities of two `labels`.
        good: class of `model` that means a good step, by name or number. By default the second of two; a model with
            one output is read as a logit.
        labels: the good label and the bad one for `engine`.
        template: jinja2 text of the input, with `problem`, `prefix`, `step`, `answer` and `columns`; by default
            `TEXT` for `model` and `CHAT` for `engine`.
        device: device of `model`; by default cuda, else mps, else cpu.
        batch_tokens: limit of rows x longest row in a batch of `model`.
        deadline: seconds for one call.

    Raises ValueError for both or neither of `model` and `engine`, and for a template that does not render.
    """

    __name__ = "prm"
    scale: Scale = "probability"

    def __init__(
        self,
        model: str | None = None,
        *,
        engine: str | None = None,
        good: str | int | None = None,
        labels: Sequence[str] = ("Yes", "No"),
        template: str | None = None,
        device: str | None = None,
        batch_tokens: int = 8192,
        deadline: float | None = 300.0,
    ) -> None:
        if (model is None) == (engine is None):
            raise ValueError("expected either `model` (a classification head) or `engine` (chooses a label)")
        if len(labels) != 2 or (engine is None and tuple(labels) != ("Yes", "No")):
            raise ValueError(f"labels={list(labels)!r}: expected two, the good one first, together with `engine`")
        if engine is not None and good is not None:
            raise ValueError(f"good={good!r} is a class of `model`; with `engine` set `labels`")
        self.model = model
        self.good = good
        self.labels = tuple(labels)
        self.template = (TEXT if engine is None else CHAT) if template is None else template
        compiled(self.template)
        self.device = device
        self.batch_tokens = batch_tokens
        self.deadline = deadline
        self._engines = EnginePool(deadline)
        self.engine = None if engine is None else self._engines.open("validity scorer 'prm'", engine)
        self._loaded: Classifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": None}

    @property
    def models_in_process(self) -> list[ModelUse]:
        """The model, unless it is an engine's elsewhere."""
        if self.engine is not None:
            return models_used(ROLE, [(self.engine, 1)], requests=None)
        return [ModelUse(ROLE, ModelInProcess(str(self.model), "auto", self.device, self.batch_tokens))]

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine does not respond, a label is not what it replies, or the model fails."""
        if self.engine is not None:
            self._engines.check_ready()
            if (text := rendered_example(self.template)) is not None:
                example: Any = [{"role": "user", "content": text}]
                check_choice_mass(self.engine, example, self.labels, "validity scorer 'prm'", self.deadline)
        else:
            self._load()

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | None]:
        """As `ValidityScorer`. Raises `ValidityError` where the model does not load or lacks the class."""
        texts = [render(self.template, question, question_of(question.prompt)) for question in questions]
        values, causes = await (asyncio.to_thread(self._classify, texts) if self.engine is None else self._ask(texts))
        warn_of_failed_steps(self.__name__, causes, len(questions))
        return values

    async def _ask(self, texts: list[str]) -> tuple[list[float | None], list[str]]:
        assert self.engine is not None
        prompts: list[Any] = [[{"role": "user", "content": text}] for text in texts]
        replies = await self.engine.choose(prompts, self.labels, deadline=self.deadline)
        values: list[float | None] = []
        causes = []
        for reply in replies:
            if isinstance(reply, EngineError):
                causes.append(str(reply))
                values.append(None)
                continue
            good, bad = reply
            if math.isnan(good - bad):  # neither label is among the server's top log-probabilities
                causes.append(
                    f"no comparable log-probabilities of {self.labels[0]} ({good}) and {self.labels[1]} ({bad})"
                )
                values.append(None)
            else:
                values.append((1 + math.tanh((good - bad) / 2)) / 2)
        return values, causes

    def _classify(self, texts: list[str]) -> tuple[list[float | None], list[str]]:
        end = math.inf if self.deadline is None else time.monotonic() + self.deadline
        values: list[float | None] = [None] * len(texts)
        causes = []
        loaded = self._load()
        rows: list[tuple[int, list[int]]] = []
        for index, text in enumerate(texts):
            ids = loaded.facts.tokenizer(text)["input_ids"]
            if 0 < len(ids) <= loaded.facts.context:
                rows.append((index, ids))
            else:
                causes.append(f"{len(ids)} tokens do not fit the model's context of {loaded.facts.context}")
        limit = 0 if loaded.pad_id is None else self.batch_tokens
        for chosen in batches_by_length([len(ids) for _, ids in rows], limit):
            batch = [rows[number] for number in chosen]
            if time.monotonic() >= end:
                causes += [f"the deadline of {self.deadline} s passed"] * len(batch)
                continue
            try:
                found = loaded.good_shares([ids for _, ids in batch], [[len(ids) - 1] for _, ids in batch])
            except Exception as error:
                causes += [f"the model failed ({type(error).__name__}: {error})"] * len(batch)
                continue
            for (index, _), [value] in zip(batch, found, strict=True):
                values[index] = value
                if not math.isfinite(value):
                    causes.append(f"the model returned {value}")
        return values, causes

    def _load(self) -> Classifier:
        if self._loaded is None:
            try:
                facts = read_classifier(str(self.model), self.good)
                self._loaded = load_classifier(facts, device=self.device)
            except UsageError as error:
                raise ValidityError(str(error)) from error
        return self._loaded
