"""Several servers with the same model behind one engine: which of them gets a request, and when one is left alone.

A request goes to the replica with the fewest requests in flight; among equals, to the one that was sent the fewest.

- A replica that cannot be reached is *away*: it gets nothing until it answers `GET /models` again. It is asked after
  pauses that double, up to five seconds, for as long as a call is under way.
- A replica that answered wrongly, too late or with a refusal *rests*, for pauses that double as well. Then it gets one
  request at a time until one of them succeeds.
- Where there are several, each one with requests in flight is asked `GET /models` every five seconds. One that is
  silent twice in a row (hung, or cut off without a word) is away, and its requests go to another at once.

Should the watch itself fail, that is logged: the servers that answer go on, and a request that only one that is away
could take ends with an `EngineError`. The next call begins another watch.

With a single server nothing rests, since there is nowhere else to go: each request makes its own pause.

What to do about a request is decided in `server.py`; this module only knows the servers. One `Replicas` belongs to one
event loop and is used from it alone, so it needs no lock.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlkd.engines.base import EngineError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

_CHECK_EVERY = 5.0  # seconds between two questions to a replica with requests in flight
_CHECK_TIMEOUT = 10.0  # seconds it may take over an answer; a busy server is slow
_SILENT = 2  # unanswered questions in a row that make it away
_LONGEST_REST = 30.0


class ReplicaLost(ConnectionError):
    """The replica stopped answering health checks while it had this request, or gave the request up itself."""


@dataclass(eq=False)
class Replica:
    """One server, as one event loop sees it. Times are the loop's, in seconds."""

    url: str
    client: AsyncOpenAI
    in_flight: int = 0
    sent: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0
    away: Exception | None = None  # why it is
    away_since: float = 0.0
    probes: int = 0  # in vain, since a call was last begun
    next_probe: float = 0.0
    checked: float = 0.0
    silent: int = 0
    attempts: set[asyncio.Timeout] = field(default_factory=set)


