"""Selectors with an engine: opened from a spec or shared by a run, with its prompt and its cached results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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


class WithStudent(WithEngine):
    """A selector with the student as its engine. `template`: the text before a rationale, with `{question}` in it."""

    def __init__(
        self, student: str | Engine | None, template: str, cache: Cache | None, deadline: float | None
    ) -> None:
        check_template(template)
        super().__init__(student, cache, deadline)
        self.template = template

    def prompt(self, question: Question) -> str:
        """The text before a rationale, without the space at its end, which belongs to the following text."""
        return prompt_text(self.template, question)


def check_template(template: str) -> None:
    """Raise ValueError for a template without a place for the question."""
    if "{question}" not in template:
        raise ValueError(f"template={template!r}: expected a text with {{question}} in it, such as {TEMPLATE!r}")


def prompt_text(template: str, question: Question, rationale: str = "", cue: str = "") -> str:
    """The template with its question, a rationale, and the cue for the answer."""
    return (template.replace("{question}", question.question) + rationale).rstrip() + cue


async def cached(
    cache: Cache | None,
    keys: Sequence[str],
    requests: Sequence[Request],
    compute: Callable[[list[Request]], Awaitable[Sequence[Any]]],
    batch: int,
) -> list[Any]:
    """The results of the requests, one each, from the cache or computed `batch` at a time and cached after each batch.

    Requests with equal keys are computed once. An `EngineError` is a result that is not cached.
    """
    results: dict[str, Any] = {}
    for start in range(0, len(requests), batch):
        some = zip(keys[start : start + batch], requests[start : start + batch], strict=True)
        missing = {key: request for key, request in some if key not in results}
        if cache is not None:
            results |= cache.get(list(missing))
        missing = {key: request for key, request in missing.items() if key not in results}
        if missing:
            computed = dict(zip(missing, await compute(list(missing.values())), strict=True))
            results |= computed
            if cache is not None:
                cache.put({key: value for key, value in computed.items() if not isinstance(value, EngineError)})
    return [results[key] for key in keys]


async def mean_surprisals(
    student: Engine, requests: Sequence[tuple[str, str]], cache: Cache | None, deadline: float | None
) -> list[float | EngineError]:
    """The mean surprisal of each continuation after its context, in nats per token.

    `requests` are pairs (context, continuation), scored 1,024 at a time. A continuation without tokens is an error.
    """

    async def compute(missing: list[tuple[str, str]]) -> list[float | EngineError]:
        results: list[float | EngineError] = []
        for (_, text), reply in zip(missing, await student.score(missing, deadline=deadline), strict=True):
            if isinstance(reply, EngineError):
                results.append(reply)
            elif not reply.n_tokens:
                results.append(EngineError(student.name, f"the text {text[:80]!r} has no tokens."))
            else:
                results.append(-reply.total / reply.n_tokens)
        return results

    keys = [cache_key("mean surprisal", 1, student.name, *request) for request in requests]
    return await cached(cache, keys, requests, compute, batch=1024)
