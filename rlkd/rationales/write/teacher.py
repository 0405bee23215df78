"""The teacher: sends requests to an engine, unless the journal has their answers.

The digest of a request covers model, prompt, sampling and, for a sampled request, seed, question, stage and number,
which also determine its random draw. `TransformersEngine` has one seed per call, so there a draw depends on the other
requests of its first call. Calls are composed before the journal is consulted, so a run that starts again with the
same settings draws the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, Literal

from rlkd.cache import cache_key
from rlkd.engines import (
    Completion,
    Contrast,
    ContrastiveEngine,
    Engine,
    EngineError,
    Prompt,
    Sampling,
    check_ready,
    from_environment,
    open_engine,
    require_identity,
)
from rlkd.errors import UsageError
from rlkd.rationales.write.journal import Journal

# Requests after which a share of failures can be too high, unless all requests are fewer and all failed.
MIN_REQUESTS = 20


def open_teacher(
    spec: str, *, concurrency: int = 16, deadline: float = 600.0, role: Literal["teacher", "student"] = "teacher"
) -> Engine:
    """The engine of the teacher, or of a student that writes.

    Raises `UsageError` if a server does not answer or lacks the model.

    `concurrency` and `deadline` (seconds for a request) are for a server: one attempt may take half of the deadline,
    which leaves time for another.
    """
    served = {"concurrency": concurrency, "timeout": deadline / 2}
    engine = open_engine(from_environment(spec, f"the {role}"), defaults=served)
    require_identity(engine, role, engine.name)
    if engine.is_remote:
        check_ready(engine, f"--{role}")
    return engine


def check_contrast(engine: Engine) -> None:
    """Raise `UsageError` for an engine without contrastive decoding."""
    if not isinstance(engine, ContrastiveEngine):
        raise UsageError(
            f"the writers 'contrast' and 'counterfactual' need the log-probabilities of all tokens at each step, and "
            f"{engine.name} does not give them. Name a teacher in this process (--teacher transformers:MODEL), or "
            f"write with 'free' and --hinted_retry true"
        )


@dataclass(frozen=True)
class Request:
    """One request. `question_id`, `stage` and `number` name it, and with the run's seed determine its random draw.

    `away`: a prompt whose likely tokens become less likely, and how (`ContrastiveEngine`).
    """

    question_id: str
    stage: str
    number: int
    prompt: Prompt
    sampling: Sampling
    away: tuple[Prompt, Contrast] | None = None


@dataclass(frozen=True)
class Answer:
    """The result of a request: a completion, or None and the error. `late`: an earlier start continued without it."""

    completion: Completion | None
    error: str | None = None
    late: bool = False


# Requests of one sampling that go to the engine together, each after its digest.
_EngineCall = list[tuple[str, Request]]


class RationaleTeacher:
    """Sends the requests that the journal cannot answer.

    `concurrency` calls are in progress at a time for each replica of a server. A call to an engine that batches
    requests itself holds one request, to another model in this process `batch` of them. `deadline` (seconds) is for a
    request to a server.

    If more than `max_failure_rate` of the requests that this start has completed (sent, or found in the journal) have
    failed, `ask` raises `UsageError` with the last error, and records nothing as passed over. During the run, failures
    that an earlier start had passed over do not count.
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
        self.sent = self.known = self.failed = 0
        """Requests that this start has sent, found in the journal, and seen fail."""
        self._failed_again = 0
        """Failed requests that an earlier start had passed over."""
        self._expected = 0
        """Requests of the present `ask`."""
        self.last_error: EngineError | None = None

    async def ask(
        self, requests: Sequence[Request], advance: Callable[[int], object] = lambda count: None
    ) -> list[Answer]:
        """The answers, aligned with the requests.

        Calls `advance` with the number of requests that are done. Equal greedy requests are sent once. Each request
        that the journal cannot answer is sent, or the call raises.
        """
        slots = asyncio.Semaphore(self.concurrency)
        digests = list(map(self._digest, requests))
        failures: dict[str, str] = {}
        waiting: list[_EngineCall] = []
        taken: set[str] = set()
        for call in self._calls(requests, digests):
            missing = {digest: each for digest, each in call if digest not in self.journal and digest not in taken}
            taken |= missing.keys()
            self.known += len(call) - len(missing)
            advance(len(call) - len(missing))
            if missing:
                waiting.append(list(missing.items()))
        self._expected = len(requests)

        async def answer(call: _EngineCall) -> None:
            async with slots:
                # While a server is down, further requests would fail too.
                if self._fails():
                    postponed.append(call)
                else:
                    failures.update(await self._send(call))
                    advance(len(call))

        # Requests that were postponed while too much failed are sent once those in progress have succeeded.
        while waiting:
            postponed: list[_EngineCall] = []
            async with asyncio.TaskGroup() as group:
                for call in waiting:
                    group.create_task(answer(call))
            if self._fails():
                raise self._too_many()
            waiting = postponed
        self.journal.pass_over(failures)
        late = self.journal.passed_over
        return [Answer(self.journal.get(each), failures.get(each), each in late) for each in digests]

    def check(self) -> None:
        """Raise `UsageError` if too large a share of all requests has failed, however few there were."""
        if self.failed > self.max_failure_rate * (self.sent + self.known):
            raise self._too_many()

    def _fails(self) -> bool:
        failed, done = self.failed - self._failed_again, self.sent + self.known - self._failed_again
        enough = done >= MIN_REQUESTS or failed == done >= self._expected > 0
        return enough and failed > self.max_failure_rate * done

    def _too_many(self) -> UsageError:
        return UsageError(
            f"{self.failed} of {self.sent + self.known} requests failed, more than max_failure_rate "
            f"{self.max_failure_rate:g} allows. The last error: {self.last_error}\nAnswers are kept; the same command "
            f"again sends the other requests."
        )

    async def _send(self, call: _EngineCall) -> dict[str, str]:
        """Send the requests of a call and record the answers; returns the failures with their reasons."""
        requests = [request for _, request in call]
        sampling = requests[0].sampling
        if sampling.temperature > 0:
            named = json.dumps([self.seed, *((each.question_id, each.stage, each.number) for each in requests)])
            # 31 bits: some servers take no more.
            sampling = replace(sampling, seed=int.from_bytes(hashlib.sha256(named.encode()).digest()[:4]) // 2)
        results = await self._results(requests, sampling)
        self.sent += len(call)
        failures, answers = {}, {}
        for (digest, _), result in zip(call, results, strict=True):
            if isinstance(result, EngineError):
                failures[digest] = str(result)
                self.last_error = result
                self.failed += 1
                self._failed_again += digest in self.journal.passed_over
            else:
                answers[digest] = result
        self.journal.add(answers)
        return failures

    async def _results(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | EngineError]:
        pairs = [(each.prompt, each.away[0]) for each in requests if each.away is not None]
        if not pairs:
            prompts = [each.prompt for each in requests]
            return await self.engine.generate(prompts, sampling, deadline=self.deadline)
        engine, away = self.engine, requests[0].away
        assert isinstance(engine, ContrastiveEngine)
        assert away is not None
        return await engine.generate_contrasted(pairs, sampling, away[1], deadline=self.deadline)

    def _calls(self, requests: Sequence[Request], digests: Sequence[str]) -> Iterator[_EngineCall]:
        """The requests in calls: up to `batch` of them, in order, all with one sampling and one contrast, or none."""
        pairs = zip(digests, requests, strict=True)
        for _, group in groupby(pairs, key=lambda pair: (pair[1].sampling, pair[1].away and pair[1].away[1])):
            while call := list(islice(group, self.batch)):
                yield call

    def _digest(self, request: Request) -> str:
        sampling = request.sampling
        settings: dict[str, Any] = {**vars(sampling), "stop": list(sampling.stop)}
        drawn = [self.seed, request.question_id, request.stage, request.number] if sampling.temperature > 0 else None
        contrast = () if request.away is None else (request.away[0], vars(request.away[1]))
        return cache_key("answer", 1, self.name, request.prompt, settings, drawn, *contrast)
