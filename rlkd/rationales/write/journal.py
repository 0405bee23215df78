"""Asking a teacher once: the journal of its answers, and the one who asks.

    with Journal(Path("runs/rationales/journal.jsonl")) as journal:
        teacher = Teacher(engine, journal, seed=42)
        answers = run(teacher.ask(requests))

The journal is the only state of a run. Everything else (candidates, bank, counts) is worked out again from the same
rows and the journal's answers, in the same order. What holds:

1. An answer is kept once `Journal.add` has returned: a process killed at any moment loses none. A last line that was
   cut off is taken away when the file is opened again; what it held is asked again.
2. An answer is found by the digest of its own request: model, prompt, sampling and, where it is sampled, seed,
   question, stage and number. What it was asked together with does not matter, so after a change of settings (more
   candidates, more rows, another `batch`) what is new is asked, and the rest is used.
3. What a request draws depends on seed, question, stage and number: alone with a server or vLLM, where a call is one
   request. `TransformersEngine` has one seed a call, so there it depends on what it was first asked together with. The
   calls are made up before the journal is looked at, so a run that starts again with the same settings draws the same.
4. A request that failed is left out, and asked again by the next start. When the run went on without it, the journal
   says so (`passed_over`): an answer that comes later is marked as late, so that what later requests were made of (the
   bank) stays what it was.

One process writes a journal at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlkd.cache import cache_key
from rlkd.engines import Completion, Engine, EngineError, Prompt, Sampling
from rlkd.errors import UsageError

# So many requests are gone through before a share of failures is called too high, unless fewer are all and all failed.
FEWEST = 20
# How a line begins, and what its kind holds: digest to answer, or to reason.
_BEGINNINGS = (b'{"answers": {', b'{"passed_over": {')
_ANSWER = {"text": str, "finish_reason": str, "n_tokens": int}


class JournalError(UsageError):
    """A journal that cannot be used: the file, what is wrong with it, and the way out."""


class Journal:
    """Answers by the digest of their request, in a file of JSON lines that only grows.

    In memory are 16 bytes of each digest and where its line begins, not the texts. Raises `JournalError` where the
    file is no journal, a line is damaged that is not the torn end of a journal, or another process has it open; then
    the file is left as it is.
    """

    def __init__(self, path: Path):
        from filelock import FileLock, Timeout

        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"{self.path} is being written by another process. Wait for it, or name another output_dir"
            ) from None
        self._where: dict[bytes, int] = {}
        self.passed_over: dict[str, str] = {}
        """Requests without which an earlier start went on, and why."""
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        try:
            self._read()
            self._out = self.path.open("ab")
            self._in = self.path.open("rb")
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let others write it."""
        self._out.close()
        self._in.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, digest: str) -> bool:
        return _short(digest) in self._where

    def get(self, digest: str) -> Completion | None:
        """The answer to a request; None where there is none."""
        place = self._where.get(_short(digest))
        if place is None:
            return None
        if self._last[0] != place:
            self._in.seek(place)
            self._last = place, json.loads(self._in.readline())["answers"]
        return Completion(**self._last[1][digest])

    def add(self, answers: Mapping[str, Completion]) -> None:
        """Keep the answers of one call, in one line."""
        if answers:
            place = self._append({"answers": {digest: vars(answer) for digest, answer in answers.items()}})
            self._where.update(dict.fromkeys(map(_short, answers), place))

    def pass_over(self, failures: Mapping[str, str]) -> None:
        """Keep that the run goes on without these requests, digest to reason."""
        new = {digest: reason for digest, reason in failures.items() if digest not in self.passed_over}
        if new:
            self._append({"passed_over": new})
            self.passed_over.update(new)

    def _append(self, record: Mapping[str, Any]) -> int:
        place = self._out.seek(0, os.SEEK_END)
        # One write: a kill leaves a whole line, none, or a torn one at the very end.
        self._out.write(json.dumps(record).encode() + b"\n")
        self._out.flush()
        return place

    def _read(self) -> None:
        if not self.path.exists():
            return
        place = 0
        with self.path.open("r+b") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n") and any(line.startswith(each[: len(line)]) for each in _BEGINNINGS):
                    file.truncate(place)
                    return
                try:
                    kind, held = _checked(line)
                except ValueError as error:
                    raise JournalError(
                        f"{self.path}, line {number}: not a line of a journal ({error}). Delete that line, and what "
                        f"it held is asked again; or name another output_dir"
                    ) from error
                if kind == "answers":
                    self._where.update(dict.fromkeys(map(_short, held), place))
                else:
                    self.passed_over.update(held)
                place += len(line)


