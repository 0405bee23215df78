"""Calls with hard limits: functions in worker processes that are killed and replaced.

    >>> pool = WorkerPool(len, workers=2)
    >>> pool.map([("abc",), (7,)], limit=5.0)
    [3, Fault(kind='error', message="TypeError: object of type 'int' has no len()")]
    >>> pool.close()

Not `multiprocessing`: its workers import the user's main script again, with its torch; a daemonic process, such as
TRL's rollout worker, may have no children there; and its fork server is shared by the whole process.

1. A call ends within its limit, or its worker is killed and the result is a `Fault`; the other calls go on.
2. A worker that was killed, or died, is replaced when the next call needs it.
3. No process is left: workers end with the pool and with this process, however it ends, SIGKILL included.
4. KeyboardInterrupt and every other exception in the caller pass through; running calls are killed first.
"""

from __future__ import annotations

import atexit
import contextlib
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
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Literal

from rlkd.process import python_command
from rlkd.workers import forkserver

SETUP_SECONDS = 300.0
# A worker that stops in the middle of a call's arguments, or of a result, for this long counts as hung.
STALL_SECONDS = 30.0
# The fork server may be killed by others. It is restarted this often before that counts as the effect of a call.
ATTEMPTS = 3
# One thread per worker: they share the cores already.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class IsolationError(RuntimeError):
    """Workers cannot be started, or cannot load the function, or an argument cannot be sent to them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Takes the place of a missing result, and says why it is missing.

    `memory`: its memory limit was reached; `error`: the function raised `exception` (None if it cannot be pickled).
    """

    kind: Literal["timeout", "crash", "memory", "error"]
    message: str
    exception: BaseException | None = field(default=None, repr=False, compare=False)


def inside_worker() -> bool:
    """Whether this process is a worker, and so under a limit already."""
    return forkserver.inside