class Replicas:
    """The servers of one engine in one event loop.

    `concurrency`: requests in flight at each. `retries`: questions in vain after which an outage is final for a caller
    without patience. `patience`: seconds of an outage after which it is final for any caller. `first_pause`: the most
    seconds before the first question, doubled at each.
    """

    def __init__(
        self,
        clients: Mapping[str, AsyncOpenAI],
        *,
        concurrency: int,
        retries: int,
        patience: float,
        first_pause: float,
        longest_pause: float,
    ) -> None:
        self.all = [Replica(url, client) for url, client in clients.items()]
        self.concurrency = concurrency
        self.retries = retries
        self.patience = patience
        self.first_pause = first_pause
        self.longest_pause = longest_pause
        self._changed = asyncio.Event()
        self._calls = 0
        self._watcher: asyncio.Task[None] | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self.all) > 1

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look after the replicas meanwhile: ask for those that are away, and for those that may have hung."""
        self._calls += 1
        if self._watcher is None or self._watcher.done():
            now = _now()
            for replica in self.all:  # a new call gives one that was given up another chance
                replica.probes, replica.next_probe, replica.checked, replica.silent = 0, now, now, 0
            self._watcher = asyncio.create_task(self._watch(), name="rlkd-replicas")
            self._watcher.add_done_callback(self._watch_ended)
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                watcher, self._watcher = self._watcher, None
                watcher.cancel()

    async def take(self, without: Collection[str], patient: bool) -> Replica:
        """Wait for the replica to send a request to, and count the request as its own; `free` ends that.

        `without`: the URLs not to be considered. Raises what made the replicas away, once that is final,
        LookupError where none is left to consider, and `EngineError` where nobody asks any more for those away.
        """
        considered = [replica for replica in self.all if replica.url not in without]
        if not considered:
            raise LookupError("no replica is left")
        while True:
            now, wait = _now(), None
            reachable = [replica for replica in considered if replica.away is None]
            rested = [replica for replica in reachable if replica.rests_until <= now]
            ready = [replica for replica in rested if replica.in_flight < self._limit(replica)]
            if ready:
                replica = min(ready, key=lambda replica: (replica.in_flight, replica.sent))
                replica.in_flight += 1
                replica.sent += 1
                if replica.in_flight == 1:  # from now on it is asked whether it is there
                    self._notify()
                return replica
            if not reachable and all(self._given_up(replica, patient) for replica in considered):
                raise considered[0].away or LookupError("no replica is left")
            if not reachable:
                self._check_watch()
            if reachable and not rested:
                wait = min(replica.rests_until for replica in reachable) - now
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def free(self, replica: Replica) -> None:
        """The request that `take` counted is over."""
        replica.in_flight -= 1
        self._notify()

    def succeeded(self, replica: Replica) -> None:
        """The replica gave a good answer."""
        replica.failures = replica.silent = 0
        replica.rests_until = 0.0
        if replica.away is not None:
            self._back(replica)

    def rest(self, replica: Replica, seconds: float | None = None) -> None:
        """The replica answered badly or too late: prefer others, for the seconds it asks for or a growing pause."""
        replica.failures += 1
        if self.several:
            pause = self._pause(replica.failures, _LONGEST_REST) if seconds is None else seconds
            replica.rests_until = max(replica.rests_until, _now() + pause)
        self._notify()

    def lost(self, replica: Replica, error: Exception) -> None:
        """The replica cannot be reached: send it nothing until it answers again."""
        replica.failures += 1
        if replica.away is None:
            replica.away_since = _now()
            replica.probes = 0
            log.warning("%s does not answer (%s); asking until it does.", replica.url, _short(error))
        replica.away = error
        replica.next_probe = _now() + self._pause(replica.failures, self.longest_pause)
        self._notify()

    def outage_is_young(self, replica: Replica) -> bool:
        """Whether an outage of this replica, if there is one, may still be waited out."""
        return replica.away is None or _now() - replica.away_since < self.patience

    def _limit(self, replica: Replica) -> int:
        return 1 if self.several and replica.failures else self.concurrency

    def _given_up(self, replica: Replica, patient: bool) -> bool:
        return replica.probes >= self.retries and not (patient and self.outage_is_young(replica))

    def _back(self, replica: Replica) -> None:
        log.warning("%s answers again, after %.0f s.", replica.url, _now() - replica.away_since)
        replica.away = None
        replica.rests_until = 0.0
        self._notify()

    def _pause(self, failures: int, longest: float) -> float:
        """Seconds before the next try: exponential with full jitter, so that clients do not come in step."""
        return random.Random().uniform(0, min(longest, self.first_pause * 2.0 ** min(failures - 1, 30)))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _watch_ended(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            log.error("the watch over %s failed", ", ".join(replica.url for replica in self.all), exc_info=error)
            self._notify()

    def _check_watch(self) -> None:
        watcher = self._watcher
        if watcher is not None and watcher.done() and not watcher.cancelled():
            raise EngineError(
                ",".join(replica.url for replica in self.all),
                f"the watch over the servers failed ({watcher.exception()!r}) while none of them could be reached.",
                "The next call begins another.",
            )

    async def _watch(self) -> None:
        while True:
            now = _now()
            due = [(self._due(replica), replica) for replica in self.all]
            waiting = [time for time, _ in due if time is not None]
            asked = [replica for time, replica in due if time is not None and time <= now]
            if asked:
                await asyncio.gather(*(self._ask(replica) for replica in asked))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(waiting) - now if waiting else None):
                    await self._changed.wait()

    def _due(self, replica: Replica) -> float | None:
        """When to ask the replica whether it is there, if at all."""
        if replica.away is not None:
            return replica.next_probe
        return replica.checked + _CHECK_EVERY if self.several and replica.in_flight else None

    async def _ask(self, replica: Replica) -> None:
        """Ask whether the replica is there. Any answer but a server error will do: requests show what it is worth."""
        from openai import APIConnectionError, APIStatusError

        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):
                await replica.client.models.list()
            error: Exception | None = None
        except (APIConnectionError, TimeoutError) as trouble:
            error = trouble
        except APIStatusError as trouble:
            error = trouble if trouble.status_code >= 500 else None
        except Exception:  # not the protocol, but an answer
            error = None
        replica.checked = _now()
        if replica.away is not None:
            if error is None:
                self._back(replica)
            else:
                replica.probes += 1
                replica.next_probe = _now() + self._pause(replica.probes + replica.failures, self.longest_pause)
                self._notify()
        elif isinstance(error, (APIConnectionError, TimeoutError)):
            replica.silent += 1
            if replica.silent >= _SILENT:
                self.lost(replica, ReplicaLost(f"no answer to {_SILENT} health checks in a row"))
                for attempt in list(replica.attempts):  # each ends with a TimeoutError
                    with suppress(RuntimeError):  # its own time-out has just passed
                        attempt.reschedule(_now())
        else:
            replica.silent = 0


def _now() -> float:
    return asyncio.get_running_loop().time()


def _short(error: Exception) -> str:
    """The connection's own error where the client wraps it; no headers, so no key."""
    return repr(error.__cause__ or error)[:200]
