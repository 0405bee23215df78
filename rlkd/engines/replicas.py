"""Several servers with the same model behind one engine: which one gets a request, and when one is left alone.

`docs/engines.md` has the rules. One `Replicas` belongs to one event loop and is used from it alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rlkd.engines.base import EngineError
from rlkd.engines.failures import (
    RequestLost,
    RetriesExhausted,
    cause_of,
    is_misfit,
    is_outage,
    is_transient,
    is_unreachable,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5  # seconds; the longest first rest, doubled at each further failure
_LONGEST_PAUSE = 5.0  # in an outage
_LONGEST_REST = 30.0  # after other failures
_CHECK_EVERY = 5.0  # seconds between two health checks of a replica with requests in flight
_CHECK_TIMEOUT = 10.0  # seconds for an answer to one; a busy server is slow
_SILENT = 2  # unanswered health checks in a row that mean that it is lost


@dataclass(eq=False)
class Replica:
    """One server, as one event loop sees it. Times are the loop's, in seconds."""

    url: str
    client: AsyncOpenAI
    in_flight: int = 0
    sent: int = 0
    failures: int = 0  # in a row, those at the same time counted once
    error: Exception | None = None  # of the last one
    failing_since: float = 0.0
    rests_until: float = 0.0
    attempts: set[asyncio.Timeout] = field(default_factory=set)
    checks: asyncio.Task[None] | None = None

    @property
    def away(self) -> Exception | None:
        """Why the server cannot be reached, if so."""
        return self.error if self.failures and is_unreachable(self.error) else None