def default_workers() -> int:
    """The number of cores in this process's share of the machine, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))))


class WorkerPool:
    """At most `workers` processes that all call one function; any number of threads may use it at once.

    Args:
        function: sent to each worker once, by reference if it can be imported there, else by value.
        workers: started on demand; by default `default_workers()`.
        preload: modules imported before workers are forked, which must not start threads or open anything.
        memory: address space per worker in bytes, None for no limit.

    Raises `IsolationError` (at the first call) if a worker cannot load the function.
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
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)
        self._idle: list[_Worker] = []
        self._taken = 0
        self._end = weakref.finalize(self, _let_go, self._idle)

    def _here(self) -> None:
        if self._process != os.getpid():  # a fork: the parent's workers belong to the parent
            with _starting:
                if self._process != os.getpid():
                    self._end.detach()
                    self._open()

    def map(
        self, calls: Iterable[tuple[Any, ...]], *, limit: float | None = None, deadline: float | None = None
    ) -> list[Any]:
        """The results of `function(*call)`, in order, with a `Fault` for each missing one.

        `limit`: seconds per call. `deadline`: seconds for all of them, waiting for a free worker included.
        """
        started = time.monotonic()
        try:
            payloads = [pickle.dumps(tuple(call)) for call in calls]
        except Exception as error:
            raise IsolationError(f"an argument cannot be sent to a worker process: {error!r}") from error
        batch = _Batch(payloads, limit, None if deadline is None else started + deadline)
        self._run(batch, min(self.workers, len(payloads)))
        late = Fault("timeout", f"not done when the batch's {deadline or 0:g} s were over")
        return [late if result is _MISSING else result for result in batch.results]

    def start(self) -> None:
        """Have a worker ready, so that a function that does not load is known before the first call."""
        batch = _Batch([], None, None)
        batch.needs_worker = True
        self._run(batch, 1)

    def close(self) -> None:
        """End all idle workers; the pool can be used again."""
        self._here()
        with self._lock:
            workers = self._idle[:]
            self._idle.clear()
        for worker in workers:
            worker.end()

    def _run(self, batch: _Batch, count: int) -> None:
        self._here()
        # Not joined: an interrupted join (Python 3.11) takes a thread that runs on for one that has ended.
        ends = [threading.Event() for _ in range(count)]
        threads = [threading.Thread(target=self._help, args=(batch, end), daemon=True) for end in ends]
        try:
            for thread in threads:
                thread.start()
            for end in ends:
                end.wait()
        finally:
            batch.stop()  # after an interrupt each thread kills its worker
            with self._lock:
                self._free.notify_all()
            for thread, end in zip(threads, ends, strict=True):
                if thread.ident is not None:
                    end.wait()
        if batch.error is not None:
            raise batch.error

    def _help(self, batch: _Batch, end: threading.Event) -> None:
        try:
            while (batch.pending or batch.needs_worker) and self._take(batch):
                worker = None
                try:
                    with self._lock:
                        worker = self._idle.pop() if self._idle else None
                    worker = worker or self._start()
                    self._use(worker, batch)
                except BaseException:
                    if worker is not None:
                        worker.end()
                    raise
                finally:
                    self._put_back(worker)
        except BaseException as error:
            batch.error = batch.error or error
            batch.stop()
        finally:
            end.set()

    def _take(self, batch: _Batch) -> bool:
        """Wait until a worker may be used; False if the batch is over first."""
        with self._free:
            while self._taken >= self.workers and not batch.is_over():
                self._free.wait(batch.remaining())
            if batch.is_over():
                return False
            self._taken += 1
            return True

    def _put_back(self, worker: _Worker | None) -> None:
        with self._free:
            self._taken -= 1
            if worker is not None and not worker.is_ended:
                self._idle.append(worker)
            self._free.notify()

    def _start(self) -> _Worker:
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
        with contextlib.suppress(OSError):  # noticed when its first message is read
            worker.connection.send(setup)
        return worker

    def _use(self, worker: _Worker, batch: _Batch) -> None:
        if not worker.is_ready and not self._load(worker, batch):
            return
        batch.needs_worker = False
        while not worker.is_ended and (call := batch.next()) is not None:
            self._call(worker, batch, call)

    def _load(self, worker: _Worker, batch: _Batch) -> bool:
        """Wait until a worker has loaded the function; False if the batch is over first, or it must be replaced."""
        try:
            if not batch.receives(worker.connection, worker.started + SETUP_SECONDS):
                if batch.is_stopped:
                    worker.end()
                if batch.is_over():  # at a deadline it continues loading
                    return False
                raise IsolationError(f"{_name(self._function)} did not load in a worker in {SETUP_SECONDS:g} s")
            state, message, _ = worker.connection.recv()
        except (EOFError, OSError) as error:
            ending = worker.end()
            if ending is None and batch.may_retry(None):
                return False
            raise IsolationError(
                f"a worker process died ({ending or LOST}) while it loaded {_name(self._function)}"
            ) from error
        if state != "ready":
            raise IsolationError(f"{_name(self._function)} does not load in a worker process: {message}")
        worker.is_ready = True
        return True

    def _call(self, worker: _Worker, batch: _Batch, call: int) -> None:
        """Send a call to a worker and store its result; a call that did not begin is pending again."""
        is_sent = False
        try:
            worker.connection.send_bytes(batch.payloads[call])
            is_sent = True
            if batch.receives(worker.connection, batch.limit and time.monotonic() + batch.limit):
                batch.results[call], is_spent = _read(worker.connection.recv_bytes())
                if is_spent:
                    worker.end()
                return
            if not batch.is_over():
                batch.results[call] = Fault("timeout", f"took more than {batch.limit:g} s")
            worker.end()
        except (EOFError, OSError) as error:
            ending = worker.end()
            # Without a known end the worker went with the fork server, and not by itself.
            if (not is_sent or ending is None) and batch.may_retry(call):
                batch.pending.appendleft(call)
            elif is_sent and isinstance(error, BlockingIOError):
                batch.results[call] = Fault("timeout", f"its result stopped coming for {STALL_SECONDS:g} s")
            else:
                batch.results[call] = Fault("crash", f"the worker process died ({ending or LOST})")

    def __reduce__(self) -> tuple[Any, ...]:
        settings: dict[str, Any] = {"workers": self.workers, "preload": self._preload, "memory": self._memory}
        return partial(WorkerPool, self._function, **settings), ()


LOST = f"killed with the process that it was forked from, {ATTEMPTS} times"
_MISSING = object()