def _short(digest: str) -> bytes:
    """Half of a digest: enough to tell answers apart, and a fifth of the memory."""
    return bytes.fromhex(digest)[:16]


def _checked(line: bytes) -> tuple[str, dict[str, Any]]:
    """What a line of a journal is, and what it holds; raises ValueError where it is none."""
    if not line.endswith(b"\n"):
        raise ValueError("it has no end, and no beginning of one either")
    record = json.loads(line)
    kind, held = next(iter(record.items()), ("", None)) if isinstance(record, dict) else ("", None)
    if kind not in ("answers", "passed_over") or len(record) != 1 or not isinstance(held, dict):
        raise ValueError("neither answers nor what was passed over")
    for digest, value in held.items():
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{digest[:80]!r} is no digest")
        if kind == "passed_over":
            fits = isinstance(value, str)
        else:
            fits = isinstance(value, dict) and {name: type(each) for name, each in value.items()} == _ANSWER
        if not fits:
            raise ValueError(f"found {str(value)[:80]!r} under {digest[:8]}")
    return kind, held


@dataclass(frozen=True)
class Request:
    """One request. `question_id`, `stage` and `number` name it, and with the run's seed decide what it draws."""

    question_id: str
    stage: str
    number: int
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True)
class Answer:
    """What came of a request: a completion, or None and why. `late`: the run has once gone on without it."""

    completion: Completion | None
    error: str | None = None
    late: bool = False


@dataclass(frozen=True)
class _Call:
    """What goes to the engine at once: requests of one sampling, and their digests."""

    requests: tuple[Request, ...]
    digests: tuple[str, ...]


