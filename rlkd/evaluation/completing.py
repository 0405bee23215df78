"""Completions of all rows by an engine: greedy ones first, then the samples, each kept as soon as it is there.

Draws do not depend on an interruption. An engine that takes requests one by one gets each with a seed of its own. One
that works on batches gets calls whose rows are fixed; an interrupted call is made again as a whole, with its seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from rlkd.engines import Completion, Engine, EngineError, Prompt, Sampling
from rlkd.errors import UsageError
from rlkd.evaluation.folder import EvaluationFolder, RecordedCompletion

# Failures in a row after which an evaluation ends.
ENOUGH_FAILURES = 16


@dataclass(frozen=True)
class Plan:
    """What to generate: `greedy` completions or not, and `samples` per row, drawn as `sampling` says.

    `batch`: rows of a call to an engine that works on one call at a time; `concurrency`: calls in progress at a time,
    at each server, for others; `deadline`: seconds for a request to a server.
    """

    sampling: Sampling
    samples: int = 0
    greedy: bool = True
    seed: int = 0
    batch: int = 16
    concurrency: int = 32
    deadline: float | None = 600.0

    @property
    def numbers(self) -> list[int]:
        """The numbers of the completions of each row; 0 is the greedy one."""
        return [*([0] if self.greedy else []), *range(1, self.samples + 1)]


async def complete_rows(
    engine: Engine,
    rows: Sequence[tuple[str, Prompt]],
    plan: Plan,
    folder: EvaluationFolder,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Generate the completions that the folder lacks; `rows`: id and prompt of each; `advance` gets the number done.

    Raises `UsageError` where completions failed, with the last cause. The others are kept, and the same call again
    generates the missing ones.
    """
    in_batches = engine.concurrency == 1 and not engine.is_remote
    slots = asyncio.Semaphore(1 if in_batches else plan.concurrency * engine.replicas)
    errors: list[EngineError] = []
    total, failed_in_a_row = len(rows) * len(plan.numbers), 0

    async def send(sample: int, call: Sequence[tuple[str, Prompt]]) -> None:
        nonlocal failed_in_a_row
        async with slots:
            if failed_in_a_row >= ENOUGH_FAILURES:
                return  # a server that is down, and would fail the others too
            found = await engine.generate(
                [prompt for _, prompt in call],
                _of_call(plan, sample, call),
                deadline=plan.deadline if engine.is_remote else None,
            )
        new = [
            _written(name, sample, each)
            for (name, _), each in zip(call, found, strict=True)
            if isinstance(each, Completion)
        ]
        # What an interrupted call had recorded stays as it is.
        missing = [name for name, _ in call if (name, sample) not in folder.written]
        folder.add(new)
        failed = [
            each
            for (name, _), each in zip(call, found, strict=True)
            if isinstance(each, EngineError) and name in missing
        ]
        errors.extend(failed)
        failed_in_a_row = 0 if new else failed_in_a_row + len(failed)
        advance(len(missing))

    calls = [
        (sample, call)
        for sample in plan.numbers
        for call in _chunks(rows, plan.batch if in_batches else 1)
        if any((name, sample) not in folder.written for name, _ in call)
    ]
    known = sum((name, sample) in folder.written for name, _ in rows for sample in plan.numbers)
    advance(known)
    async with asyncio.TaskGroup() as group:
        for sample, call in calls:
            group.create_task(send(sample, call))
    lacking = total - sum((name, sample) in folder.written for name, _ in rows for sample in plan.numbers)
    if lacking:
        raise UsageError(
            f"{lacking} of {total} completions are missing, since requests failed: {errors[-1]}\nThe others are in "
            f"{folder.completions}; the same command again generates the missing ones"
        )


def _of_call(plan: Plan, sample: int, call: Sequence[tuple[str, Prompt]]) -> Sampling:
    if sample == 0:
        return replace(plan.sampling, temperature=0.0, top_p=1.0, seed=None)
    named = json.dumps([plan.seed, sample, [name for name, _ in call]])
    # 31 bits: some servers take no more.
    return replace(plan.sampling, seed=int.from_bytes(hashlib.sha256(named.encode()).digest()[:4]) // 2)


def _chunks(rows: Sequence[tuple[str, Prompt]], size: int) -> Iterator[list[tuple[str, Prompt]]]:
    left = iter(rows)
    while chunk := list(islice(left, size)):
        yield chunk


def _written(name: str, sample: int, found: Completion) -> RecordedCompletion:
    ended = found.finish_reason == "stop"
    return RecordedCompletion(name, sample, found.text, max(0, found.n_tokens - ended), ended)
