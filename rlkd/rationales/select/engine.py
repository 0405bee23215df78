"""Selectors with an engine: opened from a spec or shared by a run, with its prompt and its cached results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rlkd.cache import Cache, cache_key
from rlkd.engines import EnginePool
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question

TEMPLATE = "Question: {question}\nAnswer: "
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

    `template` is the text before a rationale, with `{question}` in it. For an instruct model, write its chat markup
    out there: an engine cannot continue in the middle of a message.
    """

    def __init__(
        self, student: str | Engine | None, template: str, cache: Cache | None, deadline: float | None
    ) -> None:
        check_template(template)
        super().__init__(student, cache, deadline)
        self.template = template

    def prompt(self, question: Question) -> str:
        """The text before a rationale, without the space at its end, which belongs to the following text."""
        return prompt_text(self.template, question)

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
