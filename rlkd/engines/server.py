"""An engine for one or more servers with OpenAI's protocol, such as `vllm serve`.

`docs/engines.md` says what is sent to vLLM, to other servers and to several, and what happens when one fails. The key
is read when a connection is made; it is in no message, name or pickle.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from rlkd.engines.base import (
    CheckedEngine,
    Completion,
    EngineError,
    Prompt,
    Sampling,
    TokenScores,
    TopTokens,
    answer_distinct,
    check_choices,
    check_prompts,
)
from rlkd.engines.failures import RequestLost, RetriesExhausted, cause_of, explained, is_transient, server_message
from rlkd.engines.logprobs import choice_logprobs, continuation_start, top_tokens
from rlkd.engines.replicas import Replicas
from rlkd.engines.spec import without_secrets
from rlkd.engines.tokens import (
    NO_TOKENS,
    encode_continuation,
    encode_prompt,
    load_tokenizer,
    template_arguments,
    template_suffix,
)
from rlkd.models import is_adapter
from rlkd.registry import SpecError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
log = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 10.0  # seconds
_ECHO: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
# vLLM takes missing values from the checkpoint's generation config; these values mean "off".
_NO_DEFAULTS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# One new token, whose value is dropped: not every version takes `max_tokens` 0.
_PROMPT_ONLY: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
_KNOWN = 1000  # continuations whose ids are remembered
_TOP = 20  # the most that OpenAI's protocol allows, and vLLM's default limit

_patient: ContextVar[bool] = ContextVar("_patient", default=False)
"""Whether the present call has a deadline, and so waits an outage out."""


class ServerEngine(CheckedEngine):
    """A model behind an OpenAI-compatible server, or behind several that serve the same one.

    base_url: the server's address, or those of its replicas with commas between.
    model: may be left out where the server offers exactly one; name it where results are cached.
    concurrency: requests in flight at each server, in each event loop that uses the engine.
    timeout: seconds for one attempt.
    retries: attempts after the first. patience: seconds of an outage that a call with a deadline waits.
    api_key_env: the environment variable with the key.
    tokenizer: folder or hub id of the tokenizer that makes the tokens of `score` in this process.
    chat_template_kwargs: arguments of the chat template, a mapping or JSON; vLLM, SGLang and llama.cpp take them.
    """

    is_remote = True
    concurrency: int

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        concurrency: int = 32,
        timeout: float = 60.0,
        retries: int = 4,
        patience: float = 180.0,
        api_key_env: str = "OPENAI_API_KEY",
        tokenizer: str | None = None,
        chat_template_kwargs: dict[str, Any] | str | None = None,
    ) -> None:
        self.urls = tuple(_checked_url(url.strip(), api_key_env) for url in base_url.split(","))
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"base_url={base_url!r}: each address may appear once")
        if concurrency < 1 or retries < 0 or timeout <= 0 or patience < 0:
            raise ValueError(
                f"concurrency={concurrency!r}, retries={retries!r}, timeout={timeout!r}, patience={patience!r}: "
                f"expected at least 1, at least 0, more than 0 and at least 0"
            )
        self.base_url = ",".join(self.urls)
        self.replicas = len(self.urls)
        self.model = model
        self.chat_template_kwargs = template_arguments(chat_template_kwargs)
        self.name = self._named(model)
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.patience = patience
        self.api_key_env = api_key_env
        self.tokenizer = None if tokenizer is None else str(tokenizer)
        self.guided = True
        self._refused_schemas: set[str] = set()
        self._has_taken_a_schema = False
        self._only_model: str | None = None
        self._is_vllm: bool | None = None
        self._names_tokens = True
        self._known_ids: dict[str, list[int]] = {}
        self._loaded_tokenizer: Any = None
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, Replicas] = WeakKeyDictionary()
        # Per URL why the last attempt got no connection, None after a reply; also of attempts that the client retries.
        self._no_connection: dict[str, Exception | None] = {}

    @property
    def identity(self) -> str | None:
        """The model's name, whatever server it is on; None where neither the spec nor a server has named it yet."""
        return self.model or self._only_model

    def _named(self, model: str | None) -> str:
        return (f"{self.base_url}#{model}" if model else self.base_url) + template_suffix(self.chat_template_kwargs)

    def _template(self) -> dict[str, Any]:
        """What a request with messages says of the chat template."""
        return {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}

    async def _complete_all(
        self, sampling: Sampling, deadline: float | None, prompts: list[Prompt]
    ) -> list[Completion | EngineError]:
        """Request number i is sent with `seed + i`. A server that counts no tokens gives 0."""
        return await self._each(len(prompts), deadline, lambda i: self._generate(prompts[i], i, sampling))

    async def _score_all(
        self, deadline: float | None, requests: list[tuple[Prompt, str]]
    ) -> list[TokenScores | EngineError]:
        return await self._each(len(requests), deadline, lambda i: self._score(*requests[i]))

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice: of the whole, or as `choice_logprobs` reads the first token."""
        choices = check_choices(choices)
        return await answer_distinct(
            check_prompts(prompts),
            lambda unique: self._each(len(unique), deadline, lambda i: self._choose(unique[i], choices)),
        )

    async def encode(self, texts: Sequence[str], *, deadline: float | None = None) -> list[list[int] | EngineError]:
        """Return the ids of each text in vLLM's tokenizer, without special tokens."""

        async def encoded(text: str) -> list[int]:
            self._require_vllm()
            return await self._tokenize({"prompt": text, "add_special_tokens": False})

        return await self._each(len(texts), deadline, lambda i: encoded(texts[i]))

    async def top_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], k: int, *, deadline: float | None = None
    ) -> list[TopTokens | EngineError]:
        """Return the k likeliest tokens at the positions `start` to the last of each sequence (vLLM only)."""
        return await self._each(
            len(sequences), deadline, lambda i: self._top_logprobs(list(sequences[i]), starts[i], k)
        )

    async def models(self) -> list[str]:
        """Return the names of the models that every server offers that answers. Raises `EngineError` if none does."""
        replicas = self._connection()
        requests = [replicas.attempt(_offered, replica) for replica in replicas.all]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        offers, errors = [], []
        for replica, answer in zip(replicas.all, answers, strict=True):
            if isinstance(answer, Exception):
                tries = 1 if replicas.several else self.retries + 1
                errors.append(await self._explained(RetriesExhausted(answer, tries, replica.url)))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                offers.append(set(answer))
        if not offers:
            raise errors[0]
        for error in errors:
            log.warning("%s", error)
        return sorted(set.intersection(*offers))

    async def check_ready(self) -> None:
        """Raise `EngineError` where no server answers, or one lacks the model."""
        offered = await self.models()
        if self.model is not None and self.model not in offered:
            raise EngineError(
                self.name,
                f"the server has no model {self.model!r}; it offers {', '.join(offered) or 'none'}.",
                f"It is an adapter here: merge it (rlkd merge {self.model} --out FOLDER), and serve the result."
                if is_adapter(self.model)
                else "",
            )

    async def close(self) -> None:
        """Close the connections of the running event loop. A later request opens new ones."""
        replicas = self._connections.pop(asyncio.get_running_loop(), None)
        for replica in replicas.all if replicas is not None else []:
            await replica.client.close()

    async def _each(
        self, count: int, deadline: float | None, answer: Callable[[int], Awaitable[T]]
    ) -> list[T | EngineError]:
        """Answer requests 0 to count - 1 with as many workers as there are slots, until the deadline passes."""
        if count == 0:
            return []
        results: list[T | EngineError | None] = [None] * count
        waiting = iter(range(count))

        async def work() -> None:
            for index in waiting:
                try:
                    results[index] = await answer(index)
                except Exception as error:
                    results[index] = await self._explained(error)

        before = _patient.set(deadline is not None)
        try:
            async with asyncio.timeout(deadline):
                self._connection().begin()
                try:
                    await self._detect_server()
                except Exception as error:
                    return [await self._explained(error)] * count
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency * len(self.urls), count)):
                        group.create_task(work())
        except TimeoutError:
            log.info("%s: the deadline of %s s passed", self.name, deadline)
        finally:
            _patient.reset(before)
        late = self._late(deadline)
        return [late if item is None else item for item in results]

    def _late(self, deadline: float | None) -> EngineError:
        """The error of a request that was unfinished at the deadline; it names a server that is away."""
        late = EngineError.deadline_passed(self.name, deadline)
        for replica in self._connection().all:
            if (away := replica.away or self._no_connection.get(replica.url)) is not None:
                reason = self._redacted(cause_of(away))
                what = f"{late.what.rstrip('.')}; {replica.url} was away, no connection: {reason}."
                return EngineError(self.name, what, "Is the server running at this URL?")
        return late

    async def _detect_server(self) -> None:
        async with self._connection().lock:
            if self._is_vllm is not None:
                return
            try:
                offered: Mapping[str, str] = await self._send(_offered)
            except RetriesExhausted as error:
                # A server may keep its list to itself, as long as the name is known.
                if self.model is None or is_transient(error.error):
                    raise
                offered = {}
            if self.model is None:
                if len(offered) != 1:
                    raise EngineError(
                        self.name,
                        f"the server offers {len(offered)} models: {', '.join(sorted(offered)) or 'none'}.",
                        f"Name one, as in {self.base_url}#{min(offered, default='MODEL')}.",
                    )
                [self._only_model] = offered
                self.name = self._named(self._only_model)
            self._is_vllm = "vllm" in offered.values()

    def _connection(self) -> Replicas:
        """The connections of the running event loop: a client and its pool belong to one loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            from openai import AsyncOpenAI, Timeout

            for other in [other for other in self._connections if other.is_closed()]:
                del self._connections[other]
            clients = {
                url: AsyncOpenAI(
                    base_url=url,
                    api_key=os.environ.get(self.api_key_env) or "none",  # the client refuses an empty one
                    max_retries=self.retries if len(self.urls) == 1 else 0,  # of several, another server is next
                    timeout=Timeout(self.timeout, connect=min(self.timeout, _CONNECT_TIMEOUT)),
                    # The one it makes itself closes when collected, in whichever loop runs then.
                    http_client=_http_client(partial(self._no_connection.__setitem__, url)),
                )
                for url in self.urls
            }
            self._connections[loop] = Replicas(
                clients, concurrency=self.concurrency, retries=self.retries, patience=self.patience
            )
        return self._connections[loop]

    async def _send(self, request: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        return await self._connection().send(request, _patient.get())

    async def _complete(
        self, prompt: Prompt | list[int], read: Callable[[Any], T], extra: dict[str, Any], **settings: Any
    ) -> T:
        """Request one completion of text, ids or messages; `extra` goes into the body besides the protocol's own."""
        given: Any = prompt  # the client's own types for messages and ids are narrower
        is_chat = not isinstance(given, str) and not isinstance(given[0], int)
        extra = extra | (self._template() if is_chat else {})
        common: dict[str, Any] = {"model": self.identity or "", "extra_body": extra or None, **settings}

        async def request(client: AsyncOpenAI) -> T:
            answer: Any
            if is_chat:
                answer = await client.chat.completions.create(messages=given, **common)
            else:
                answer = await client.completions.create(prompt=given, **common)
            if not getattr(answer, "choices", None):
                raise ValueError(f"an answer without choices: {str(answer)[:200]}")
            reason = getattr(answer.choices[0], "finish_reason", None)
            if reason in ("abort", "error"):
                raise RequestLost(f"the server gave the request up (finish_reason {reason!r})")
            return read(answer)

        return await self._send(request)

    async def _generate(self, prompt: Prompt, index: int, sampling: Sampling) -> Completion:
        settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        extra: dict[str, Any] = dict(_NO_DEFAULTS) if self._is_vllm else {}
        if sampling.temperature > 0 or self._is_vllm:
            settings["top_p"] = sampling.top_p
        if sampling.stop:
            settings["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            settings["seed"] = sampling.seed + index

        def read(answer: Any) -> Completion:
            choice = answer.choices[0]
            # No content: nothing but reasoning.
            text = choice.text if isinstance(prompt, str) else choice.message.content or ""
            if text is None or choice.finish_reason is None:
                raise ValueError(f"an unfinished choice: {str(choice)[:200]}")
            used = answer.usage.completion_tokens if answer.usage else 0
            return Completion(text, "length" if choice.finish_reason == "length" else "stop", used)

        schema = sampling.json_schema
        if schema is None or (self._refused_schemas and json.dumps(schema) in self._refused_schemas):
            return await self._complete(prompt, read, extra, **settings)
        return await self._complete_guided(prompt, read, extra, schema, settings)

    async def _complete_guided(
        self,
        prompt: Prompt,
        read: Callable[[Any], T],
        extra: dict[str, Any],
        schema: dict[str, Any],
        settings: dict[str, Any],
    ) -> T:
        """Request text that follows the schema; where the server refuses the schema, never send that one again."""
        from openai import BadRequestError, UnprocessableEntityError

        if isinstance(prompt, str):
            guided = extra | {"structured_outputs": {"json": schema}}  # vLLM's own field, 0.12 and later
            form: dict[str, Any] = {}
        else:
            named = {"name": "structure", "schema": schema, "strict": True}
            guided = extra
            form = {"response_format": {"type": "json_schema", "json_schema": named}}
        try:
            result = await self._complete(prompt, read, guided, **settings, **form)
        except RetriesExhausted as refusal:
            if not isinstance(refusal.error, (BadRequestError, UnprocessableEntityError)):
                raise
            # Raises where guidance was not the reason.
            result = await self._complete(prompt, read, extra, **settings)
            text = json.dumps(schema)
            if text not in self._refused_schemas:
                self._refused_schemas.add(text)
                self.guided = self._has_taken_a_schema
                log.warning(
                    "%s refuses the JSON schema %s (%s); requests with it go out unguided from now on.",
                    self.name,
                    text if len(text) <= 200 else f"{text[:200]}...",
                    self._redacted(server_message(refusal.error)),
                )
        else:
            self.guided = self._has_taken_a_schema = True
        return result

    async def _score(self, prompt: Prompt, continuation: str) -> TokenScores:
        if not continuation:
            return TokenScores(())
        if self._counts_tokens:
            return await self._score_ids(await self._prompt_ids(prompt), await self._continuation_ids(continuation))
        if not isinstance(prompt, str):
            raise EngineError(
                self.name,
                "a continuation of chat messages cannot be scored by text alone.",
                "Give the engine tokenizer=NAME_OR_FOLDER, so that it can apply the chat template.",
            )

        def read(answer: Any) -> TokenScores:
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
            return self._scores(given.token_logprobs[first:n_prompt], n_prompt - first)

        return await self._complete(prompt + continuation, read, {}, **_ECHO)

    @property
    def _counts_tokens(self) -> bool:
        """Whether prompts and continuations can be sent as ids: by `tokenizer` or by vLLM's own."""
        return self.tokenizer is not None or bool(self._is_vllm)

    async def _score_ids(self, start: list[int], continuation: list[int]) -> TokenScores:
        ids = start + continuation

        def read_echo(answer: Any) -> TokenScores:
            values = answer.choices[0].logprobs.token_logprobs
            return self._scores(values[len(start) : len(ids)], len(continuation))

        def read_prompt(answer: Any) -> TokenScores:
            # One entry a token of the prompt, none for the first: a map from ids, as strings, to log-probabilities.
            table = answer.choices[0].prompt_logprobs or []
            values = [entry.get(str(token)) for token, entry in zip(continuation, table[len(start) :], strict=False)]
            return self._scores([value and value["logprob"] for value in values], len(continuation))

        if not self._is_vllm:
            return await self._complete(ids, read_echo, {}, **_ECHO)
        return await self._complete(ids, read_prompt, {"prompt_logprobs": 0, **_NO_DEFAULTS}, **_PROMPT_ONLY)

    def _scores(self, values: Sequence[float | None], expected: int) -> TokenScores:
        known = [value for value in values if value is not None]
        if len(known) != expected:
            raise EngineError(
                self.name,
                f"log-probabilities of {len(known)} tokens came back, of {expected} expected.",
                "Use a server that supports echo with logprobs, such as vLLM, and a prompt of at least one token.",
            )
        return TokenScores(tuple(known))

    async def _choose(self, prompt: Prompt, choices: list[str]) -> tuple[float, ...]:
        if self._counts_tokens:
            start = await self._prompt_ids(prompt)
            whole = [await self._continuation_ids(choice) for choice in choices]
            if self._names_tokens and all(len(ids) == 1 for ids in whole):
                values = await self._choose_token(start, [token for [token] in whole])
                if values is not None:
                    return values
            scores = await asyncio.gather(*(self._score_ids(start, ids) for ids in whole), return_exceptions=True)
            for score in scores:
                if isinstance(score, BaseException):
                    raise score
            return tuple(score.total for score in scores if isinstance(score, TokenScores))

        def read(answer: Any) -> list[tuple[str, float]]:
            logprobs = answer.choices[0].logprobs
            if isinstance(prompt, str):
                return list(logprobs.top_logprobs[0].items())
            return [(item.token, item.logprob) for item in logprobs.content[0].top_logprobs]

        wanted = {"logprobs": _TOP} if isinstance(prompt, str) else {"logprobs": True, "top_logprobs": _TOP}
        top = await self._complete(prompt, read, {}, **_PROMPT_ONLY, **wanted)
        likely = choice_logprobs(top, choices)
        if max(likely) == -math.inf:
            raise EngineError(
                self.name,
                f"none of the choices {choices} begins with one of the {len(top)} likeliest tokens, "
                f"{[token for token, _ in top[:5]]} and so on.",
                "Ask for one of the choices in the prompt, or use choices that differ in their first token.",
            )
        return likely

    async def _choose_token(self, start: list[int], tokens: list[int]) -> tuple[float, ...] | None:
        """None where this vLLM cannot name tokens. Half the work of scoring: `prompt_logprobs` has no prefix cache."""
        from openai import BadRequestError

        def read(answer: Any) -> tuple[float, ...] | None:
            found = answer.choices[0].logprobs.top_logprobs[0]
            values = [found.get(f"token_id:{token}") for token in tokens]
            return None if None in values else tuple(values)

        extra = {"logprob_token_ids": tokens, "return_tokens_as_token_ids": True, **_NO_DEFAULTS}
        try:
            values = await self._complete(start, read, extra, **_PROMPT_ONLY, logprobs=len(tokens))
        except RetriesExhausted as refusal:
            if not isinstance(refusal.error, BadRequestError):
                raise
            values = None
        if values is None:
            self._names_tokens = False
        return values

    async def _top_logprobs(self, ids: list[int], start: int, k: int) -> TopTokens:
        self._require_vllm()

        def read(answer: Any) -> TopTokens:
            # One entry for each token of the prompt, none for the first.
            table = getattr(answer.choices[0], "prompt_logprobs", None) or []
            if len(table) != len(ids):
                raise EngineError(
                    self.name,
                    f"log-probabilities of {len(table)} positions came back, of {len(ids)} expected.",
                    "Send requests to vLLM itself, not to a proxy that drops fields.",
                )
            try:
                return top_tokens(table[start:], ids[start:], k)
            except ValueError as error:
                raise EngineError(self.name, str(error)) from None

        try:
            return await self._complete(ids, read, {"prompt_logprobs": k}, **_PROMPT_ONLY)
        except RetriesExhausted as refusal:
            error = await self._explained(refusal)
            if "logprobs" in error.what and "max" in error.what:
                error = EngineError(self.name, error.what, f"Start it with --max-logprobs {k} (or -1), or lower k.")
            raise error from None

    def _require_vllm(self) -> None:
        if not self._is_vllm:
            raise EngineError(
                self.name,
                "this is not vLLM by its list of models; no other server gives the log-probabilities of a prompt's "
                "tokens.",
                "Serve the teacher with `vllm serve MODEL --max-logprobs K`.",
            )

    async def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self.tokenizer is not None:
            return await self._encoded(partial(encode_prompt, chat_template_kwargs=self.chat_template_kwargs), prompt)
        if isinstance(prompt, str):
            ids = await self._tokenize({"prompt": prompt, "add_special_tokens": True})
        else:
            ids = await self._tokenize({"messages": prompt, "add_generation_prompt": True, **self._template()})
        if not ids:
            raise EngineError(self.name, NO_TOKENS)
        return ids

    async def _continuation_ids(self, text: str) -> list[int]:
        if self.tokenizer is not None:
            return await self._encoded(encode_continuation, text)
        ids = self._known_ids.get(text)
        if ids is None:
            ids = await self._tokenize({"prompt": text, "add_special_tokens": False})
            if len(self._known_ids) >= _KNOWN:  # choices recur, continuations do not
                self._known_ids.clear()  # another event loop that looks them up keeps the ids it has
            self._known_ids[text] = ids
        return ids

    async def _encoded(self, encode: Callable[[Any, Any], list[int]], text: Any) -> list[int]:
        try:
            async with self._connection().lock:
                if self._loaded_tokenizer is None:
                    self._loaded_tokenizer = await asyncio.to_thread(load_tokenizer, self.tokenizer or "")
            return encode(self._loaded_tokenizer, text)
        except ValueError as error:
            raise EngineError(self.name, str(error)) from None

    async def _tokenize(self, body: dict[str, Any]) -> list[int]:
        """Ids by vLLM. The address is next to `/v1`, not under it."""

        async def request(client: AsyncOpenAI) -> list[int]:
            url = str(client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
            answer: Any = await client.post(url, cast_to=object, body={"model": self.identity, **body})
            return [int(token) for token in answer["tokens"]]

        return await self._send(request)

    async def _explained(self, error: Exception) -> EngineError:
        import openai

        if isinstance(error, EngineError):
            return error.with_traceback(None)
        attempts, url = 1, self.urls[0]
        if isinstance(error, RetriesExhausted):
            attempts, url, error = error.attempts, error.url, error.error
        address = f"{url}: " if len(self.urls) > 1 else ""
        found = explained(error, self.name, address, attempts, self.timeout, self._redacted)
        if isinstance(error, openai.APIStatusError) and not found.way_out:
            return EngineError(self.name, found.what, await self._way_out(error.status_code, url))
        return found

    async def _way_out(self, status: int, url: str) -> str:
        if status in (401, 403):
            known = "is set" if os.environ.get(self.api_key_env) else "is not set"
            return f"The key is taken from the environment variable {self.api_key_env}, which {known}."
        if status not in (404, 405, 410, 501):
            return ""
        [client] = [replica.client for replica in self._connection().all if replica.url == url]
        try:
            offered = await _offered(client.with_options(max_retries=0))
            return f"The server offers: {', '.join(sorted(offered))}."
        except Exception:
            return "The server lists no models either: is it a model server, and does the URL end in /v1?"

    def _redacted(self, text: str) -> str:
        key = os.environ.get(self.api_key_env)
        return (text.replace(key, "***") if key else text)[:500]


def _http_client(report: Callable[[Exception | None], None]) -> Any:
    """The HTTP client of `openai`, which reports for each attempt why it got no connection, or None."""
    from openai import DefaultAsyncHttpxClient

    class ReportingClient(DefaultAsyncHttpxClient):
        async def send(self, *arguments: Any, **settings: Any) -> Any:
            try:
                response = await super().send(*arguments, **settings)
            except Exception as error:
                # By name: versions of openai build on httpx or on httpx2.
                report(None if type(error).__name__.endswith("Timeout") else error)
                raise
            report(None)
            return response

    return ReportingClient()


async def _offered(client: AsyncOpenAI) -> dict[str, str]:
    """Return the server's models: name, and who owns it (vLLM says "vllm")."""
    page = await client.models.list()
    return {str(model.id): str(getattr(model, "owned_by", "")) for model in page.data}


def _checked_url(url: str, api_key_env: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(
            f"base_url={without_secrets(url)!r}: expected http://HOST:PORT/v1 or https://HOST/v1, several with commas "
            "between"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SpecError(
            f"base_url of the server {parts.hostname}: a user, password, query or fragment is not allowed in it. "
            f"Put the key in the environment variable {api_key_env}."
        )
    return url.rstrip("/")