class Replicas:
    """The servers of one engine in one event loop, with at most `concurrency` requests in flight at each.

    `retries`: attempts after the first, and one more for each further replica. `patience`: seconds of an outage that a
    call with a deadline waits.
    """

    def __init__(self, clients: Mapping[str, AsyncOpenAI], *, concurrency: int, retries: int, patience: float) -> None:
        self.all = [Replica(url, client) for url, client in clients.items()]
        self.concurrency = concurrency
        self.retries = retries
        self.patience = patience
        self.several = len(self.all) > 1
        self.lock = asyncio.Lock()
        """Held while a fact about the servers is requested, so that many requests that need it ask once."""
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """Give replicas that were given up another chance, at a new call."""
        now = _now()
        for replica in self.all:
            if replica.failures > (retries := self._retries(replica.error)):
                replica.failures, replica.failing_since, replica.rests_until = retries, now, now
        self._notify()

    async def send(self, request: Callable[[AsyncOpenAI], Awaitable[T]], patient: bool) -> T:
        """Send one request, to further replicas and again where that can help. Raises `RetriesExhausted`.

        `request` reads the reply as well: one that makes no sense is a failure of the server that gave it. An
        `EngineError` that it raises is final. `patient`: whether an outage is waited out.
        """
        began, attempts, refused = _now(), 0, set[str]()
        while True:
            replica = await self._take(refused, patient)
            attempts += 1
            try:
                reply = await self.attempt(request, replica)
            except EngineError:
                raise
            except Exception as error:
                if is_misfit(error):
                    refused.add(replica.url)
                    goes_on = len(refused) < len(self.all)
                else:
                    waits = patient and is_outage(error) and _now() - began < self.patience
                    left = attempts < self._retries(error) + len(self.all)
                    goes_on = is_transient(error) and (left or waits)
                self._failed(replica, error)
                if not goes_on:
                    raise RetriesExhausted(error, self._tried(error, attempts), replica.url) from None
            else:
                replica.failures, replica.rests_until = 0, 0.0
                return reply
            finally:
                self._free(replica)

    async def attempt(self, request: Callable[[AsyncOpenAI], Awaitable[T]], replica: Replica) -> T:
        """Send one request to one replica."""
        away = replica.away
        if self.several and away is not None and not await _answers(replica):
            raise away
        try:
            async with asyncio.timeout(None) as limit:
                replica.attempts.add(limit)
                try:
                    return await request(replica.client)
                finally:
                    replica.attempts.discard(limit)
        except TimeoutError:
            raise RequestLost(f"no answer to {_SILENT} health checks in a row") from None

    async def _take(self, refused: Collection[str], patient: bool) -> Replica:
        """Wait for the replica to send a request to, and count the request as its own; `_free` ends that."""
        considered = [replica for replica in self.all if replica.url not in refused]
        while True:
            now = _now()
            hopeful = [replica for replica in considered if not self._is_given_up(replica, patient)]
            if not hopeful:
                [replica, *_] = considered
                error = replica.error or LookupError("no replica is left")
                raise RetriesExhausted(error, self._tried(error, replica.failures), replica.url)
            rested = [replica for replica in hopeful if replica.rests_until <= now]
            ready = [replica for replica in rested if replica.in_flight < self._limit(replica)]
            if ready:
                replica = min(ready, key=lambda replica: (replica.in_flight, replica.sent))
                replica.in_flight += 1
                replica.sent += 1
                if self.several and replica.checks is None:
                    replica.checks = asyncio.create_task(self._check(replica), name=f"rlkd-checks-{replica.url}")
                return replica
            resting = [replica.rests_until for replica in hopeful if replica.rests_until > now]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(resting) - now if resting else None):
                    await self._changed.wait()

    def _free(self, replica: Replica) -> None:
        replica.in_flight -= 1
        if replica.in_flight == 0 and replica.checks is not None:
            replica.checks.cancel()
            replica.checks = None
        self._notify()

    def _failed(self, replica: Replica, error: Exception) -> None:
        now = _now()
        own = is_transient(error) or is_misfit(error) if self.several else is_outage(error)
        if not own or (replica.failures and now < replica.rests_until):
            return
        if replica.failures == 0:
            replica.failing_since = now
            if is_unreachable(error):
                log.warning("%s does not answer (%s).", replica.url, cause_of(error))
        replica.failures += 1
        replica.error = error
        longest = _LONGEST_PAUSE if is_outage(error) else _LONGEST_REST
        # Full jitter, so that clients do not come in step.
        pause = random.Random().uniform(0, min(longest, _FIRST_PAUSE * 2.0 ** min(replica.failures - 1, 30)))
        replica.rests_until = now + pause

    def _is_given_up(self, replica: Replica, patient: bool) -> bool:
        if replica.failures <= self._retries(replica.error):
            return False
        if patient:
            return is_outage(replica.error) and _now() - replica.failing_since >= self.patience
        return replica.away is not None

    def _limit(self, replica: Replica) -> int:
        return 1 if replica.failures else self.concurrency

    def _retries(self, error: Exception | None) -> int:
        """The retries to make here; at a single server the client makes those that it can."""
        return self.retries if self.several or isinstance(error, RequestLost) else 0

    def _tried(self, error: Exception, attempts: int) -> int:
        return attempts * (self.retries + 1) if is_transient(error) and not self._retries(error) else attempts

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _check(self, replica: Replica) -> None:
        silent = 0
        while silent < _SILENT:
            await asyncio.sleep(_CHECK_EVERY)
            silent = 0 if await _answers(replica) else silent + 1
        replica.checks = None
        for attempt in list(replica.attempts):
            with suppress(RuntimeError):  # it is ending already
                attempt.reschedule(_now())


async def _answers(replica: Replica) -> bool:
    """Whether the replica answers `GET /models`. Any answer will do: requests show what it is worth."""
    from openai import APIConnectionError, APIStatusError

    try:
        async with asyncio.timeout(_CHECK_TIMEOUT):
            await replica.client.with_options(max_retries=0).models.list()
    except (APIConnectionError, TimeoutError):
        return False
    except APIStatusError as error:
        return error.status_code < 500 or replica.away is None
    except Exception:  # not the protocol, but an answer
        pass
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