class Teacher:
    """Asks an engine what the journal does not know.

    `concurrency` calls are under way at a time, and as many for each further replica of a server. A call to a server
    or to vLLM holds one request; to another model in this process it holds `batch` of them, which are computed
    together. `deadline` (seconds) is for a request to a server.

    Where more than `max_failure_rate` of the requests that this start has gone through (asked, or found in the
    journal) have failed, `ask` raises `UsageError` with the last error; one that is raised so has passed nothing over.
    While the run goes on, failures without which an earlier start went on do not count: they are no news.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        seed: int = 42,
        concurrency: int = 16,
        batch: int = 16,
        deadline: float | None = 600.0,
        max_failure_rate: float = 0.1,
    ):
        if concurrency < 1 or batch < 1:
            raise UsageError(f"concurrency={concurrency}, batch={batch}: expected at least 1")
        if not 0 <= max_failure_rate <= 1:
            raise UsageError(f"max_failure_rate={max_failure_rate}: expected a share between 0 and 1")
        self.engine = engine
        self.journal = journal
        self.seed = seed
        self.concurrency = concurrency * engine.replicas
        # An engine that works on several calls at a time batches them itself, and each request has a seed of its own.
        self.batch = batch if engine.concurrency == 1 and not engine.is_remote else 1
        self.deadline = deadline if engine.is_remote else None
        self.max_failure_rate = max_failure_rate
        # A server that has moved to another address is the same teacher.
        self.name = engine.identity or engine.name
        self.asked = self.known = self.failed = 0
        """Requests sent by this start, found in the journal, and failed."""
        self._again = 0
        """Of the failed ones those that an earlier start had passed over."""
        self._expected = 0
        """Requests that the present `ask` is about."""
        self.last_error: EngineError | None = None

    async def ask(
        self, requests: Sequence[Request], advance: Callable[[int], object] = lambda count: None
    ) -> list[Answer]:
        """The answers, aligned with the requests.

        `advance` is told how many requests are done. Equal greedy requests are asked once. Each request that the
        journal does not know is sent, or the call raises.
        """
        slots = asyncio.Semaphore(self.concurrency)
        calls = list(self._calls(requests))
        failures: dict[str, str] = {}
        waiting = []
        taken: set[str] = set()
        for call in calls:
            missing = []
            for place, digest in enumerate(call.digests):
                if digest not in self.journal and digest not in taken:
                    missing.append(place)
                    taken.add(digest)
            self.known += len(call.requests) - len(missing)
            advance(len(call.requests) - len(missing))
            if missing:
                waiting.append((call, missing))
        self._expected = len(requests)

        async def answer(call: _Call, missing: list[int]) -> None:
            async with slots:
                # With a server that is away, what waits would wait in vain.
                if self._fails():
                    left.append((call, missing))
                else:
                    failures.update(await self._send(call, missing))
                    advance(len(missing))

        # What was left while too much failed is taken up again if what was under way then went well.
        while waiting:
            left: list[tuple[_Call, list[int]]] = []
            async with asyncio.TaskGroup() as group:
                for call, missing in waiting:
                    group.create_task(answer(call, missing))
            if self._fails():
                raise self._too_many()
            waiting = left
        self.journal.pass_over(failures)
        return [
            Answer(self.journal.get(digest), failures.get(digest), digest in self.journal.passed_over)
            for call in calls
            for digest in call.digests
        ]

    def check(self) -> None:
        """Raise `UsageError` where too large a share of all requests has failed, however few there were."""
        if self.failed > self.max_failure_rate * (self.asked + self.known):
            raise self._too_many()

    def _fails(self) -> bool:
        failed, through = self.failed - self._again, self.asked + self.known - self._again
        enough = through >= FEWEST or failed == through >= self._expected > 0
        return enough and failed > self.max_failure_rate * through

    def _too_many(self) -> UsageError:
        return UsageError(
            f"{self.failed} of {self.asked + self.known} requests failed, more than max_failure_rate "
            f"{self.max_failure_rate:g} allows. The last error: {self.last_error}\nWhat was answered is kept; the "
            f"same command again asks for the rest."
        )

    async def _send(self, call: _Call, missing: Sequence[int]) -> dict[str, str]:
        """Ask for what is missing of a call, and keep what is answered; the failures with their reasons."""
        requests = [call.requests[place] for place in missing]
        sampling = requests[0].sampling
        if sampling.temperature > 0:
            named = json.dumps([self.seed, *((each.question_id, each.stage, each.number) for each in requests)])
            # 31 bits: some servers take no more.
            sampling = replace(sampling, seed=int.from_bytes(hashlib.sha256(named.encode()).digest()[:4]) // 2)
        prompts = [each.prompt for each in requests]
        found = await self.engine.generate(prompts, sampling, deadline=self.deadline)
        self.asked += len(missing)
        failures, answered = {}, {}
        for place, result in zip(missing, found, strict=True):
            digest = call.digests[place]
            if isinstance(result, EngineError):
                failures[digest] = str(result)
                self.last_error = result
                self.failed += 1
                self._again += digest in self.journal.passed_over
            else:
                answered[digest] = result
        self.journal.add(answered)
        return failures

    def _calls(self, requests: Sequence[Request]) -> Iterable[_Call]:
        """The requests in calls: as many as fit, in their order, all with one sampling."""
        batch: list[Request] = []
        for request in requests:
            if batch and (len(batch) == self.batch or request.sampling != batch[0].sampling):
                yield _Call(tuple(batch), tuple(map(self._digest, batch)))
                batch = []
            batch.append(request)
        if batch:
            yield _Call(tuple(batch), tuple(map(self._digest, batch)))

    def _digest(self, request: Request) -> str:
        sampling = request.sampling
        settings: dict[str, Any] = {**vars(sampling), "stop": list(sampling.stop)}
        drawn = [self.seed, request.question_id, request.stage, request.number] if sampling.temperature > 0 else None
        return cache_key("answer", 1, self.name, request.prompt, settings, drawn)
