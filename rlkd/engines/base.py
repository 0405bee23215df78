"""The contract of an engine: a frozen model that answers batches of requests (`docs/engines.md`).

1. Results are aligned with the requests. A failed request has an `EngineError` *instance* as its result, and never
   costs the others. The coroutines raise only for misuse (`TypeError`, `ValueError`) and for cancellation.
2. `deadline` is the time in seconds for the whole call. A request that is unfinished then becomes an `EngineError`;
   finished results are returned.
3. An engine leaves the global random state alone, and pickles as its constructor arguments.
4. Callers never test for a backend's class, only for an attribute of `Engine` or an optional capability.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from rlkd.models import weights_identity

S = TypeVar("S")
T = TypeVar("T")

Message = dict[str, str]
Prompt = str | list[Message]
"""Text goes in as it is; messages go through the model's chat template, with a generation prompt at the end."""


@dataclass(frozen=True)
class Sampling:
    """How to generate: `temperature` 0 is greedy; a completion ends before the first of the `stop` strings.

    `seed` makes sampling repeatable: request number i of a call draws from a stream of its own. `json_schema` asks for
    text that follows the schema; an engine that cannot guide its decoding ignores it (`Engine.guided`).
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    json_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r}: expected a whole number of at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature!r}: expected 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r}: expected a number above 0 and up to 1")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r}: expected a tuple of non-empty strings, such as ('\\n\\n',)")
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise ValueError(f"seed={self.seed!r}: expected None or a whole number of at least 0")
        if self.json_schema is not None and not isinstance(self.json_schema, dict):
            raise ValueError(f"json_schema is a {type(self.json_schema).__name__}: expected a JSON schema as a dict")


@dataclass(frozen=True)
class Contrast:
    """How a second prompt counts in contrastive decoding: log p(token | first) - `weight` * log p(token | second).

    Only tokens with p(token | first) of at least `plausibility` times that of the likeliest one are candidates (Li et
    al. 2022, arXiv 2210.15097); 0 allows all.
    """

    weight: float = 0.5
    plausibility: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "plausibility"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number from 0 to 1")


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt. `n_tokens` counts every token generated, an end token included."""

    text: str
    finish_reason: Literal["stop", "length"]
    n_tokens: int


@dataclass(frozen=True)
class TokenScores:
    """The natural log-probability of each token of a given continuation, given the prompt and the tokens before it."""

    logprobs: tuple[float, ...]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of the continuation."""
        return len(self.logprobs)

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation; 0 where it is empty."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True)
class RankedScores(TokenScores):
    """Token scores with the rank of each token among all possible ones: 1 for the likeliest."""

    ranks: tuple[int, ...] = ()


class EngineError(Exception):
    """A request that an engine could not answer: which engine, what happened, and the way out."""

    def __init__(self, engine: str, what: str, way_out: str = "") -> None:
        super().__init__(engine, what, way_out)
        self.engine = engine
        self.what = what
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.engine}: {self.what}" + (f" {self.way_out}" if self.way_out else "")

    @classmethod
    def deadline_passed(cls, engine: str, deadline: float | None) -> EngineError:
        """The error of a request that was unfinished when the deadline of its call passed."""
        after = "the deadline" if deadline is None else f"the deadline of {deadline:g} s"
        return cls(engine, f"{after} passed before this request was finished.", "Send fewer at once, or allow more.")


class Engine(Protocol):
    """A frozen model. A backend is a subclass: it implements `generate`, and `score` where it can.

    Each constructor argument is kept as an attribute of the same name, which is how an engine pickles.
    `docs/engines.md` explains the attributes; `name` stands in logs and in the keys of caches and has no secrets.
    """

    name: str
    guided: bool = False
    is_remote: bool = False
    concurrency: int | None = 1
    replicas: int = 1
    tokenizer: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def identity(self) -> str | None:
        """The model wherever it runs, for results that are stored for long; None where its name is unknown."""
        return self.name

    @abstractmethod
    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt."""

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[TokenScores | EngineError]:
        """Return the log-probabilities of every continuation, given its prompt."""
        refusal = EngineError(self.name, "this engine computes no log-probabilities.", "Name another one.")
        return [refusal for _ in check_requests(requests)]

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice after every prompt, in the order of `choices`."""
        prompts, choices = check_prompts(prompts), check_choices(choices)
        scores = await self.score([(prompt, choice) for prompt in prompts for choice in choices], deadline=deadline)
        results: list[tuple[float, ...] | EngineError] = []
        for start in range(0, len(scores), len(choices)):
            row = scores[start : start + len(choices)]
            error = next((item for item in row if isinstance(item, EngineError)), None)
            results.append(error or tuple(item.total for item in row if isinstance(item, TokenScores)))
        return results

    async def check_ready(self) -> None:
        """Raise `EngineError` where the model is missing or its server does not answer. Reads no weights."""

    async def close(self) -> None:
        """Free the engine's resources. A later request acquires them again."""

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return partial(type(self), **arguments), ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


@dataclass(frozen=True)
class TopTokens:
    """The k likeliest tokens at n successive positions, at temperature 1; `ids` and `logprobs` [n][k], `taken` [n].

    Natural log-probabilities over the whole vocabulary, the likeliest first; `taken` is that of the token itself.
    """

    ids: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    taken: Sequence[float]