class _Batch:
    def __init__(self, payloads: list[bytes], limit: float | None, until: float | None):
        self.payloads = payloads
        self.limit = limit
        self.until = until
        self.results: list[Any] = [_MISSING] * len(payloads)
        self.pending = deque(range(len(payloads)))
        self.lost: Counter[int | None] = Counter()  # attempts per call that ended with the fork server
        self.error: BaseException | None = None
        self.needs_worker = False
        self.is_stopped = False
        self._stopped, self._stop = Pipe(duplex=False)  # readable when the batch is stopped

    def stop(self) -> None:
        self.is_stopped = True
        self._stop.send_bytes(b"")

    def is_over(self) -> bool:
        return self.is_stopped or self.remaining() == 0.0

    def remaining(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def next(self) -> int | None:
        with contextlib.suppress(IndexError):  # another thread took the last one
            if not self.is_over():
                return self.pending.popleft()
        return None

    def may_retry(self, call: int | None) -> bool:
        """Count an attempt that failed through no fault of the call (None: of loading the function)."""
        self.lost[call] += 1
        return self.lost[call] < ATTEMPTS

    def receives(self, connection: Connection, until: float | None) -> bool:
        """Wait for a message (or its end); False at the time limit, the batch's deadline, or when it is stopped."""
        limits = [limit for limit in (until, self.until) if limit is not None]
        timeout = max(0.0, min(limits) - time.monotonic()) if limits else None
        ready = wait([connection, self._stopped], timeout)
        return connection in ready and self._stopped not in ready


class _Worker:
    def __init__(self, pid: int, connection: Connection, server: _ForkServer):
        self.pid = pid
        self.connection = connection
        self.server = server
        self.started = time.monotonic()
        self.is_ready = False  # the function is loaded
        self.is_ended = False
        self._ending: str | None = None

    def end(self) -> str | None:
        """Kill the process with everything it started. Returns how it ended, None if the fork server is gone."""
        if not self.is_ended:
            code = self.server.kill(self.pid)
            self.is_ended = True
            if code is not None:
                self._ending = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
            with contextlib.suppress(OSError):
                self.connection.close()
        return self._ending


class _ForkServer:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.preloaded: set[str] = set()
        self.is_given_up = False
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with other:
                self._control = Connection(os.dup(self._socket.fileno()))
                self.process = subprocess.Popen(
                    python_command("rlkd.workers.forkserver:main", str(other.fileno()), str(self.pid)),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[other.fileno()],
                    env={**os.environ, **ONE_THREAD},
                    start_new_session=True,  # Ctrl-C in the terminal is handled here
                )
        except BaseException:
            self._socket.close()
            raise

    def preload(self, modules: Sequence[str]) -> None:
        new = [module for module in modules if module not in self.preloaded]
        if new:
            _, problem = self._request("preload", new)
            if problem:
                raise IsolationError(f"preloading {', '.join(new)}: {problem}")
            self.preloaded.update(new)

    def fork(self) -> tuple[int, Connection]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                seconds, rest = divmod(STALL_SECONDS, 1)
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(rest * 1e6)))
            pid, problem = self._request("fork", None, theirs.fileno())
            if problem:
                raise IsolationError(f"no more worker processes can be started: {problem}")
            return pid, Connection(ours.detach())

    def kill(self, pid: int) -> int | None:
        """Kill a worker; returns its exit code, or None if this fork server is gone (and its workers with it)."""
        if self.pid != os.getpid():
            return None
        try:
            return self._request("kill", pid)[0]
        except OSError:
            self.wait()
            return None

    def is_gone(self) -> bool:
        return self.is_given_up or self.process.poll() is not None

    def give_up(self) -> None:
        """Have it end, with all workers, and wake the thread that waits for its reply."""
        self.is_given_up = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.give_up()
        self.wait()
        self._forget_connection()

    def forget(self) -> None:
        """In a forked child: the process belongs to the parent; only copies of descriptors are dropped."""
        self._forget_connection()
        self.process.returncode = 0  # or Popen would warn about a running process

    def _forget_connection(self) -> None:
        self._control.close()
        self._socket.close()

    def _request(self, command: str, value: object, handle: int | None = None) -> tuple[int, str]:
        """One request and its reply. If it is interrupted, the next reply would be the wrong one: give up."""
        with self.lock:
            if self.is_given_up:
                raise ConnectionError("the fork server is gone")
            try:
                self._control.send((command, value))
                if handle is not None:
                    send_handle(self._control, handle, self.process.pid)
                reply: tuple[int, str] = self._control.recv()
                return reply
            except EOFError as error:
                self.give_up()
                raise ConnectionError("the fork server is gone") from error
            except BaseException:
                self.give_up()
                raise


_current: _ForkServer | None = None
_starting = threading.Lock()


def _fork(preload: Sequence[str]) -> tuple[int, Connection, _ForkServer]:
    """A worker process, from this process's fork server, which is restarted if it is gone."""
    problem: OSError | None = None
    for _ in range(ATTEMPTS):
        try:
            server = _fork_server()
            server.preload(preload)
            return *server.fork(), server
        except OSError as error:
            problem = error
    raise IsolationError(f"worker processes cannot be started: {problem!r}") from problem


def _fork_server() -> _ForkServer:
    global _current
    with _starting:
        if _current is not None and _current.is_gone():
            _current.close()
            _current = None
        if _current is None:
            _current = _ForkServer()
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
    """For a pool that is garbage collected: idle workers end when their connection is closed."""
    while workers:
        worker = workers.pop()
        worker.is_ended = True
        worker.connection.close()


def _read(message: bytes) -> tuple[Any, bool]:
    """The result in a worker's message, and whether the worker must be replaced."""
    try:
        kind, value, pickled = pickle.loads(message)
        if kind == "value":
            return value, False
    except Exception as error:
        return Fault("error", f"its result cannot be read: {type(error).__name__}: {error}"), False
    if kind == "unread":
        raise IsolationError(f"an argument cannot be read in a worker process: {value}")
    exception = None
    if pickled is not None:
        # A class that only the worker can import costs no more than the exception itself.
        with contextlib.suppress(Exception):
            exception = pickle.loads(pickled)
    return Fault(kind, value, exception), kind == "memory"  # how much of its memory is left is unknown


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or repr(function))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return str(number)
