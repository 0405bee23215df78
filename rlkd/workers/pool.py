"""Calls with hard limits: functions in worker processes that are killed and replaced.

    >>> pool = WorkerPool(len, workers=2)
    >>> pool.map([("abc",), (7,)], limit=5.0)
    [3, Fault(kind='error', message="TypeError: object of type 'int' has no len()")]
    >>> pool.close()

A signal cannot stop a call off the main thread, and nothing within a process can stop `9**9**9**9`, which holds the
interpreter. So a call that must not hang runs in a process of its own kind, and a process that takes too long is
killed, with whatever it started, and replaced.

Workers are forked from one small process, the nursery (`rlkd.workers.forkserver`), rather than by `multiprocessing` or
a library on top of it, for three reasons: workers of `multiprocessing` import the user's main script again, with its
torch, and run it where it has no guard; a daemonic process, such as TRL's rollout worker, may have none; and its fork
server is one for the whole process, so that the modules preloaded for us would be everybody's.

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
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from rlkd.workers import forkserver
from rlkd.workers.forkserver import FORK, HEADER, KILL, PRELOAD, WRONG

logger = logging.getLogger(__name__)

# Calls are sent to a worker ahead of time, so that it need not wait, but never more than a socket holds: a worker that
# hangs does not read, and a send that waits for it could not be ended.
AHEAD_CALLS = 16
AHEAD_BYTES = 32 * 1024
# Only to one whose last call was quick, though: what waits behind a slow call could be at work elsewhere.
QUICK_SECONDS = 0.01
SETUP_SECONDS = 300.0
# A worker that neither takes the rest of a call nor gives the rest of a result for so long has stopped.
STALL_SECONDS = 30.0
# The nursery may be killed by others. How often it is started anew before that counts as what a call does.
ATTEMPTS = 3
# One thread a worker: they share the cores already.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class IsolationError(RuntimeError):
    """Workers cannot be started, or cannot load the function, or an argument cannot reach them."""


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
    return forkserver.inside


def default_workers() -> int:
    """As many workers as this process's share of the machine has cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))))


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
        self._pickled: bytes | None = None
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        # The lock by itself: `with` on a condition is Python code, in which an interrupt can leave the lock held.
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)
        self._idle: list[_Worker] = []
        # Who holds workers. How many are taken is counted from it, so that no interrupt can lose one.
        self._runs: set[_Run] = set()
        self._end = weakref.finalize(self, _let_go, self._idle)

    def _here(self) -> None:
        if self._process != os.getpid():  # forked: the parent's workers are the parent's
            with _starting:
                if self._process != os.getpid():
                    self._end.detach()
                    self._open()

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
        run = _Run(payloads, limit, None if deadline is None else started + deadline)
        self._here()
        try:
            self._enter(run)
            while run.open:
                while run.has_work_for_another() and self._take(run):
                    pass
                if run.is_late():
                    run.give_up(deadline)
                    break
                for worker in list(run.busy):
                    self._feed(worker, run)
                if run.busy:
                    self._hear(run)
            run.is_over = True
        finally:
            self._leave(run)
        return run.results

    def start(self) -> None:
        """Have a worker ready, so that a function that does not load there is known before the first call."""
        run = _Run([], None, None)
        self._here()
        try:
            self._enter(run)
            while not self._idle and not any(worker.is_ready for worker in run.busy):
                if run.busy or self._take(run):
                    self._hear(run)
            run.is_over = True
        finally:
            self._leave(run)

    def close(self) -> None:
        """End all idle workers; the pool can be used again."""
        self._here()
        with self._lock:
            workers = self._idle[:]
            self._idle.clear()
        for worker in workers:
            worker.end()

    def _take(self, run: _Run) -> bool:
        """A worker for the run, idle or new; False if all are taken, after some waiting where the run has none."""
        with self._lock:
            while not self._idle and sum(len(other.busy) + other.is_starting for other in self._runs) >= self.workers:
                if run.busy or run.is_late():
                    return False
                self._free.wait(timeout=run.patience(1.0))
            if self._idle:
                run.busy.append(self._idle.pop())
                return True
            run.is_starting = True
        try:
            run.busy.append(self._start())
        finally:
            run.is_starting = False
        return True

    def _enter(self, run: _Run) -> None:
        with self._lock:
            self._runs.add(run)

    def _put_back(self, worker: _Worker, run: _Run) -> None:
        with self._lock:
            run.busy.remove(worker)
            self._idle.append(worker)
            self._free.notify()

    def _leave(self, run: _Run) -> None:
        try:
            for worker in list(run.busy):
                if run.is_over and not worker.running:
                    self._put_back(worker, run)
                else:  # something was raised, or time is over
                    worker.end()
                    run.busy.remove(worker)
        except BaseException:  # a second Ctrl-C
            for worker in run.busy:
                worker.home.give_up()
            raise
        finally:
            run.busy.clear()
            with self._lock:
                self._runs.discard(run)
                self._free.notify_all()

    def _start(self) -> _Worker:
        """A new worker, which has still to load the function: others work on meanwhile, and limits hold."""
        import cloudpickle

        if self._pickled is None:
            try:
                self._pickled = cloudpickle.dumps(self._function)
            except Exception as error:
                raise IsolationError(
                    f"{_name(self._function)} cannot be sent to a worker process: {error}. It holds something that "
                    f"cannot be pickled; make it where it is used, or let it run in this process"
                ) from error
        folder = None
        with contextlib.suppress(OSError):  # deleted
            folder = str(Path.cwd())
        setup = {
            "function": self._pickled,
            "path": sys.path,
            "folder": folder,
            "environment": {**os.environ, **ONE_THREAD},
            "memory": self._memory,
        }
        worker = _Worker(*_fork(self._preload))
        try:
            worker.connection.send_bytes(pickle.dumps(setup))
        except OSError:
            worker.is_broken = True  # its end is heard, as any other
        except BaseException:
            worker.end()
            raise
        return worker

    def _feed(self, worker: _Worker, run: _Run) -> None:
        """Send calls to a worker; put it back if there is nothing for it to do."""
        while run.pending:
            # Towards the end less is sent ahead, or some workers would have all the rest, and others none.
            ahead = min(AHEAD_CALLS, len(run.pending) // self.workers)
            if not worker.has_room(len(run.payloads[run.pending[0]]), ahead):
                break
            position = run.pending.popleft()
            try:
                worker.send(position, run.payloads[position])
            except BlockingIOError:  # something that an earlier call left behind keeps it from reading
                worker.end()
            except OSError:  # it has ended
                pass
        if not worker.running and worker.is_ready and not worker.is_broken:
            self._put_back(worker, run)

    def _hear(self, run: _Run) -> None:
        """Wait for an answer or the next limit, and settle what has come to an end."""
        now = time.monotonic()
        patience = min([run.patience(60.0), *(max(0.0, worker.until(run.limit) - now) for worker in run.busy)])
        heard = wait([worker.connection for worker in run.busy if not worker.is_ended], timeout=patience)
        for worker in list(run.busy):
            if worker.connection in heard or worker.is_broken:
                self._settle(worker, run)
            elif time.monotonic() >= worker.until(run.limit):
                if not worker.is_ready:
                    raise IsolationError(f"{_name(self._function)} did not load in a worker in {SETUP_SECONDS:g} s")
                run.results[worker.running[0]] = Fault("timeout", f"took more than {run.limit:g} s")
                self._replace(worker, run)

    def _settle(self, worker: _Worker, run: _Run) -> None:
        try:
            while worker.running or worker.is_broken or not worker.is_ready:
                answer = worker.connection.recv_bytes()
                if not worker.is_ready:
                    self._welcome(worker, answer)
                else:
                    result, is_spent = _read(answer)
                    run.results[worker.answered()] = result
                    run.open -= 1
                    if is_spent:
                        self._replace(worker, run, settled=True)
                        return
                if not worker.connection.poll():
                    break
        except BlockingIOError:
            worker.end()
            if not worker.running:
                raise IsolationError(f"{_name(self._function)} stopped while it loaded in a worker process") from None
            run.results[worker.running[0]] = Fault("timeout", f"its result stopped coming for {STALL_SECONDS:g} s")
            self._replace(worker, run)
        except (EOFError, OSError) as error:
            worker.end()
            # Where its end is not known it went with the nursery, and not by itself. A call that did not reach it
            # whole did not begin; and where there is none, nothing is lost.
            call = worker.running[0] if worker.running else None
            again = worker.ending is None or (call is not None and call == worker.cut_short)
            run.lost[call] += again
            again = (again and run.lost[call] < ATTEMPTS) or (call is None and worker.is_ready)
            how = worker.ending or f"killed with the process that it was forked from, {ATTEMPTS} times"
            if not worker.is_ready and not again:
                raise IsolationError(
                    f"a worker process died ({how}) while it loaded {_name(self._function)}"
                ) from error
            if call is not None and not again:
                run.results[call] = Fault("crash", f"the worker process died ({how})")
            self._replace(worker, run, settled=again)

    def _welcome(self, worker: _Worker, answer: bytes) -> None:
        state, message, _ = pickle.loads(answer)
        if state != "ready":
            raise IsolationError(f"{_name(self._function)} does not load in a worker process: {message}")
        worker.is_ready = True

    def _replace(self, worker: _Worker, run: _Run, *, settled: bool = False) -> None:
        """Kill a worker; the call it was at is settled, the ones that wait behind it go to another."""
        worker.end()
        waiting = list(worker.running)
        if not settled and waiting:
            waiting.pop(0)
            run.open -= 1
        run.pending.extendleft(reversed(waiting))
        with self._lock:
            run.busy.remove(worker)
            self._free.notify()

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
        self.lost: Counter[int | None] = Counter()  # how often a call went down with the nursery
        self.is_starting = False
        self.is_over = False

    def has_work_for_another(self) -> bool:
        return len(self.pending) > sum(not worker.running for worker in self.busy)

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
        self.since = time.monotonic()  # when the first one of these began, or loading the function
        self.is_ready = False  # the function is loaded
        self.is_broken = False
        self.cut_short: int | None = None  # the call that could not be sent to it
        self.is_ended = False
        self.ending: str | None = None
        self._is_quick = False
        self._bytes: deque[int] = deque()

    def has_room(self, size: int, ahead: int) -> bool:
        if self.is_broken or not self.is_ready:
            return False
        return not self.running or (
            self._is_quick and len(self.running) < ahead and sum(self._bytes) + size <= AHEAD_BYTES
        )

    def send(self, position: int, payload: bytes) -> None:
        if not self.running:
            self.since = time.monotonic()
        # Noted first: one that is interrupted half way has something to do that it must not come back from.
        self.running.append(position)
        self._bytes.append(len(payload))
        try:
            self.connection.send_bytes(payload)
        except OSError:
            self.is_broken = True
            self.cut_short = position
            raise

    def until(self, limit: float | None) -> float:
        """When what it is at must be done."""
        if self.is_ended:
            return self.since
        if not self.is_ready:
            return self.since + SETUP_SECONDS
        return float("inf") if limit is None or not self.running else self.since + limit

    def answered(self) -> int:
        now = time.monotonic()
        self._is_quick = now - self.since < QUICK_SECONDS
        self.since = now
        self._bytes.popleft()
        return self.running.popleft()

    def end(self) -> None:
        """Kill the process with all it started, and learn how it ended; for a second time, nothing."""
        if self.is_ended:
            return
        code = self.home.kill(self.pid)
        self.is_ended = True
        if code is not None:
            self.ending = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        with contextlib.suppress(OSError):
            self.connection.close()

    def let_go(self) -> None:
        """The same without waiting, for the garbage collector: that may come in the middle of a conversation."""
        if not self.is_ended:
            self.is_ended = True
            self.connection.close()
            self.home.left.append(self.pid)


class _Nursery:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.preloaded: set[str] = set()
        self.left: deque[int] = deque()  # workers that nobody holds any more
        self.is_given_up = False
        self.control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # The path goes along: a checkout need not be installed. Set before anything is imported, since with `-c` the
        # current folder comes first, and a file there may have the name of any module.
        code = (
            "import sys; sys.path[:] = sys.argv[3:]; "
            "from rlkd.workers.forkserver import main; main(int(sys.argv[1]), int(sys.argv[2]))"
        )
        try:
            with other:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", code, str(other.fileno()), str(self.pid), *map(str, sys.path)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    env={**os.environ, **ONE_THREAD},
                    start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
                )
        except BaseException:
            self.control.close()
            raise

    def preload(self, modules: Sequence[str]) -> None:
        new = [module for module in modules if module not in self.preloaded]
        if new:
            names = json.dumps(new).encode()
            _, problem = self._converse(lambda: self.control.sendall(HEADER.pack(PRELOAD, len(names)) + names))
            if problem:
                raise IsolationError(f"preloading {', '.join(new)}: {problem}")
            self.preloaded.update(new)

    def fork(self) -> tuple[int, Connection]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                seconds, rest = divmod(STALL_SECONDS, 1)
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(rest * 1e6)))
            pid, problem = self._converse(
                lambda: socket.send_fds(self.control, [HEADER.pack(FORK, 0)], [theirs.fileno()])
            )
            if problem:
                raise IsolationError(f"no more worker processes can be started: {problem}")
            return pid, Connection(ours.detach())

    def kill(self, pid: int) -> int | None:
        """Kill a worker; return its exit code, or None where this nursery is gone (and its workers with it)."""
        if self.pid != os.getpid():
            return None
        try:
            return self._converse(lambda: self.control.sendall(HEADER.pack(KILL, pid)))[0]
        except OSError:
            self.wait()
            return None
        except BaseException:
            self.give_up()
            raise

    def is_gone(self) -> bool:
        return self.is_given_up or self.process.poll() is not None

    def give_up(self) -> None:
        """Have it end, with all workers, and wake who waits for its answer."""
        self.is_given_up = True
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        """Wait until it has ended, after `give_up`."""
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.give_up()
        self.wait()
        self.control.close()

    def forget(self) -> None:
        """In a forked child: it is the parent's. Only the copies of what belongs to it are dropped."""
        self.control.close()
        self.process.returncode = 0  # or Popen would warn of a process that runs on

    def _converse(self, say: Callable[[], object]) -> tuple[int, str]:
        """One command and its answer. Broken off in between (Ctrl-C), the next answer would be this one's: give up."""
        with self.lock:
            if self.is_given_up:
                raise ConnectionError("the nursery is gone")
            try:
                while self.left:
                    self.control.sendall(HEADER.pack(KILL, self.left.popleft()))
                    self._answer()
                say()
                return self._answer()
            except BaseException:
                self.give_up()
                raise

    def _answer(self) -> tuple[int, str]:
        """A number, and what went wrong."""
        state, number = HEADER.unpack(self._receive(HEADER.size))
        return (0, self._receive(number).decode()) if state == WRONG else (number, "")

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.control.recv(count - len(data))
            if not piece:
                raise ConnectionError("the nursery is gone")
            data += piece
        return data


