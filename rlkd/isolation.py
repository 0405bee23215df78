"""Calls with hard limits: functions in worker processes that are killed and replaced.

    >>> pool = WorkerPool(len, workers=2)
    >>> pool.map([("abc",), (7,)], limit=5.0)
    [3, Fault(kind='error', message="TypeError: object of type 'int' has no len()")]
    >>> pool.close()

A signal cannot stop a call off the main thread, and nothing within a process can stop `9**9**9**9`, which holds the
interpreter. So a call that must not hang runs in a process of its own kind, and a process that takes too long is
killed, with whatever it started, and replaced.

Workers are forked from one small process, the nursery (`rlkd.nursery`), rather than by `multiprocessing` or a library
on top of it, for three reasons: workers of `multiprocessing` import the user's main script again, with its torch, and
run it where it has no guard; a daemonic process, such as TRL's rollout worker, may have none; and its fork server is
one for the whole process, so that the modules preloaded for us would be everybody's.

What holds, for `map` from any number of threads at once:

1. A call ends within its limit, or its worker is killed and the call is a `Fault`; the other calls go on.
2. A pool never shrinks: a worker that was killed, or died, is replaced when the next call needs it.
3. No process is left: workers end with the pool and with this process, however it ends, SIGKILL included.
4. KeyboardInterrupt and every other exception in the caller pass through; what was running is killed first.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from rlkd import nursery
from rlkd.nursery import DONE, FORK, HEADER, KILL, PRELOAD

logger = logging.getLogger(__name__)

# Calls are sent to a worker ahead of time, so that it need not wait, but never more than a socket holds: a worker that
# hangs does not read, and a send that waits for it could not be ended.
AHEAD_CALLS = 16
AHEAD_BYTES = 32 * 1024
SETUP_SECONDS = 300.0


class IsolationError(RuntimeError):
    """Workers cannot be started, or cannot load the function."""


@dataclass(frozen=True, slots=True)
class Fault:
    """In a result's place: why there is none.

    `timeout`: the limit was reached; `crash`: the worker died; `memory`: its memory limit was reached; `error`: the
    function raised, and `exception` is what it raised, where that could be sent.
    """

    kind: Literal["timeout", "crash", "memory", "error"]
    message: str
    exception: BaseException | None = field(default=None, repr=False, compare=False)


def inside_worker() -> bool:
    """Whether this process is a worker, and so under a limit already."""
    return nursery.inside


def default_workers() -> int:
    """As many workers as this process's share of the machine has cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class WorkerPool:
    """Processes that all call one function.

    Args:
        function: sent to each worker once, by reference where it can be imported there, else by value; it may hold
            state, which a worker keeps from call to call until it is replaced.
        workers: how many processes at most; they start when they are needed. Default: `default_workers()`.
        preload: modules that are imported before workers are forked, so that a replacement has them at once. Only
            such as start no threads and open nothing.
        memory: bytes of address space a worker may take, None for no limit.

    Raises `IsolationError` (at the first call) where a worker cannot load the function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        workers: int | None = None,
        preload: Sequence[str] = (),
        memory: int | None = None,
    ):
        self.workers = default_workers() if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers {workers}: expected at least 1")
        self._function = function
        self._preload = list(preload)
        self._memory = memory
        self._setup: bytes | None = None
        self._free = threading.Condition()
        self._idle: list[_Worker] = []
        self._taken = 0
        self._process = os.getpid()
        self._end = weakref.finalize(self, _end_all, self._idle)

    def map(
        self, calls: Iterable[tuple[Any, ...]], *, limit: float | None = None, deadline: float | None = None
    ) -> list[Any]:
        """The results of `function(*call)`, in order, a `Fault` in the place of one that there is not.

        `limit`: seconds for each call. `deadline`: seconds for all of them, waiting for a free worker included.
        """
        started = time.monotonic()
        try:
            payloads = [pickle.dumps(tuple(call)) for call in calls]
        except Exception as error:
            raise IsolationError(f"an argument cannot be sent to a worker process: {error!r}") from error
        if not payloads:
            return []
        run = _Run(payloads, limit, None if deadline is None else started + deadline)
        self._here()
        try:
            while not run.is_done():
                while run.pending and (worker := self._take(run)) is not None:
                    run.busy.append(worker)
                if run.is_late():
                    run.give_up(deadline)
                    break
                for worker in list(run.busy):
                    if not self._feed(worker, run):
                        run.busy.remove(worker)
                        self._put_back(worker)
                if run.busy:
                    self._hear(run)
        finally:
            for worker in run.busy:  # something was raised, or time is over
                worker.end()
                self._put_back(None)
        return run.results

    def start(self) -> None:
        """Have a worker ready, so that a function that does not load there is known before the first call."""
        self._here()
        run = _Run([], None, None)
        if not self._idle and (worker := self._take(run)) is not None:
            self._put_back(worker)

    def close(self) -> None:
        """End all idle workers; the pool can be used again."""
        with self._free:
            _end_all(self._idle)

    def _here(self) -> None:
        if self._process != os.getpid():  # forked: the parent's workers are the parent's
            self.__init__(self._function, workers=self.workers, preload=self._preload, memory=self._memory)  # type: ignore[misc]

    def _take(self, run: _Run) -> _Worker | None:
        """A worker, idle or new; None if all are taken, after some waiting where the run has none at all."""
        with self._free:
            while not self._idle and self._taken >= self.workers:
                if run.busy:
                    return None
                self._free.wait(timeout=run.patience(1.0))
                if run.is_late():
                    return None
            self._taken += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._start()
        except BaseException:
            self._put_back(None)
            raise

    def _put_back(self, worker: _Worker | None) -> None:
        with self._free:
            self._taken -= 1
            if worker is not None:
                self._idle.append(worker)
            self._free.notify()

    def _start(self) -> _Worker:
        import cloudpickle

        if self._setup is None:
            try:
                function = cloudpickle.dumps(self._function)
            except Exception as error:
                raise IsolationError(
                    f"{_name(self._function)} cannot be sent to a worker process: {error}. It holds something that "
                    f"cannot be pickled; make it where it is used, or let it run in this process"
                ) from error
            self._setup = pickle.dumps(
                {"function": function, "path": sys.path, "folder": str(Path.cwd()), "memory": self._memory}
            )
        pid, connection, home = _nursery(self._preload).fork()
        worker = _Worker(pid, connection, home)
        try:
            connection.send_bytes(self._setup)
            if not connection.poll(SETUP_SECONDS):
                raise IsolationError(f"{_name(self._function)} did not load in a worker in {SETUP_SECONDS:g} s")
            state, message, _ = connection.recv()
        except BaseException as error:
            worker.end()
            if isinstance(error, (EOFError, ConnectionError)):
                raise IsolationError(
                    f"a worker process died ({worker.ending}) while it loaded {_name(self._function)}"
                ) from error
            raise
        if state != "ready":
            worker.end()
            raise IsolationError(f"{_name(self._function)} does not load in a worker process: {message}")
        return worker

    def _feed(self, worker: _Worker, run: _Run) -> bool:
        """Send calls to a worker; False if there is nothing for it to do."""
        while run.pending and worker.has_room(len(run.payloads[run.pending[0]])):
            position = run.pending.popleft()
            try:
                worker.send(position, run.payloads[position])
            except (ConnectionError, OSError):
                run.pending.appendleft(position)
                break  # its end is heard below
        return bool(worker.running) or worker.is_broken

    def _hear(self, run: _Run) -> None:
        """Wait for an answer or the next limit, and settle what has come to an end."""
        now = time.monotonic()
        patience = run.patience(60.0)
        if run.limit is not None:
            patience = min([patience, *(max(0.0, w.since + run.limit - now) for w in run.busy)])
        heard = wait([worker.connection for worker in run.busy], timeout=patience)
        for worker in list(run.busy):
            if worker.connection in heard or worker.is_broken:
                self._settle(worker, run)
            elif run.limit is not None and time.monotonic() - worker.since >= run.limit:
                run.results[worker.running[0]] = Fault("timeout", f"took more than {run.limit:g} s")
                self._replace(worker, run)

    def _settle(self, worker: _Worker, run: _Run) -> None:
        try:
            while worker.running or worker.is_broken:
                answer = worker.connection.recv_bytes()
                try:
                    kind, value, exception = pickle.loads(answer)
                except Exception as error:
                    kind, value, exception = (
                        "error",
                        f"its result cannot be read: {type(error).__name__}: {error}",
                        None,
                    )
                run.results[worker.answered()] = value if kind == "value" else Fault(kind, value, exception)
                run.open -= 1
                if kind == "memory":
                    # What is left of its memory is not known.
                    self._replace(worker, run, settled=True)
                    return
                if not worker.connection.poll():
                    break
        except (EOFError, ConnectionError, OSError):
            orphaned = worker.home.is_gone()
            worker.end()
            if worker.running and not orphaned:
                run.results[worker.running[0]] = Fault("crash", f"the worker process died ({worker.ending})")
            self._replace(worker, run, settled=orphaned)

    def _replace(self, worker: _Worker, run: _Run, *, settled: bool = False) -> None:
        """Kill a worker; the call it was at is settled, the ones that wait behind it go to another."""
        waiting = list(worker.running)
        if not settled and waiting:
            waiting.pop(0)
            run.open -= 1
        run.pending.extendleft(reversed(waiting))
        run.busy.remove(worker)
        worker.end()
        self._put_back(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._function, self.workers, self._preload, self._memory)


class _Run:
    """The state of one `map`."""

    def __init__(self, payloads: list[bytes], limit: float | None, until: float | None):
        self.payloads = payloads
        self.limit = limit
        self.until = until
        self.results: list[Any] = [None] * len(payloads)
        self.pending = deque(range(len(payloads)))
        self.busy: list[_Worker] = []
        self.open = len(payloads)

    def is_done(self) -> bool:
        return self.open == 0

    def is_late(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def patience(self, longest: float) -> float:
        return longest if self.until is None else max(0.0, min(longest, self.until - time.monotonic()))

    def give_up(self, deadline: float | None) -> None:
        for position in [*self.pending, *(p for worker in self.busy for p in worker.running)]:
            self.results[position] = Fault("timeout", f"not done when the batch's {deadline:g} s were over")


class _Worker:
    """One process, from this side."""

    def __init__(self, pid: int, connection: Connection, home: _Nursery):
        self.pid = pid
        self.connection = connection
        self.home = home
        self.running: deque[int] = deque()  # positions of calls sent and not answered, the first one is being run
        self.since = 0.0  # when the first one of these began
        self.is_broken = False
        self.ending = "still alive"
        self._bytes: deque[int] = deque()

    def has_room(self, size: int) -> bool:
        if self.is_broken:
            return False
        return not self.running or (len(self.running) < AHEAD_CALLS and sum(self._bytes) + size <= AHEAD_BYTES)

    def send(self, position: int, payload: bytes) -> None:
        if not self.running:
            self.since = time.monotonic()
        try:
            self.connection.send_bytes(payload)
        except (ConnectionError, OSError):
            self.is_broken = True
            raise
        self.running.append(position)
        self._bytes.append(len(payload))

    def answered(self) -> int:
        self.since = time.monotonic()
        self._bytes.popleft()
        return self.running.popleft()

    def end(self) -> None:
        """Kill the process with all it started, and learn how it ended; for a second time, nothing."""
        if self.connection.closed:
            return
        with contextlib.suppress(OSError):
            self.connection.close()
        code = self.home.kill(self.pid)
        if code is not None:
            self.ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Nursery:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.preloaded: set[str] = set()
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # The path goes along: a checkout need not be installed. One thread a worker: they share the cores already.
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from rlkd.nursery import main; main(int(sys.argv[2]))"
        )
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps([str(entry) for entry in sys.path]), str(other.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env={**os.environ, **threads},
            )

    def preload(self, modules: Sequence[str]) -> None:
        new = [module for module in modules if module not in self.preloaded]
        if new:
            names = json.dumps(new).encode()
            with self._conversation():
                self.control.sendall(HEADER.pack(PRELOAD, len(names)) + names)
                state, count = self._answer()
                problem = "" if state == DONE else self._read(count).decode()
            if problem:
                raise IsolationError(f"preloading {', '.join(new)}: {problem}")
            self.preloaded.update(new)

    def fork(self) -> tuple[int, Connection, _Nursery]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, self._conversation():
            socket.send_fds(self.control, [HEADER.pack(FORK, 0)], [theirs.fileno()])
            _, pid = self._answer()
        return pid, Connection(ours.detach()), self

    def kill(self, pid: int) -> int | None:
        """Kill a worker; return its exit code, or None where this nursery is gone (and its workers with it)."""
        if self.pid != os.getpid():
            return None
        try:
            with self._conversation():
                self.control.sendall(HEADER.pack(KILL, pid))
                return self._answer()[1]
        except OSError:
            return None

    def is_gone(self) -> bool:
        return self.control.fileno() < 0 or self.process.poll() is not None

    def close(self) -> None:
        self.control.close()
        with contextlib.suppress(Exception):
            self.process.wait(timeout=10)

    @contextlib.contextmanager
    def _conversation(self) -> Iterator[None]:
        """One command and its answer. Broken off in between (Ctrl-C), the next answer would be this one's: give up."""
        with self.lock:
            try:
                yield
            except BaseException:
                self.control.close()
                raise

    def _answer(self) -> tuple[bytes, int]:
        return HEADER.unpack(self._read(HEADER.size))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.control.recv(count - len(data))
            if not piece:
                raise ConnectionError("the nursery is gone")
            data += piece
        return data


_current: _Nursery | None = None
_starting = threading.Lock()


def _nursery(preload: Sequence[str]) -> _Nursery:
    """This process's nursery, with these modules; started anew where it is gone, or is a parent's."""
    global _current
    with _starting:
        if _current is not None and (_current.pid != os.getpid() or _current.is_gone()):
            _current = None
        if _current is None:
            _current = _Nursery()
    try:
        _current.preload(preload)
    except OSError:
        if not _current.is_gone():
            raise
        return _nursery(preload)
    return _current


@atexit.register
def _close() -> None:
    if _current is not None and _current.pid == os.getpid():
        _current.close()


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _rebuild(function: Callable[..., Any], workers: int, preload: list[str], memory: int | None) -> WorkerPool:
    return WorkerPool(function, workers=workers, preload=preload, memory=memory)


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function))
