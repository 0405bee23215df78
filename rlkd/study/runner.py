"""Runs the commands of a study: several at once, each from its own last checkpoint, and none twice.

A stage that has ended well leaves a file `done` in its folder, and the same study goes on with the others. A run that
fails is reported with the end of its log, and the others go on. When this process ends, however it ends, so do the
runs that it has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from rlkd.errors import UsageError
from rlkd.files import append_records, lock_file, write_atomically
from rlkd.process import cores, die_with_parent
from rlkd.study.commands import PlannedRun
from rlkd.study.definition import Study

_TAIL = 2000
_FREE = re.compile(r"study\.(title|question)|study\..*\.\d+\.config")
_VERSIONS = ("rlkd", "trl", "torch", "transformers")


class RunFailed(Exception):
    """A command of a run ended with an error; the message has the end of its log."""


def versions() -> dict[str, str]:
    """The installed versions that the figures depend on."""
    found = {}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def record_study(study: Study, out: Path) -> None:
    """Write the resolved study and the versions to `study.json`; raise `UsageError` where the folder has another one.

    Its title, its question and the places of its configs may change, since no run depends on them: what a config says
    is recorded as well.
    """
    path = out / "study.json"
    now: dict[str, Any] = json.loads(json.dumps({"study": study.to_dict(), "versions": versions()}))
    if path.exists():
        kept = json.loads(path.read_text())
        before, after = _flat(kept), _flat(now)
        differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise UsageError(
                f"{out} holds another study: {key} was {before.get(key)!r} and is {after.get(key)!r}{more}. Runs of "
                f"both would not compare: choose another --out, or give the same ({path})"
            )
    write_atomically(path, json.dumps(now, indent=1) + "\n")


def recorded_study(out: Path) -> Study:
    """The study whose runs are in a folder; raises `UsageError` where there is none."""
    try:
        return Study.from_dict(json.loads((out / "study.json").read_text())["study"])
    except OSError as error:
        raise UsageError(
            f"there is no study in {out} ({out / 'study.json'}): run it first, without --analyse"
        ) from error


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping from places to values, without those that no run depends on."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return {place: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{place}.{key}" if place else str(key))
    return {key: inner for key, inner in flat.items() if not _FREE.fullmatch(key)}


@contextlib.contextmanager
def only_here(out: Path) -> Iterator[IO[bytes]]:
    """Hold the folder's lock, which runs inherit: so two studies never write into the same runs.

    Raises `UsageError` where another process has it.
    """
    lock = lock_file(out / "study.lock")
    if lock is None:
        raise UsageError(
            f"the study in {out} is still running ({out / 'study.lock'} is locked): wait for it, or end it"
        )
    with lock:
        yield lock


def run_all(runs: Sequence[PlannedRun], *, at_once: int, lock: IO[bytes]) -> list[str]:
    """Run what is not done, `at_once` side by side with an equal share of the cores; return the names of failures."""
    waiting = [run for run in runs if not run.is_done()]
    if len(waiting) < len(runs):
        _say(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already.")
    runner = _Runner(at_once, lock)
    failed: list[str] = []
    start = time.monotonic()
    with _ended_by_sigterm(), ThreadPoolExecutor(at_once) as pool:
        futures: dict[str, Future[None]] = {}
        for run in waiting:
            needed = futures.get(run.needs.name) if run.needs else None
            futures[run.name] = pool.submit(runner.run, run, needed)
        of_future = {future: run for run, future in zip(waiting, futures.values(), strict=True)}
        try:
            for number, future in enumerate(as_completed(of_future), start=1):
                run = of_future[future]
                try:
                    future.result()
                    left = (time.monotonic() - start) / number * (len(waiting) - number)
                    rest = (
                        f"; {len(waiting) - number} more, about {left / 60:.0f} min" if number < len(waiting) else ""
                    )
                    _say(f"{run.name}: done{rest}")
                except RunFailed as error:
                    failed.append(run.name)
                    _say(f"{run.name}: FAILED\n{error}", sys.stderr)
        except BaseException:
            runner.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


def _say(text: str, stream: Any = None) -> None:
    """Print in one piece, as several threads print."""
    stream = stream or sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


class _Runner:
    """Starts the commands of runs, and knows those that are running."""

    def __init__(self, at_once: int, lock: IO[bytes]):
        self.lock = lock
        # Runs side by side would each take all cores, and wait for one another.
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores() // at_once))} | dict(os.environ)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, run: PlannedRun, needed: Future[None] | None) -> None:
        """Run the stages that are not done; raises `RunFailed`."""
        if needed is not None and needed.exception() is not None:
            raise RunFailed(f"it needs {run.needs.name if run.needs else ''}, which failed")
        for command in run.commands:
            if command.done.exists():
                continue
            command.folder.mkdir(parents=True, exist_ok=True)
            log = command.folder / "log.txt"
            _say(f"{run.name}: started; its output goes to {log}")
            start = time.monotonic()
            status = self._call(command.words, log)
            seconds = round(time.monotonic() - start, 1)
            append_records(command.folder / "times.jsonl", [{"seconds": seconds, "status": status}])
            if self.stopped:
                raise CancelledError
            if status != 0:
                tail = log.read_bytes().decode(errors="replace")[-_TAIL:]
                raise RunFailed(
                    f"{tail}\n(exit status {status}; the end of {log}; the same command goes on from there)"
                )
            command.done.touch()

    def _call(self, words: Sequence[str], log: Path) -> int:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                words,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.lock.fileno()],
                preexec_fn=die_with_parent,
            )
        self.running.add(process)
        try:
            if self.stopped:
                process.terminate()
            return process.wait()
        finally:
            self.running.discard(process)

    def stop(self) -> None:
        """End all commands, and start no further one."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: with its runs."""

    def end(*_: object) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