_current: _Nursery | None = None
_starting = threading.Lock()


def _fork(preload: Sequence[str]) -> tuple[int, Connection, _Nursery]:
    """A worker process, from this process's nursery, which is started anew where it is gone."""
    problem: OSError | None = None
    for _ in range(ATTEMPTS):
        try:
            home = _nursery()
            home.preload(preload)
            return *home.fork(), home
        except OSError as error:
            problem = error
    raise IsolationError(f"worker processes cannot be started: {problem!r}") from problem


def _nursery() -> _Nursery:
    global _current
    with _starting:
        if _current is not None and _current.is_gone():
            _current.close()
            _current = None
        if _current is None:
            _current = _Nursery()
        return _current


def _forget() -> None:
    global _current, _starting
    _starting = threading.Lock()  # another thread may have held it when this process was forked
    if _current is not None:
        _current.forget()
        _current = None


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _close() -> None:
    if _current is not None:
        _current.close()


def _let_go(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().let_go()


def _read(answer: bytes) -> tuple[Any, bool]:
    """The result that a worker sent, and whether the worker is not to be used any more."""
    try:
        kind, value, pickled = pickle.loads(answer)
        if kind == "value":
            return value, False
    except Exception as error:
        return Fault("error", f"its result cannot be read: {type(error).__name__}: {error}"), False
    if kind == "unread":
        raise IsolationError(f"an argument cannot be read in a worker process: {value}")
    exception = None
    if pickled is not None:
        # A class that only the worker could import costs no more than the exception itself.
        with contextlib.suppress(Exception):
            exception = pickle.loads(pickled)
    return Fault(kind, value, exception), kind == "memory"  # what is left of its memory is not known


def _rebuild(function: Callable[..., Any], workers: int, preload: list[str], memory: int | None) -> WorkerPool:
    return WorkerPool(function, workers=workers, preload=preload, memory=memory)


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return str(number)
