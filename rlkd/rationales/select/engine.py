"""Selectors with an engine: opened from a spec or shared by a run, with its prompt and its cached results."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

from rlkd.cache import Cache, cache_key
from rlkd.data.rows import build_prompt
from rlkd.data.samples import few_shot_examples
from rlkd.engines import EnginePool
from rlkd.engines.base import Engine, EngineError
from rlkd.engines.tokens import load_tokenizer
from rlkd.rationales.records import Question
from rlkd.rendering import engine_text

logger = logging.getLogger(__name__)

TEMPLATE = "Question: {question}\nAnswer: "
"""The text before a rationale for a model without a chat template."""
CUE = "\n####"

Request = TypeVar("Request")


class WithEngine:
    """A selector with one engine.

    Args:
        engine: a spec (`rlkd.engines.open_engine`; a server with the name of its model), or an open engine.
        cache: cache of its results.
        deadline: seconds for one call, None for no limit.

    Raises ValueError for a spec that names no engine.
    """

    __name__: str

    def __init__(self, engine: str | Engine | None, cache: Cache | None = None, deadline: float | None = None) -> None:
        self._engines = EnginePool(deadline)
        if engine is None or isinstance(engine, str):
            engine = self._engines.open(f"selector {self.__name__!r}", engine)
        self.engine: Engine = engine
        self.cache = cache
        self.deadline = deadline

    def check_ready(self) -> None:
        """Raise `UsageError` if a server that this has opened does not answer or lacks the model."""
        self._engines.check_ready()

    async def cached(
        self,
        kind: str,
        requests: Sequence[Request],
        compute: Callable[[list[Request]], Awaitable[Sequence[Any]]],
        batch: int,
        key: Callable[[Request], tuple[Any, ...]],
    ) -> list[Any]:
        """The results of the requests, one each, from the cache or computed and cached `batch` at a time.

        They are cached by kind, engine and `key`; requests with equal keys are computed once. An `EngineError` is a
        result that is not cached.
        """
        results: dict[str, Any] = {}
        keys = [cache_key(kind, 1, self.engine.name, *key(request)) for request in requests]
        for start in range(0, len(requests), batch):
            some = zip(keys[start : start + batch], requests[start : start + batch], strict=True)
            missing = {key: request for key, request in some if key not in results}
            if self.cache is not None:
                results |= self.cache.get(list(missing))
            missing = {key: request for key, request in missing.items() if key not in results}
            if missing:
                computed = dict(zip(missing, await compute(list(missing.values())), strict=True))
                results |= computed
                if self.cache is not None:
                    self.cache.put({key: each for key, each in computed.items() if not isinstance(each, EngineError)})
        return [results[key] for key in keys]


class WithStudent(WithEngine):
    """A selector with the student as its engine: a spec or an open engine, before training.

    Rationales are measured where the student will read and write them: behind the prompt of its training, that is its
    chat template with the run's system prompt and few-shot examples. A model without a chat template gets `TEMPLATE`,
    and so does a server whose engine names no tokenizer, with a warning.

    Args:
        template: text before a rationale, with `{question}` in it, in place of that prompt.
        prompt_style: `system_prompt` and `examples` (the number of few-shot examples) of the training.
    """

    def __init__(
        self,
        student: str | Engine | None,
        template: str | None,
        prompt_style: Mapping[str, Any] | None,
        cache: Cache | None,
        deadline: float | None,
    ) -> None:
        if template is not None:
            check_template(template)
        super().__init__(student, cache, deadline)
        self.template = template
        style = dict(prompt_style or {})
        self.system_prompt: str | None = style.pop("system_prompt", None)
        self.examples = few_shot_examples(style.pop("examples", 0))
        if style:
            raise ValueError(f"prompt_style: unknown {sorted(style)}; expected system_prompt and examples")

    def prompt(self, question: Question) -> str:
        """The text before a rationale."""
        if self._tokenizer is None:
            # Without the space at its end, which belongs to the following text.
            return prompt_text(self.template or TEMPLATE, question)
        messages = build_prompt(question.question, self.system_prompt, self.examples)
        return engine_text(self._tokenizer, messages, getattr(self.engine, "chat_template_kwargs", None))

    def continuation(self, text: str) -> str:
        """A rationale as it follows the prompt."""
        return text.strip() if self._tokenizer is not None else f" {text.strip()}"

    def up_to_answer(self, question: Question, rationale: str, cue: str) -> str:
        """Prompt, rationale (which may be empty) and the cue for the answer."""
        if self._tokenizer is None:
            return prompt_text(self.template or TEMPLATE, question, rationale, cue)
        return self.prompt(question) + (rationale.strip() + cue).lstrip()

    @cached_property
    def _tokenizer(self) -> Any:
        """The tokenizer whose chat template makes the prompt; None for a text template."""
        name = None if self.template is not None else getattr(self.engine, "tokenizer", None)
        if name is None:
            if self.template is None:
                logger.warning(
                    "selector %r: %s names no tokenizer, so the student is measured behind %r, and not behind the "
                    "prompt of its training. Name the tokenizer in the engine's spec, or set `template`.",
                    self.__name__,
                    self.engine.name,
                    TEMPLATE,
                )
            return None
        tokenizer = load_tokenizer(name)
        return tokenizer if getattr(tokenizer, "chat_template", None) else None

    async def mean_surprisals(self, requests: Sequence[tuple[str, str]]) -> list[float | EngineError]:
        """The mean surprisal in nats per token of each continuation, for pairs (context, continuation)."""
        score = partial(self.per_text, self.engine.score, lambda reply: -reply.total / reply.n_tokens)
        return await self.cached("mean surprisal", requests, score, batch=1024, key=tuple)

    async def per_text(
        self, score: Callable[..., Awaitable[Any]], figure: Callable[[Any], float], requests: list[tuple[str, str]]
    ) -> list[float | EngineError]:
        """A figure of each scored continuation; an error for one without tokens."""
        return [
            reply
            if isinstance(reply, EngineError)
            else figure(reply)
            if reply.n_tokens
            else EngineError(self.engine.name, f"the text {text[:80]!r} has no tokens.")
            for (_, text), reply in zip(requests, await score(requests, deadline=self.deadline), strict=True)
        ]


def check_template(template: str) -> None:
    """Raise ValueError for a template without a place for the question."""
    if "{question}" not in template:
        raise ValueError(f"template={template!r}: expected a text with {{question}} in it, such as {TEMPLATE!r}")


def prompt_text(template: str, question: Question, rationale: str = "", cue: str = "") -> str:
    """The template with its question, a rationale, and the cue for the answer."""
    return (template.replace("{question}", question.question) + rationale).rstrip() + cue
