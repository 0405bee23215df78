"""The reward `http`: a server of your own scores completions, in batches over HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rewards.contract import Failed, RewardError, RewardOptions
from rlkd.data.rows import completion_text, question_of

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which a request is sent again; any other one is an answer."""


class HttpReward:
    """The scores that a server returns.

    The request is `{"samples": [{"question": ..., "completion": ..., COLUMN: ...}, ...]}`, at most `batch` of them.
    The reply is `{"scores": [...]}`, in order: a number, null (not applicable), or `{"error": "why"}` (failed). No
    samples get no scores; this request is sent once before a run. A server that does not answer, or answers
    something else, is a failure of these completions, and never a 0.

    Args:
        url: address that takes the requests.
        columns: columns of the data that each sample carries, such as `answer`.
        batch: completions in a request.
        timeout: seconds for one attempt.
        retries: further attempts after no answer, or after a status that says "later" (408, 425, 429, 5xx); the pause
            before the n-th is `pause` x 2^(n-1) seconds.
        pause: seconds before the first of them.
        token: name of an environment variable whose value goes along as a bearer token. Never the token itself.
        at_once: requests under way at the same time.
    """

    __name__ = "http"
    reward_options = RewardOptions(isolate=False, timeout=None)
    sends_requests = True

    def __init__(
        self,
        url: str,
        *,
        columns: list[str] | None = None,
        batch: int = 64,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
        token: str | None = None,
        at_once: int = 8,
    ):
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url {url!r}: expected an address that begins with http:// or https://")
        for name, value, least in (("batch", batch, 1), ("retries", retries, 0), ("at_once", at_once, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} {value!r}: expected a whole number of at least {least}")
        if not timeout > 0 or not pause >= 0:
            raise ValueError(f"timeout {timeout!r}, pause {pause!r}: expected seconds above 0, and from 0")
        self.url = url
        self.columns = tuple(columns or ())
        self.needs = self.columns
        self.batch = batch
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        self.token = token
        self.at_once = at_once

    def describe(self) -> str:
        """What computes this reward, in a line."""
        return f"the server at {self._shown}"

    def check_ready(self) -> None:
        """Raise `RewardError` where the token is missing, or the server does not answer a request without samples."""
        from rlkd.engines import run

        if self.token is not None and self.token not in os.environ:
            raise RewardError(
                f"reward {self.__name__!r}: token: there is no environment variable {self.token}. Set it, or leave "
                f"`token` out"
            )
        [answer] = run(self._send([[]]))
        if isinstance(answer, str):
            raise RewardError(
                f'reward {self.__name__!r}: {answer}. It must answer {{"samples": []}} with {{"scores": []}}'
            )

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | Failed | None]:
        """Score a batch."""
        if missing := [name for name in self.columns if name not in columns]:
            raise RewardError(f"reward {self.__name__!r}: columns: the data have no column {missing[0]!r}")
        samples = [
            {
                "question": question_of(prompt),
                "completion": completion_text(completion),
                **{name: columns[name][i] for name in self.columns},
            }
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        parts = [samples[start : start + self.batch] for start in range(0, len(samples), self.batch)]
        scores: list[float | Failed | None] = []
        for part, answer in zip(parts, await self._send(parts), strict=True):
            scores += [Failed(answer)] * len(part) if isinstance(answer, str) else map(_score, answer)
        return scores

    async def _send(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Any] | str]:
        """The scores of each part; a text says why there are none."""
        import httpx

        token = os.environ.get(self.token) if self.token else None
        headers = {"authorization": f"Bearer {token}"} if token else {}
        gate = asyncio.Semaphore(self.at_once)
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout) as client:

            async def send(part: Sequence[Mapping[str, Any]]) -> list[Any] | str:
                async with gate:
                    return await self._ask(client, part)

            return list(await asyncio.gather(*map(send, parts)))

    async def _ask(self, client: Any, part: Sequence[Mapping[str, Any]]) -> list[Any] | str:
        import httpx

        fault = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(self.pause * 2 ** (attempt - 1))
            try:
                response = await client.post(self.url, json={"samples": part})
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                fault = f"no answer from {self._shown} ({type(error).__name__}: {error})"
                continue
            if response.status_code in RETRIED:
                fault = f"{self._shown} answered with status {response.status_code}"
                continue
            return self._read(response, len(part))
        return f"{fault}, after {self.retries + 1} attempts"

    def _read(self, response: Any, count: int) -> list[Any] | str:
        if response.status_code != 200:
            return f"{self._shown} answered with status {response.status_code}: {response.text[:200]!r}"
        try:
            scores = response.json()["scores"]
        except (ValueError, TypeError, KeyError):
            return f'{self._shown} answered {response.text[:200]!r}; expected {{"scores": [...]}}'
        if not isinstance(scores, list) or len(scores) != count:
            found = len(scores) if isinstance(scores, list) else repr(scores)[:80]
            return f"{self._shown} answered {found} scores for {count} samples"
        return scores

    @property
    def _shown(self) -> str:
        parts = urlsplit(self.url)
        # Without a user, a password and what follows the path, which may hold a key.
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _score(value: Any) -> float | Failed | None:
    if value is None:
        return None
    if isinstance(value, dict) and "error" in value:
        return Failed(str(value["error"]))
    if isinstance(value, int | float):
        return float(value)
    return Failed(f"the server answered {value!r} for a score; expected a number, null or an error")
