"""The base of scorers that send requests to an engine: opened once, and checked before a run."""

from __future__ import annotations

import asyncio
from typing import Any

from rlkd.engines import Engine, EnginePool
from rlkd.engines.local import ModelUse, models_used
from rlkd.engines.tokens import load_tokenizer
from rlkd.rendering import engine_text
from rlkd.validity.contract import StepQuestion, ValidityError

ROLE = "validity scorer"
"""What the model of a scorer is for, in the estimate of memory."""


class EngineScorer:
    """A scorer by the model of an engine; raises ValueError for a spec that names no engine.

    Args:
        spec: spec of the engine (`rlkd.engines.open_engine`); a server needs the name of its model.
        deadline: seconds for one call of the scorer.
        tokenizer: name of the tokenizer whose chat template renders messages; by default that of the engine's model.
        new_tokens: most tokens that a request writes; 1 where it scores a text.
    """

    __name__: str

    def __init__(
        self, spec: str, deadline: float | None, tokenizer: str | None = None, *, new_tokens: int = 1
    ) -> None:
        self.role = f"validity scorer {self.__name__!r}"
        self._engines = EnginePool(deadline)
        self.engine: Engine = self._engines.open(self.role, spec)
        self.deadline = deadline
        self._new_tokens = new_tokens
        self._tokenizer_name = tokenizer
        self._tokenizer: Any = None

    @property
    def models_in_process(self) -> list[ModelUse]:
        """The engine's model, if it is in this process."""
        return models_used(ROLE, [(self.engine, self._new_tokens)], requests=None)

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine does not respond or lacks the model."""
        self._engines.check_ready()

    async def texts(self, questions: list[StepQuestion]) -> list[str]:
        """Prompt and prefix of each question as one text; raises `ValidityError` without a tokenizer for messages."""
        return await asyncio.to_thread(lambda: [self._text(question) for question in questions])

    def _text(self, question: StepQuestion) -> str:
        if isinstance(question.prompt, str):
            return question.prompt + question.prefix
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        arguments = getattr(self.engine, "chat_template_kwargs", None)
        return engine_text(self._tokenizer, question.prompt, arguments) + question.prefix

    def _load_tokenizer(self) -> Any:
        name = self._tokenizer_name or self.engine.tokenizer
        if name is None:
            raise ValidityError(
                f"{self.role}: the prompts are messages, and a server cannot continue in the middle of its reply. Set "
                f"`tokenizer` to the name of the model whose chat template renders them."
            )
        try:
            tokenizer = load_tokenizer(name)
        except ValueError as error:
            raise ValidityError(f"{self.role}: {error}") from error
        if not tokenizer.chat_template:
            raise ValidityError(f"{self.role}: the tokenizer {name!r} has no chat template for messages.")
        return tokenizer
