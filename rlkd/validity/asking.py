"""An engine as a scorer uses it: opened once, its prompts rendered, its servers checked before a run."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from rlkd.engines import Engine, EnginePool
from rlkd.models import resolve_model
from rlkd.validity.contract import StepQuestion, ValidityError


class Asking:
    """The engine of one scorer.

    Args:
        role: who needs it, for errors.
        spec: as `rlkd.engines.open_engine` takes it; a server with the name of its model.
        deadline: seconds for one call of the scorer.
        tokenizer: name of the tokenizer whose chat template renders messages; by default that of the engine's model.

    Raises ValueError where the spec names no engine.
    """

    def __init__(self, role: str, spec: str | None, deadline: float | None, tokenizer: str | None = None) -> None:
        self._engines = EnginePool(deadline)
        self.role = role
        self._spec = spec
        self.engine: Engine = self._engines.open(role, spec)
        self.deadline = deadline
        self._tokenizer_name = tokenizer
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Asking, (self.role, self._spec, self.deadline, self._tokenizer_name)

    def check_ready(self) -> None:
        """Raise `UsageError` where a server does not answer or lacks the model."""
        self._engines.check_ready()

    async def texts(self, questions: list[StepQuestion]) -> list[str]:
        """Prompt and prefix of each question as one text, messages through the chat template.

        Raises `ValidityError` for messages and no tokenizer to render them with.
        """
        return await asyncio.to_thread(lambda: [self._text(question) for question in questions])

    def _text(self, question: StepQuestion) -> str:
        if isinstance(question.prompt, str):
            return question.prompt + question.prefix
        tokenizer = self._load()
        text = str(tokenizer.apply_chat_template(question.prompt, add_generation_prompt=True, tokenize=False))
        # The engine adds the tokenizer's special tokens to text; the template has written the first one already.
        start = tokenizer.bos_token
        if start and text.startswith(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
            text = text[len(start) :]
        return text + question.prefix

    def _load(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                name = self._tokenizer_name or self.engine.tokenizer
                if name is None:
                    raise ValidityError(
                        f"{self.role}: the prompts are messages, which a server cannot continue in the middle of its "
                        f"reply. Set `tokenizer` to the name of the model whose chat template renders them."
                    )
                try:
                    self._tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
                except (OSError, ValueError) as error:
                    raise ValidityError(f"{self.role}: the tokenizer {name!r} does not load: {error}") from error
                if not self._tokenizer.chat_template:
                    self._tokenizer = None
                    raise ValidityError(f"{self.role}: the tokenizer {name!r} has no chat template for messages.")
            return self._tokenizer