@runtime_checkable
class TopLogprobsEngine(Protocol):
    """The capability of an engine to give the likeliest tokens of each position, as distillation needs them."""

    async def encode(self, texts: Sequence[str], *, deadline: float | None = None) -> list[list[int] | EngineError]:
        """Return the token ids of each text, without special tokens."""

    async def top_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], k: int, *, deadline: float | None = None
    ) -> list[TopTokens | EngineError]:
        """Return the k likeliest tokens at the positions `start` (at least 1) to the last of each sequence of ids."""


@runtime_checkable
class TokenRanksEngine(Protocol):
    """The capability of an engine to give the rank of each token of a continuation."""

    async def score_with_ranks(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[RankedScores | EngineError]:
        """`score`, with the rank of every token."""


@runtime_checkable
class ContrastiveEngine(Protocol):
    """The capability of an engine to decode towards one prompt and away from another."""

    async def generate_contrasted(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        sampling: Sampling,
        contrast: Contrast,
        *,
        deadline: float | None = None,
    ) -> list[Completion | EngineError]:
        """A completion of the first prompt of each pair, contrasted with the second."""


def check_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Raises `TypeError` for a prompt that is neither text nor messages."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts is one string ({prompts[:40]!r}...): expected a list of prompts, such as [prompt]")
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        if (
            isinstance(prompt, list)
            and prompt
            and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in prompt)
        ):
            continue
        raise TypeError(
            f"prompt {index} is {str(prompt)[:80]!r} ({type(prompt).__name__}): expected a string or a non-empty "
            f"list of messages, such as [{{'role': 'user', 'content': '...'}}]"
        )
    return list(prompts)


def check_requests(requests: Sequence[tuple[Prompt, str]]) -> list[tuple[Prompt, str]]:
    """Raises `TypeError` for a request of `score` that is not a pair of prompt and text."""
    for index, request in enumerate(requests):
        if not (isinstance(request, tuple) and len(request) == 2 and isinstance(request[1], str)):
            raise TypeError(f"request {index} is {str(request)[:80]!r}: expected a pair (prompt, continuation text)")
    check_prompts([prompt for prompt, _ in requests])
    return list(requests)


def check_choices(choices: Sequence[str]) -> list[str]:
    """Raises `ValueError` unless the choices differ in more than case and outer spaces."""
    if isinstance(choices, str):
        raise ValueError(f"choices is one string ({choices!r}): expected a list of strings")
    plain = [choice.strip().casefold() for choice in choices]
    if not plain or "" in plain or len(set(plain)) < len(plain):
        raise ValueError(
            f"choices={list(choices)!r}: expected non-empty strings that differ in more than case and outer spaces"
        )
    return list(choices)


def distinct(items: Sequence[T]) -> tuple[list[T], list[int]]:
    """The distinct items in order of appearance, and for every item its index among them.

    >>> distinct(["a", "b", "a"])
    (['a', 'b'], [0, 1, 0])
    """
    indices: dict[Hashable, int] = {}
    where = [indices.setdefault(repr(item), len(indices)) for item in items]
    first = dict(zip(reversed(where), reversed(items), strict=True))
    return [first[index] for index in range(len(indices))], where


async def answer_distinct(items: Sequence[S], answer: Callable[[list[S]], Awaitable[list[T]]]) -> list[T]:
    """Return what `answer` returns for the distinct items, aligned with all of them."""
    unique, where = distinct(items)
    results = await answer(unique)
    return [results[index] for index in where]


def identified(name: str) -> str:
    """Return a model's name with what tells its weights apart, where they are files: `runs/gsrm#1a2b3c4d`."""
    identity = weights_identity(name)
    return f"{name}#{identity}" if identity else name


class CheckedEngine(Engine):
    """The front of the built-in engines: requests are checked, and equal ones with one answer are sent once."""

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt; greedy requests that are equal are computed once."""
        prompts, complete = check_prompts(prompts), partial(self._complete_all, sampling, deadline)
        return await (answer_distinct(prompts, complete) if sampling.temperature == 0 else complete(prompts))

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[TokenScores | EngineError]:
        """Return the log-probabilities of every continuation; `tokens.py` says where a continuation begins."""
        return await answer_distinct(check_requests(requests), partial(self._score_all, deadline))

    @abstractmethod
    async def _complete_all(
        self, sampling: Sampling, deadline: float | None, prompts: list[Prompt]
    ) -> list[Completion | EngineError]: ...

    @abstractmethod
    async def _score_all(
        self, deadline: float | None, requests: list[tuple[Prompt, str]]
    ) -> list[TokenScores | EngineError]: ...


class _Shared:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.process = os.getpid()

    def running_loop(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None or self.thread is None or not self.thread.is_alive():
                self.loop = asyncio.new_event_loop()
                self.thread = threading.Thread(target=self.loop.run_forever, name="rlkd-engines", daemon=True)
                self.thread.start()
            return self.loop


_shared = _Shared()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, and return its result, or raise its error.

    All callers share one event loop in a daemon thread, so that connections outlive a call. An interrupt of the
    waiting thread cancels the coroutine. Raises `RuntimeError` where the caller runs on the shared loop itself.
    """
    global _shared
    if _shared.process != os.getpid():
        _shared = _Shared()  # a forked child inherits the object but not the thread, and perhaps a held lock
    loop = _shared.running_loop()
    if threading.current_thread() is _shared.thread:
        coroutine.close()
        raise RuntimeError(
            "run() was called from a coroutine that run() itself is running: await the coroutine instead"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
