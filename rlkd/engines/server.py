"""An engine that asks a server with OpenAI's protocol, such as `vllm serve`.

    vllm serve path/or/hub-id --served-model-name teacher
    ServerEngine("http://localhost:8000/v1", "teacher", concurrency=64)

What it sends: messages go to `/chat/completions` and text to `/completions`, at most `concurrency` requests at a time.
Connection errors, time-outs and the statuses 408, 409, 429 and 5xx are tried again after an exponential pause with
jitter, or after what `Retry-After` asks for; any other refusal is final. Equal requests of a call are sent once where
the answer is deterministic.

The key comes from the environment variable `api_key_env` when the connection is made. It is in no message, name or
pickle; a server that echoes it in an error has it blotted out. A server without keys needs no variable.

Limits. `score` needs a server that answers `echo` with log-probabilities, as vLLM does. `choose` reads the 20
likeliest first tokens. vLLM takes default sampling settings from the checkpoint's generation config unless it is
started with `--generation-config vllm`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from rlkd.engines.base import (
    Completion,
    EngineError,
    Prompt,
    Sampling,
    Scored,
    check_choices,
    check_prompts,
    check_requests,
    distinct,
)
from rlkd.engines.tokens import encode_continuation, encode_prompt

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5  # seconds; the most before the first retry, doubled at each
_LONGEST_PAUSE = 60.0
_TOP = 20  # the most that OpenAI's protocol allows, and vLLM's default limit


class ServerEngine:
    """A model behind an OpenAI-compatible server.

    `model` may be left out where the server offers exactly one; name it where results are cached, since the engine's
    name is complete only when the model is known. `timeout` is in seconds for one attempt, `retries` the attempts
    after the first. `tokenizer`, a folder or hub id, makes the tokens of `score` those of `tokens.py`; scoring
    messages needs it. One engine may serve several event loops; each has its own connections and `concurrency`.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 4,
        api_key_env: str = "OPENAI_API_KEY",
        tokenizer: str | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url={base_url!r}: expected http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"base_url of the server {parts.hostname}: a user, password, query or fragment has no place in it. "
                f"Put the key in the environment variable {api_key_env}."
            )
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ValueError(
                f"concurrency={concurrency!r}, retries={retries!r}, timeout={timeout!r}: expected at least 1, "
                f"at least 0 and more than 0"
            )
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.api_key_env = api_key_env
        self.tokenizer = None if tokenizer is None else str(tokenizer)
        self.guided = True
        self._asked_model: str | None = None
        self._loaded_tokenizer: Any = None
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        """The server's URL and the model's name, as in a spec."""
        model = self.model or self._asked_model
        return f"{self.base_url}#{model}" if model else self.base_url

    def __reduce__(self) -> tuple[Any, ...]:
        settings = ("concurrency", "timeout", "retries", "api_key_env", "tokenizer")
        return partial(type(self), self.base_url, self.model, **{name: getattr(self, name) for name in settings}), ()

    def __repr__(self) -> str:
        return f"<ServerEngine {self.name}>"

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt. Request number i is sent with `seed + i`. A server that counts no tokens gives 0."""
        prompts = check_prompts(prompts)
        unique, where = distinct(prompts) if sampling.temperature == 0 else (prompts, list(range(len(prompts))))
        found = await self._each(len(unique), deadline, lambda place: self._generate(unique[place], place, sampling))
        return [found[place] for place in where]

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[Scored | EngineError]:
        """Return the log-probabilities of every continuation, from the echo of prompt and continuation."""
        unique, where = distinct(check_requests(requests))
        found = await self._each(len(unique), deadline, lambda place: self._score(*unique[place]))
        return [found[place] for place in where]

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice, from the first token alone; see `choice_logprobs`."""
        unique, where = distinct(check_prompts(prompts))
        choices = check_choices(choices)
        found = await self._each(len(unique), deadline, lambda place: self._choose(unique[place], choices))
        return [found[place] for place in where]

    async def models(self) -> list[str]:
        """Return the names of the models that the server offers. Raises `EngineError`."""
        try:
            page = await self._send(lambda client: client.models.list())
            return sorted(str(model.id) for model in page.data)
        except Exception as error:
            raise await self._explained(error) from None

    async def close(self) -> None:
        """Close the connections of the running event loop. A later request opens new ones."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.client.close()

    async def _each(
        self, count: int, deadline: float | None, answer: Callable[[int], Awaitable[T]]
    ) -> list[T | EngineError]:
        """Answer requests 0 to count - 1 with `concurrency` workers, until all are answered or the deadline passes."""
        if count == 0:
            return []
        results: list[T | EngineError | None] = [None] * count
        waiting = iter(range(count))

        async def work() -> None:
            for place in waiting:
                try:
                    results[place] = await answer(place)
                except Exception as error:
                    results[place] = await self._explained(error)

        try:
            async with asyncio.timeout(deadline):
                try:
                    await self._model()
                except EngineError as error:
                    return [error.with_traceback(None)] * count
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, count)):
                        group.create_task(work())
        except TimeoutError:
            log.info("%s: the deadline of %s s passed", self.name, deadline)
        late = EngineError.deadline_passed(self.name, deadline)
        return [late if item is None else item for item in results]

    async def _model(self) -> str:
        """Return the model's name; ask the server for it once where none was given."""
        if self.model is None and self._asked_model is None:
            async with self._connection().asking:
                if self._asked_model is None:
                    offered = await self.models()
                    if len(offered) != 1:
                        raise EngineError(
                            self.name,
                            f"the server offers {len(offered)} models: {', '.join(offered) or 'none'}.",
                            f"Name one, as in {self.base_url}#{offered[0] if offered else 'MODEL'}.",
                        )
                    self._asked_model = offered[0]
        return self.model or self._asked_model or ""

    def _connection(self) -> _Connection:
        """The connection of the running event loop: a client and its pool belong to one loop."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            for other in [other for other in self._connections if other.is_closed()]:
                del self._connections[other]
            client = AsyncOpenAI(
                base_url=self.base_url,
                api_key=os.environ.get(self.api_key_env) or "none",  # the client refuses an empty one
                max_retries=0,
                timeout=None,  # `_send` times every attempt as a whole
                # The one it makes itself closes when collected, in whichever loop runs then.
                http_client=DefaultAsyncHttpxClient(),
            )
            connection = _Connection(client, asyncio.Semaphore(self.concurrency), asyncio.Lock())
            self._connections[loop] = connection
        return connection

    async def _send(self, request: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        """Send one request, again where that can help. Raises what the last attempt raised."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        connection = self._connection()

        async def attempt() -> T:
            async with connection.slots, asyncio.timeout(self.timeout):
                return await request(connection.client)

        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_transient),
            wait=_pause,
            stop=stop_after_attempt(self.retries + 1),
            reraise=True,
        )
        return await retrying(attempt)

    async def _generate(self, prompt: Prompt, place: int, sampling: Sampling) -> Completion:
        settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            settings["top_p"] = sampling.top_p
        if sampling.stop:
            settings["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            settings["seed"] = sampling.seed + place
        if sampling.json_schema is None or not self.guided:
            answer = await self._complete(prompt, **settings)
        else:
            answer = await self._complete_guided(prompt, sampling.json_schema, settings)
        choice = answer.choices[0]
        text = choice.text if isinstance(prompt, str) else choice.message.content or ""  # None: nothing but reasoning
        if text is None or choice.finish_reason is None:
            raise ValueError(f"an unfinished choice: {str(choice)[:200]}")
        used = answer.usage.completion_tokens if answer.usage else 0
        return Completion(text, "length" if choice.finish_reason == "length" else "stop", used)

    async def _complete(self, prompt: Prompt | list[int], **settings: Any) -> Any:
        model = await self._model()
        given: Any = prompt  # the client's own types for messages and ids are narrower
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            answer = await self._send(lambda c: c.completions.create(model=model, prompt=given, **settings))
        else:
            answer = await self._send(lambda c: c.chat.completions.create(model=model, messages=given, **settings))
        if not getattr(answer, "choices", None):
            raise ValueError(f"an answer without choices: {str(answer)[:200]}")
        return answer

    async def _complete_guided(self, prompt: Prompt, schema: dict[str, Any], settings: dict[str, Any]) -> Any:
        """Ask for text that follows the schema; where the server refuses guidance as such, stop asking for it."""
        from openai import BadRequestError, UnprocessableEntityError

        guide: dict[str, Any]
        if isinstance(prompt, str):
            guide = {"extra_body": {"structured_outputs": {"json": schema}}}  # vLLM's own field, 0.12 and later
        else:
            form = {"name": "structure", "schema": schema, "strict": True}
            guide = {"response_format": {"type": "json_schema", "json_schema": form}}
        try:
            return await self._complete(prompt, **settings, **guide)
        except (BadRequestError, UnprocessableEntityError) as refusal:
            answer = await self._complete(prompt, **settings)  # raises where guidance was not the reason
            if self.guided:
                self.guided = False
                log.warning(
                    "%s refuses a JSON schema (%s); from now on it generates unguided.",
                    self.name,
                    self._clean(_server_message(refusal)),
                )
            return answer

    async def _score(self, prompt: Prompt, continuation: str) -> Scored:
        if not continuation:
            return Scored(())
        # One new token, whose value is dropped: not every server takes `max_tokens` 0.
        ask = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        if self.tokenizer is not None:
            tokenizer = await self._get_tokenizer()
            try:
                start = encode_prompt(tokenizer, prompt)
                ids = start + encode_continuation(tokenizer, continuation)
            except ValueError as error:
                raise EngineError(self.name, str(error)) from None
            values = (await self._complete(ids, **ask)).choices[0].logprobs.token_logprobs
            values = values[len(start) : len(ids)]
            expected = len(ids) - len(start)
        elif isinstance(prompt, str):
            answer = await self._complete(prompt + continuation, **ask)
            given = answer.choices[0].logprobs
            n_prompt = answer.usage.prompt_tokens if answer.usage else len(given.tokens) - 1
            try:
                first = continuation_start(given.tokens[:n_prompt], prompt, continuation)
            except ValueError as error:
                raise EngineError(
                    self.name,
                    f"{error}.",
                    "Give the engine tokenizer=NAME_OR_FOLDER: then the boundary is one of tokens.",
                ) from None
            values = given.token_logprobs[first:n_prompt]
            expected = n_prompt - first
        else:
            raise EngineError(
                self.name,
                "a continuation of chat messages cannot be scored by text alone.",
                "Give the engine tokenizer=NAME_OR_FOLDER, so that it can apply the chat template.",
            )
        known = [value for value in values if value is not None]
        if len(known) != expected:
            raise EngineError(
                self.name,
                f"log-probabilities of {len(known)} tokens came back, of {expected} expected.",
                "Use a server that supports echo with logprobs, such as vLLM, and a prompt of at least one token.",
            )
        return Scored(tuple(known))

    async def _choose(self, prompt: Prompt, choices: list[str]) -> tuple[float, ...]:
        if isinstance(prompt, str):
            answer = await self._complete(prompt, max_tokens=1, temperature=0.0, logprobs=_TOP)
            top = list(answer.choices[0].logprobs.top_logprobs[0].items())
        else:
            answer = await self._complete(prompt, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=_TOP)
            top = [(item.token, item.logprob) for item in answer.choices[0].logprobs.content[0].top_logprobs]
        values = choice_logprobs(top, choices)
        if max(values) == -math.inf:
            raise EngineError(
                self.name,
                f"none of the choices {choices} begins with one of the {len(top)} likeliest tokens, "
                f"{[token for token, _ in top[:5]]} and so on.",
                "Ask for one of the choices in the prompt, or use choices that differ in their first token.",
            )
        return values

    async def _get_tokenizer(self) -> Any:
        async with self._connection().asking:
            if self._loaded_tokenizer is None:
                self._loaded_tokenizer = await asyncio.to_thread(_load_tokenizer, self.name, self.tokenizer or "")
        return self._loaded_tokenizer

    async def _explained(self, error: Exception) -> EngineError:
        """Say what went wrong and the way out, without the key."""
        import openai

        if isinstance(error, EngineError):
            return error.with_traceback(None)
        attempts = f"{self.retries + 1} attempts" if self.retries else "1 attempt"
        if isinstance(error, openai.APIStatusError):
            what = f"the server answered {error.status_code}: {self._clean(_server_message(error))}"
            if _is_transient(error):
                return EngineError(
                    self.name, f"{what}, {attempts}.", "Lower concurrency, or look at the server's log."
                )
            return EngineError(self.name, what + ".", await self._way_out(error.status_code))
        if isinstance(error, TimeoutError):
            return EngineError(
                self.name, f"no answer within {self.timeout:g} s, {attempts}.", "Raise timeout, or lower concurrency."
            )
        if isinstance(error, openai.APIConnectionError):
            reason = self._clean(repr(error.__cause__ or error))
            return EngineError(
                self.name, f"no connection: {reason}, {attempts}.", "Is the server running at this URL?"
            )
        if isinstance(error, UnicodeEncodeError):
            return EngineError(self.name, f"the request is not valid text: {error}.")
        what = f"the answer does not follow the protocol ({type(error).__name__}: {self._clean(str(error))})."
        return EngineError(self.name, what, "Does the URL end in /v1, and does the server support this request?")

    async def _way_out(self, status: int) -> str:
        if status in (401, 403):
            known = "is set" if os.environ.get(self.api_key_env) else "is not set"
            return f"The key is taken from the environment variable {self.api_key_env}, which {known}."
        if status != 404:
            return ""
        try:
            async with asyncio.timeout(self.timeout):
                page = await self._connection().client.models.list()
            return f"The server offers: {', '.join(sorted(model.id for model in page.data))}."
        except Exception:
            return "The server lists no models either: does the URL end in /v1?"

    def _clean(self, text: str) -> str:
        key = os.environ.get(self.api_key_env)
        return (text.replace(key, "***") if key else text)[:500]


@dataclass(frozen=True)
class _Connection:
    """What belongs to one event loop. `asking` makes many requests that need the same fact ask for it once."""

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    asking: asyncio.Lock


def choice_logprobs(top: Sequence[tuple[str, float]], choices: Sequence[str]) -> tuple[float, ...]:
    """Return the log-probability of each choice, from the likeliest first tokens and their log-probabilities.

    A choice gets the probability of all tokens that equal it up to case and outer spaces. Where there is none, it gets
    that of the tokens it begins with, provided no other choice begins with them; else nothing, -inf.

    >>> choice_logprobs([("Yes", -0.5), ("uns", -1.5), ("maybe", -2.0)], ["yes", "unsure", "no"])
    (-0.5, -1.5, -inf)
    """
    tokens = [(token.strip().casefold(), logprob) for token, logprob in top if token.strip()]
    plain = [choice.strip().casefold() for choice in choices]
    values = []
    for choice in plain:
        found = [logprob for token, logprob in tokens if token == choice]
        if not found:
            own = [other for other in plain if other != choice]
            found = [
                logprob
                for token, logprob in tokens
                if choice.startswith(token) and not any(other.startswith(token) for other in own)
            ]
        values.append(_log_sum_exp(found))
    return tuple(values)


def continuation_start(tokens: Sequence[str], prompt: str, continuation: str) -> int:
    """Return the place of the first token of the continuation among the echoed tokens of prompt + continuation.

    Tokens before the text (a begin token) are allowed. Raises `ValueError` where the tokens do not spell the text, and
    where one token covers the end of the prompt and the start of the continuation.

    >>> continuation_start(["<s>", "2 +", " 2 =", " 4"], "2 + 2 =", " 4")
    3
    """
    spelt = "".join(tokens)
    if not spelt.endswith(prompt + continuation):
        raise ValueError(f"the {len(tokens)} echoed tokens do not spell prompt and continuation")
    boundary = len(spelt) - len(continuation)
    offset = 0
    for place, token in enumerate(tokens):
        if offset == boundary:
            return place
        offset += len(token)
        if offset > boundary:
            raise ValueError(f"the token {token!r} covers the end of the prompt and the start of the continuation")
    raise ValueError("the echo ends before the continuation")


def _log_sum_exp(values: Sequence[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def _is_transient(error: BaseException) -> bool:
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, (openai.APIConnectionError, TimeoutError))


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asks for, else exponential with jitter."""
    from openai import APIStatusError
    from tenacity import wait_random_exponential

    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    pause = _seconds(asked)
    if pause is None:
        pause = wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)(state)
    return min(pause, _LONGEST_PAUSE)


def _seconds(retry_after: str) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = (when - datetime.now(when.tzinfo or UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _server_message(error: Any) -> str:
    """The message in the body of an error answer, else the error's own."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
        if message:
            return str(message).rstrip(".")
    return str(error).rstrip(".")


def _load_tokenizer(engine: str, name: str) -> Any:
    from transformers import AutoTokenizer

    from rlkd.models import resolve_model

    try:
        return AutoTokenizer.from_pretrained(resolve_model(name))
    except Exception as error:
        raise EngineError(
            engine,
            f"the tokenizer {name!r} does not load ({type(error).__name__}: {error}).",
            "Give a folder or hub id.",
        ) from None
