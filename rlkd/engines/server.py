"""An engine that asks one or more servers with OpenAI's protocol, such as `vllm serve`.

    vllm serve path/or/hub-id --served-model-name teacher
    ServerEngine("http://localhost:8000/v1", "teacher", concurrency=64)
    ServerEngine("http://node1:8000/v1,http://node2:8000/v1", "teacher")     # two replicas of one model

What it sends: messages go to `/chat/completions` and text to `/completions`, at most `concurrency` requests at a time
to each server. Equal requests of a call are sent once where the answer is deterministic. At first use it asks
`GET /models` once, for the model's name and for whether the server is vLLM.

**Trouble.** Connection errors, time-outs and the statuses 408, 409, 429 and 5xx are tried again: at once at another
replica where there is one, else after an exponential pause with jitter or what `Retry-After` asks for. Any other
answer is final at a single server; of several, each is tried before the request fails. A request is never at two
servers at a time: it is withdrawn from the first. `retries` is the number of attempts after the first, and each
further replica adds one. Where the caller set a deadline there is patience beyond them: an outage (no connection, 429,
502, 503, 504) is waited out until the deadline, at most `patience` seconds, as a restart of vLLM takes a minute or
more. A completion that the server itself broke off (finish reason "abort", as vLLM's on its way down, or "error") is
no answer: it counts as a lost connection.

The key comes from the environment variable `api_key_env` when the connection is made. It is in no message, name or
pickle; a server that echoes it in an error has it blotted out. A server without keys needs no variable.

**vLLM** is recognised by its model list, and then:

- `score` sends token ids and reads `prompt_logprobs`. The ids are those of `tokens.py`, by `tokenizer` where it is
  given, else by the server's own `/tokenize`; so messages can be scored too.
- `choose` returns the log-probability of each whole choice, as the engines in this process do.
- The sampling defaults that vLLM takes from a checkpoint's generation config are overruled: `Sampling` says all there
  is.

At other servers `score` needs `echo` with log-probabilities, and `choose` reads the 20 likeliest first tokens, unless
`tokenizer` is given: then it scores whole choices too.

A LoRA adapter that vLLM has loaded is a model of its own: give its name as `model`. It is loaded with the server
(`--enable-lora --lora-modules NAME=FOLDER`) or while it runs (`POST /v1/load_lora_adapter`); a server that is started
again has only the former.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from rlkd.engines.base import (
    Completion,
    Engine,
    EngineError,
    Prompt,
    Sampling,
    TokenScores,
    TopTokens,
    check_choices,
    check_prompts,
    check_requests,
    distinct,
)
from rlkd.engines.replicas import Replica, ReplicaLost, Replicas
from rlkd.engines.spec import without_secrets
from rlkd.engines.tokens import NO_TOKENS, encode_continuation, encode_prompt
from rlkd.registry import SpecError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5  # seconds; the most before the first retry, doubled at each
_LONGEST_PAUSE = 5.0
_LONGEST_ASKED = 60.0  # the most that `Retry-After` is heeded
_ECHO: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
# vLLM fills in what is missing from the checkpoint's generation config; these values mean "off".
_NO_DEFAULTS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_KNOWN = 1000  # continuations whose ids are remembered
_TOP = 20  # the most that OpenAI's protocol allows, and vLLM's default limit


class ServerEngine(Engine):
    """A model behind an OpenAI-compatible server, or behind several that serve the same one.

    `base_url` is the server's address, or those of its replicas with commas between. `model` may be left out where the
    server offers exactly one; name it where results are cached, since the engine's name is complete only when the
    model is known. `timeout` is in seconds for one attempt; `retries` and `patience` stand above, under Trouble.
    `tokenizer`, a folder or hub id, makes the tokens of `score` in this process. One engine may serve several event
    loops; each has its own connections and `concurrency`.
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
    ) -> None:
        self.urls = tuple(_checked_url(url.strip(), api_key_env) for url in base_url.split(","))
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"base_url={base_url!r}: each address may stand there once")
        if concurrency < 1 or retries < 0 or timeout <= 0 or patience < 0:
            raise ValueError(
                f"concurrency={concurrency!r}, retries={retries!r}, timeout={timeout!r}, patience={patience!r}: "
                f"expected at least 1, at least 0, more than 0 and at least 0"
            )
        self.base_url = ",".join(self.urls)
        self.replicas = len(self.urls)
        self.model = model
        self.name = f"{self.base_url}#{model}" if model else self.base_url
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.patience = patience
        self.api_key_env = api_key_env
        self.tokenizer = None if tokenizer is None else str(tokenizer)
        self.guided = True
        self._refused_schemas: set[str] = set()
        self._has_taken_a_schema = False
        self._asked_model: str | None = None
        self._is_vllm: bool | None = None
        self._names_tokens = True
        self._known_ids: dict[str, list[int]] = {}
        self._loaded_tokenizer: Any = None
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection] = WeakKeyDictionary()

    @property
    def identity(self) -> str | None:
        """The model's name, whatever server it is on; None where neither the spec nor a server has named it yet."""
        return self.model or self._asked_model

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt. Request number i is sent with `seed + i`. A server that counts no tokens gives 0."""
        prompts = check_prompts(prompts)
        unique, where = distinct(prompts) if sampling.temperature == 0 else (prompts, list(range(len(prompts))))
        found = await self._each(
            len(unique), deadline, lambda place, patient: self._generate(unique[place], place, sampling, patient)
        )
        return [found[place] for place in where]

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[TokenScores | EngineError]:
        """Return the log-probabilities of every continuation."""
        unique, where = distinct(check_requests(requests))
        found = await self._each(len(unique), deadline, lambda place, patient: self._score(*unique[place], patient))
        return [found[place] for place in where]

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice: of the whole, or as `choice_logprobs` reads the first token."""
        unique, where = distinct(check_prompts(prompts))
        choices = check_choices(choices)
        found = await self._each(
            len(unique), deadline, lambda place, patient: self._choose(unique[place], choices, patient)
        )
        return [found[place] for place in where]

    async def encode(self, texts: Sequence[str], *, deadline: float | None = None) -> list[list[int] | EngineError]:
        """Return the ids of each text, without special tokens: by `tokenizer`, else by vLLM's own."""
        return await self._each(
            len(texts), deadline, lambda place, patient: self._encoded_by_server(texts[place], patient)
        )

    async def top_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], k: int, *, deadline: float | None = None
    ) -> list[TopTokens | EngineError]:
        """Return the k likeliest tokens at the positions `start` to the last of each sequence (vLLM only)."""
        return await self._each(
            len(sequences),
            deadline,
            lambda place, patient: self._top_logprobs(list(sequences[place]), starts[place], k, patient),
        )

    async def models(self) -> list[str]:
        """Return the names of the models that every server offers that answers. Raises `EngineError` if none does."""
        try:
            replicas = self._connection().replicas
            async with replicas.watched():
                if not replicas.several:
                    return sorted(await self._send(_offered, patient=False))
                asked = [self._attempt(_offered, replica) for replica in replicas.all]
                answers = await asyncio.gather(*asked, return_exceptions=True)
        except Exception as error:
            raise await self._explained(error) from None
        offers = []
        for replica, answer in zip(replicas.all, answers, strict=True):
            if isinstance(answer, Exception):
                log.warning("%s", await self._explained(_GaveUp(answer, 1, replica.url)))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                offers.append(set(answer))
        if not offers:
            [failed, *_] = [item for item in answers if isinstance(item, Exception)]
            raise await self._explained(_GaveUp(failed, 1, replicas.all[0].url))
        return sorted(set.intersection(*offers))

    async def check_ready(self) -> None:
        """Raise `EngineError` where no server answers, or one lacks the model."""
        offered = await self.models()
        if self.model is not None and self.model not in offered:
            raise EngineError(
                self.name, f"the server has no model {self.model!r}; it offers {', '.join(offered) or 'none'}."
            )

    async def close(self) -> None:
        """Close the connections of the running event loop. A later request opens new ones."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            for replica in connection.replicas.all:
                await replica.client.close()

    async def _each(
        self, count: int, deadline: float | None, answer: Callable[[int, bool], Awaitable[T]]
    ) -> list[T | EngineError]:
        """Answer requests 0 to count - 1 with as many workers as there are slots, until the deadline passes."""
        if count == 0:
            return []
        results: list[T | EngineError | None] = [None] * count
        waiting = iter(range(count))
        patient = deadline is not None

        async def work() -> None:
            for place in waiting:
                try:
                    results[place] = await answer(place, patient)
                except Exception as error:
                    results[place] = await self._explained(error)

        try:
            async with asyncio.timeout(deadline), self._connection().replicas.watched():
                try:
                    await self._get_acquainted(patient)
                except Exception as error:
                    return [await self._explained(error)] * count
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency * len(self.urls), count)):
                        group.create_task(work())
        except TimeoutError:
            log.info("%s: the deadline of %s s passed", self.name, deadline)
        late = self._late(deadline)
        return [late if item is None else item for item in results]

    def _late(self, deadline: float | None) -> EngineError:
        """The error of what the deadline overtook; it names a server that is away."""
        late = EngineError.deadline_passed(self.name, deadline)
        for replica in self._connection().replicas.all:
            if replica.away is not None:
                reason = self._clean(repr(replica.away.__cause__ or replica.away))
                what = f"{late.what.rstrip('.')}; {replica.url} was away, no connection: {reason}."
                return EngineError(self.name, what, "Is the server running at this URL?")
        return late

    async def _get_acquainted(self, patient: bool) -> None:
        """Ask once which models there are, for the name where none was given, and whether the server is vLLM."""
        if self._is_vllm is not None:
            return
        async with self._connection().asking:
            if self._is_vllm is not None:
                return
            try:
                offered: Mapping[str, str] = await self._send(_offered, patient)
            except Exception as error:
                # A server may keep its list to itself, as long as the name is known.
                if self.model is None or not isinstance(error, _GaveUp) or _is_transient(error.error):
                    raise
                offered = {}
            if self.model is None:
                if len(offered) != 1:
                    raise EngineError(
                        self.name,
                        f"the server offers {len(offered)} models: {', '.join(sorted(offered)) or 'none'}.",
                        f"Name one, as in {self.base_url}#{min(offered, default='MODEL')}.",
                    )
                [self._asked_model] = offered
                self.name = f"{self.base_url}#{self._asked_model}"
            self._is_vllm = "vllm" in offered.values()

    def _connection(self) -> _Connection:
        """The connections of the running event loop: a client and its pool belong to one loop."""
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            for other in [other for other in self._connections if other.is_closed()]:
                del self._connections[other]
            clients = {
                url: AsyncOpenAI(
                    base_url=url,
                    api_key=os.environ.get(self.api_key_env) or "none",  # the client refuses an empty one
                    max_retries=0,
                    timeout=None,  # `_attempt` times every attempt as a whole
                    # The one it makes itself closes when collected, in whichever loop runs then.
                    http_client=DefaultAsyncHttpxClient(),
                )
                for url in self.urls
            }
            replicas = Replicas(
                clients,
                concurrency=self.concurrency,
                retries=self.retries,
                patience=self.patience,
                first_pause=_FIRST_PAUSE,
                longest_pause=_LONGEST_PAUSE,
            )
            connection = _Connection(replicas, asyncio.Lock())
            self._connections[loop] = connection
        return connection

    async def _send(self, request: Callable[[AsyncOpenAI], Awaitable[T]], patient: bool) -> T:
        """Send one request, again where that can help. Raises `_GaveUp`, or the `EngineError` that reading it raised.

        `request` also reads the answer: one that makes no sense is a failure of the server that gave it.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        replicas = self._connection().replicas
        course = _Course(replicas, patient)

        async def attempt() -> T:
            replica = await course.next_replica()
            try:
                answer = await self._attempt(request, replica)
            except Exception as error:
                course.failed(replica, error)
                raise
            else:
                replicas.succeeded(replica)
                return answer
            finally:
                replicas.free(replica)

        retrying = AsyncRetrying(
            retry=retry_if_exception(course.goes_on), wait=course.pause, stop=course.is_over, reraise=True
        )
        try:
            return await retrying(attempt)
        except EngineError:
            raise
        except Exception as error:
            raise _GaveUp(error, course.attempts + course.questions, course.url) from None

    async def _attempt(self, request: Callable[[AsyncOpenAI], Awaitable[T]], replica: Replica) -> T:
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                replica.attempts.add(limit)
                try:
                    return await request(replica.client)
                finally:
                    replica.attempts.discard(limit)
        except TimeoutError:
            if isinstance(replica.away, ReplicaLost):
                raise replica.away from None
            raise

    async def _generate(self, prompt: Prompt, place: int, sampling: Sampling, patient: bool) -> Completion:
        settings: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        extra: dict[str, Any] = {}
        if self._is_vllm:
            extra |= _NO_DEFAULTS
        if sampling.temperature > 0 or self._is_vllm:
            settings["top_p"] = sampling.top_p
        if sampling.stop:
            settings["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            settings["seed"] = sampling.seed + place

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
            return await self._complete(prompt, read, patient, extra, **settings)
        return await self._complete_guided(prompt, read, patient, extra, schema, settings)

    async def _complete(
        self,
        prompt: Prompt | list[int],
        read: Callable[[Any], T],
        patient: bool,
        extra: dict[str, Any],
        **settings: Any,
    ) -> T:
        """Ask for one completion of text, ids or messages; `extra` goes into the body beside the protocol's own."""
        model = self.model or self._asked_model or ""
        given: Any = prompt  # the client's own types for messages and ids are narrower
        chat = not (isinstance(prompt, str) or isinstance(prompt[0], int))

        async def request(client: AsyncOpenAI) -> T:
            answer: Any
            if chat:
                answer = await client.chat.completions.create(
                    model=model, messages=given, extra_body=extra or None, **settings
                )
            else:
                answer = await client.completions.create(
                    model=model, prompt=given, extra_body=extra or None, **settings
                )
            if not getattr(answer, "choices", None):
                raise ValueError(f"an answer without choices: {str(answer)[:200]}")
            reason = getattr(answer.choices[0], "finish_reason", None)
            if reason in ("abort", "error"):
                raise ReplicaLost(f"the server gave the request up (finish_reason {reason!r})")
            return read(answer)

        return await self._send(request, patient)

    async def _complete_guided(
        self,
        prompt: Prompt,
        read: Callable[[Any], T],
        patient: bool,
        extra: dict[str, Any],
        schema: dict[str, Any],
        settings: dict[str, Any],
    ) -> T:
        """Ask for text that follows the schema; where the server refuses the schema, never send that one again."""
        from openai import BadRequestError, UnprocessableEntityError

        if isinstance(prompt, str):
            guided = extra | {"structured_outputs": {"json": schema}}  # vLLM's own field, 0.12 and later
            form: dict[str, Any] = {}
        else:
            named = {"name": "structure", "schema": schema, "strict": True}
            guided = extra
            form = {"response_format": {"type": "json_schema", "json_schema": named}}
        try:
            result = await self._complete(prompt, read, patient, guided, **settings, **form)
        except _GaveUp as refusal:
            if not isinstance(refusal.error, (BadRequestError, UnprocessableEntityError)):
                raise
            # Raises where guidance was not the reason.
            result = await self._complete(prompt, read, patient, extra, **settings)
            text = json.dumps(schema)
            if text not in self._refused_schemas:
                self._refused_schemas.add(text)
                self.guided = self._has_taken_a_schema
                log.warning(
                    "%s refuses the JSON schema %s (%s); from now on it generates unguided by it.",
                    self.name,
                    text if len(text) <= 200 else f"{text[:200]}...",
                    self._clean(_server_message(refusal.error)),
                )
        else:
            self.guided = self._has_taken_a_schema = True
        return result

    async def _score(self, prompt: Prompt, continuation: str, patient: bool) -> TokenScores:
        if not continuation:
            return TokenScores(())
        if self._counts_tokens:
            return await self._score_ids(
                await self._prompt_ids(prompt, patient), await self._continuation_ids(continuation, patient), patient
            )
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
            return self._scored(given.token_logprobs[first:n_prompt], n_prompt - first)

        return await self._complete(prompt + continuation, read, patient, {}, **_ECHO)

    @property
    def _counts_tokens(self) -> bool:
        """Whether prompts and continuations can be sent as ids: a tokenizer is here, or the server lends its own."""
        return self.tokenizer is not None or bool(self._is_vllm)

    async def _score_ids(self, start: list[int], continuation: list[int], patient: bool) -> TokenScores:
        ids = start + continuation
        if not self._is_vllm:
            return await self._complete(
                ids,
                lambda answer: self._scored(
                    answer.choices[0].logprobs.token_logprobs[len(start) : len(ids)], len(continuation)
                ),
                patient,
                {},
                **_ECHO,
            )

        def read(answer: Any) -> TokenScores:
            # One entry a token of the prompt, none for the first: a map from ids, as strings, to what is known.
            table = answer.choices[0].prompt_logprobs or []
            values = [entry.get(str(token)) for token, entry in zip(continuation, table[len(start) :], strict=False)]
            return self._scored([value and value["logprob"] for value in values], len(continuation))

        # One new token, whose value is dropped: not every version takes `max_tokens` 0.
        extra = {"prompt_logprobs": 0, **_NO_DEFAULTS}
        return await self._complete(ids, read, patient, extra, max_tokens=1, temperature=0.0)

    def _scored(self, values: Sequence[float | None], expected: int) -> TokenScores:
        known = [value for value in values if value is not None]
        if len(known) != expected:
            raise EngineError(
                self.name,
                f"log-probabilities of {len(known)} tokens came back, of {expected} expected.",
                "Use a server that supports echo with logprobs, such as vLLM, and a prompt of at least one token.",
            )
        return TokenScores(tuple(known))

    async def _choose(self, prompt: Prompt, choices: list[str], patient: bool) -> tuple[float, ...]:
        if self._counts_tokens:
            start = await self._prompt_ids(prompt, patient)
            whole = [await self._continuation_ids(choice, patient) for choice in choices]
            if self._names_tokens and all(len(ids) == 1 for ids in whole):
                values = await self._choose_token(start, [token for [token] in whole], patient)
                if values is not None:
                    return values
            asked = [self._score_ids(start, ids, patient) for ids in whole]
            scores = await asyncio.gather(*asked, return_exceptions=True)
            for score in scores:
                if isinstance(score, BaseException):
                    raise score
            return tuple(score.total for score in scores if isinstance(score, TokenScores))

        def read(answer: Any) -> list[tuple[str, float]]:
            logprobs = answer.choices[0].logprobs
            if isinstance(prompt, str):
                return list(logprobs.top_logprobs[0].items())
            return [(item.token, item.logprob) for item in logprobs.content[0].top_logprobs]

        ask = {"logprobs": _TOP} if isinstance(prompt, str) else {"logprobs": True, "top_logprobs": _TOP}
        top = await self._complete(prompt, read, patient, {}, max_tokens=1, temperature=0.0, **ask)
        likely = choice_logprobs(top, choices)
        if max(likely) == -math.inf:
            raise EngineError(
                self.name,
                f"none of the choices {choices} begins with one of the {len(top)} likeliest tokens, "
                f"{[token for token, _ in top[:5]]} and so on.",
                "Ask for one of the choices in the prompt, or use choices that differ in their first token.",
            )
        return likely

    async def _choose_token(self, start: list[int], tokens: list[int], patient: bool) -> tuple[float, ...] | None:
        """The log-probabilities of these next tokens by one request; None where this version of vLLM cannot name them.

        It is half the work of scoring two choices, or less: vLLM cannot take `prompt_logprobs` from its prefix cache.
        """

        def read(answer: Any) -> tuple[float, ...] | None:
            found = answer.choices[0].logprobs.top_logprobs[0]
            values = [found.get(f"token_id:{token}") for token in tokens]
            return None if None in values else tuple(values)

        extra = {"logprob_token_ids": tokens, "return_tokens_as_token_ids": True, **_NO_DEFAULTS}
        ask = {"max_tokens": 1, "temperature": 0.0, "logprobs": len(tokens)}
        try:
            values = await self._complete(start, read, patient, extra, **ask)
        except _GaveUp as refusal:
            from openai import BadRequestError

            if not isinstance(refusal.error, BadRequestError):
                raise
            values = None
        if values is None:
            self._names_tokens = False
        return values

    async def _encoded_by_server(self, text: str, patient: bool) -> list[int]:
        self._require_vllm()
        return await self._tokenize({"prompt": text, "add_special_tokens": False}, patient)

    async def _top_logprobs(self, ids: list[int], start: int, k: int, patient: bool) -> TopTokens:
        self._require_vllm()
        # One new token, whose value is dropped. With `prompt_logprobs` vLLM reads no prefix cache.
        settings = {"max_tokens": 1, "temperature": 0.0}
        try:
            return await self._complete(
                ids, lambda answer: self._read_top(answer, ids, start, k), patient, {"prompt_logprobs": k}, **settings
            )
        except EngineError:
            raise
        except Exception as error:
            explained = await self._explained(error)
            if "logprobs" in explained.what and "max" in explained.what:
                explained = EngineError(
                    self.name, explained.what, f"Start it with --max-logprobs {k} (or -1), or lower k."
                )
            raise explained from None

    def _read_top(self, answer: Any, ids: list[int], start: int, k: int) -> TopTokens:
        """One entry for each token of the prompt, none for the first: a map from ids, as strings, to what is known.

        It holds the k likeliest tokens and the one at the position itself, which may or may not be among them.
        """
        table = getattr(answer.choices[0], "prompt_logprobs", None) or []
        if len(table) != len(ids):
            raise EngineError(
                self.name,
                f"log-probabilities of {len(table)} positions came back, of {len(ids)} expected.",
                "Send requests to vLLM itself, not to a proxy that drops fields.",
            )
        tokens, logprobs, taken = [], [], []
        for token, entry in zip(ids[start:], table[start:], strict=True):
            known = sorted(((float(item["logprob"]), int(key)) for key, item in entry.items()), key=lambda x: -x[0])
            if len(known) < k or str(token) not in entry:
                raise EngineError(
                    self.name,
                    f"{len(known)} tokens came back at a position, of k = {k} expected"
                    f"{'' if str(token) in entry else ', without the token at the position itself'}.",
                    f"Start it with --max-logprobs {k} (or -1).",
                )
            tokens.append([key for _, key in known[:k]])
            logprobs.append([value for value, _ in known[:k]])
            taken.append(float(entry[str(token)]["logprob"]))
            mass = math.fsum(map(math.exp, logprobs[-1]))
            if mass > 1.01:
                raise EngineError(
                    self.name,
                    f"these are no log-probabilities: those of {k} tokens come to a probability of {mass:.4g}.",
                    "Start it with --logprobs-mode raw_logprobs or processed_logprobs.",
                )
        return TopTokens(tokens, logprobs, taken)

    def _require_vllm(self) -> None:
        if not self._is_vllm:
            raise EngineError(
                self.name,
                "this is not vLLM by its list of models; no other server gives the log-probabilities of a prompt's "
                "tokens.",
                "Serve the teacher with `vllm serve MODEL --max-logprobs K`.",
            )

    async def _prompt_ids(self, prompt: Prompt, patient: bool) -> list[int]:
        if self.tokenizer is not None:
            return self._encode(encode_prompt, await self._get_tokenizer(), prompt)
        if isinstance(prompt, str):
            ids = await self._tokenize({"prompt": prompt, "add_special_tokens": True}, patient)
        else:
            ids = await self._tokenize({"messages": prompt, "add_generation_prompt": True}, patient)
        if not ids:
            raise EngineError(self.name, NO_TOKENS)
        return ids

    async def _continuation_ids(self, text: str, patient: bool) -> list[int]:
        if self.tokenizer is not None:
            return self._encode(encode_continuation, await self._get_tokenizer(), text)
        ids = self._known_ids.get(text)
        if ids is None:
            ids = await self._tokenize({"prompt": text, "add_special_tokens": False}, patient)
            if len(self._known_ids) >= _KNOWN:  # choices recur, continuations do not
                self._known_ids.clear()  # perhaps while another event loop looks: it keeps the ids it has
            self._known_ids[text] = ids
        return ids

    def _encode(self, encode: Callable[[Any, Any], list[int]], tokenizer: Any, text: Any) -> list[int]:
        try:
            return encode(tokenizer, text)
        except ValueError as error:
            raise EngineError(self.name, str(error)) from None

    async def _tokenize(self, body: dict[str, Any], patient: bool) -> list[int]:
        """Ask vLLM for ids. The address is beside `/v1`, not under it."""

        async def request(client: AsyncOpenAI) -> list[int]:
            url = str(client.base_url).rstrip("/").removesuffix("/v1") + "/tokenize"
            answer: Any = await client.post(
                url, cast_to=object, body={"model": self.model or self._asked_model, **body}
            )
            return [int(token) for token in answer["tokens"]]

        return await self._send(request, patient)

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
        tried, url = "1 attempt", self.urls[0]
        if isinstance(error, _GaveUp):
            tried = f"{error.attempts} attempts" if error.attempts != 1 else "1 attempt"
            url, error = error.url, error.error
        at = f"{url}: " if len(self.urls) > 1 else ""
        if isinstance(error, openai.APIStatusError):
            what = f"{at}the server answered {error.status_code}: {self._clean(_server_message(error))}"
            if _is_transient(error):
                return EngineError(self.name, f"{what}, {tried}.", "Lower concurrency, or look at the server's log.")
            return EngineError(self.name, what + ".", await self._way_out(error.status_code, url))
        if isinstance(error, TimeoutError):
            return EngineError(
                self.name, f"{at}no answer within {self.timeout:g} s, {tried}.", "Raise timeout, or lower concurrency."
            )
        if isinstance(error, ReplicaLost):
            return EngineError(self.name, f"{at}{error}, {tried}.", "Look at the server's log.")
        if isinstance(error, openai.APIConnectionError):
            reason = self._clean(repr(error.__cause__ or error))
            return EngineError(
                self.name, f"{at}no connection: {reason}, {tried}.", "Is the server running at this URL?"
            )
        if isinstance(error, UnicodeEncodeError):
            return EngineError(self.name, f"the request is not valid text: {error}.")
        what = f"{at}the answer does not follow the protocol ({type(error).__name__}: {self._clean(str(error))})."
        return EngineError(self.name, what, "Does the URL end in /v1, and does the server support this request?")

    async def _way_out(self, status: int, url: str) -> str:
        if status in (401, 403):
            known = "is set" if os.environ.get(self.api_key_env) else "is not set"
            return f"The key is taken from the environment variable {self.api_key_env}, which {known}."
        if status not in (404, 405, 410, 501):
            return ""
        [client] = [replica.client for replica in self._connection().replicas.all if replica.url == url]
        try:
            async with asyncio.timeout(self.timeout):
                offered = await _offered(client)
            return f"The server offers: {', '.join(sorted(offered))}."
        except Exception:
            return "The server lists no models either: is it a model server, and does the URL end in /v1?"

    def _clean(self, text: str) -> str:
        key = os.environ.get(self.api_key_env)
        return (text.replace(key, "***") if key else text)[:500]


@dataclass(frozen=True)
class _Connection:
    """What belongs to one event loop. `asking` makes many requests that need the same fact ask for it once."""

    replicas: Replicas
    asking: asyncio.Lock


class _GaveUp(Exception):
    """The last error of a request, after how many attempts, and at which server."""

    def __init__(self, error: Exception, attempts: int, url: str) -> None:
        super().__init__(error, attempts, url)
        self.error = error
        self.attempts = attempts
        self.url = url


class _Course:
    """One request on its way: where it has been, what it met, and whether it goes on."""

    def __init__(self, replicas: Replicas, patient: bool) -> None:
        self.replicas = replicas
        self.patient = patient
        self.began = asyncio.get_running_loop().time()
        self.attempts = 0
        self.url = replicas.all[0].url
        self.refused: set[str] = set()  # where it met something that trying again does not mend
        self.given_up = False
        self.questions = 0  # of `Replicas`, in vain, while it waited

    async def next_replica(self) -> Replica:
        try:
            replica = await self.replicas.take(self.refused, self.patient)
        except Exception:
            self.given_up = True
            self.questions = max(replica.probes for replica in self.replicas.all)
            raise
        self.attempts += 1
        self.url = replica.url
        return replica

    def failed(self, replica: Replica, error: Exception) -> None:
        """Tell the replicas of the failure, where it is the server's."""
        if _is_unreachable(error):
            self.replicas.lost(replica, error)
        elif _is_transient(error):
            self.replicas.rest(replica, _asked_pause(error))
        elif _is_misfit(error):
            self.refused.add(replica.url)
            self.replicas.rest(replica)

    def goes_on(self, error: BaseException) -> bool:
        if self.given_up:
            return False
        return _is_transient(error) or (_is_misfit(error) and len(self.refused) < len(self.replicas.all))

    def is_over(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        # Each replica may have one attempt beside those of the retries.
        if error is None or _is_misfit(error) or self.attempts < self.replicas.retries + len(self.replicas.all):
            return False
        waited = asyncio.get_running_loop().time() - self.began
        return not (self.patient and _is_outage(error) and waited < self.replicas.patience)

    def pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: what the server asks for, else exponential with jitter.

        None where another replica is free, and none after a lost connection: `Replicas` waits until it is back.
        """
        from tenacity import wait_random_exponential

        error = state.outcome.exception() if state.outcome else None
        if error is None or self.replicas.several or _is_unreachable(error):
            return 0.0  # `Replicas` lets the one that failed rest
        asked = _asked_pause(error)
        if asked is None:
            return wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)(state)
        return asked


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
    """Whether the same request may succeed at the same server a little later."""
    import openai

    if isinstance(error, openai.APIStatusError):
        # 501: a server that has no such request, and never will.
        return error.status_code in (408, 409, 429) or (error.status_code >= 500 and error.status_code != 501)
    return isinstance(error, (openai.APIConnectionError, TimeoutError, ReplicaLost))


def _is_unreachable(error: BaseException) -> bool:
    import openai

    return isinstance(error, (openai.APIConnectionError, ReplicaLost))


def _is_outage(error: BaseException) -> bool:
    """Whether the server is away or asks to come back later, so that an attempt costs next to nothing."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (429, 502, 503, 504)
    return _is_unreachable(error)


def _is_misfit(error: BaseException) -> bool:
    """Whether this server is the wrong one for the request: another model, another key, not a model server at all."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (401, 403, 404, 405, 410, 501)
    own = (openai.APIConnectionError, TimeoutError, ReplicaLost, EngineError, UnicodeEncodeError)
    return isinstance(error, Exception) and not isinstance(error, own)


def _asked_pause(error: BaseException) -> float | None:
    """The seconds that the server asks for, if it does; at most a minute."""
    from openai import APIStatusError

    asked = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    seconds = _seconds(asked)
    return None if seconds is None else min(seconds, _LONGEST_ASKED)


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
            f"base_url of the server {parts.hostname}: a user, password, query or fragment has no place in it. "
            f"Put the key in the environment variable {api_key_env}."
        )
    return url.rstrip("/")


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
