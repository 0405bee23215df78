"""The fork server: a process with one thread and the preloaded modules, so that a fork takes milliseconds.

It ends with the process that started it, and takes all workers along. A request is a pair (command, value), the reply
a pair (value, problem).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import random
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import psutil

from rlkd.process import adopt_orphans, die_with_parent, kill_group

inside = False  # whether this process is a worker
_workers: set[int] = set()
_ended: dict[int, int] = {}  # exit codes of workers that ended by themselves, until they are requested


def main(control_fd: str, parent: str) -> None:
    """Serve requests until the other end of the control connection is closed, or the parent is gone."""
    control = Connection(int(control_fd))
    adopt_orphans()  # what a worker started and left behind becomes a child of this process
    try:
        # The connection alone would not do: a process that the parent forked holds a copy of its end.
        while os.getppid() == int(parent):
            _reap()
            if control.poll(1.0):
                command, value = control.recv()
                try:
                    reply = (_answer(control, command, value), "")
                except (Exception, SystemExit) as error:
                    reply = (0, repr(error))
                control.send(reply)
    except (EOFError, OSError):
        pass
    finally:
        for pid in list(_workers):
            _end(pid)


def _answer(control: Connection, command: str, value: Any) -> int:
    if command == "fork":
        return _fork(control)
    if command == "kill":
        if value in _workers:
            _end(value)
        return _ended.pop(value, 0)
    for module in value:  # preload
        importlib.import_module(module)
    return 0


def _fork(control: Connection) -> int:
    fd = recv_handle(control)
    server = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            control.close()
            _work(fd, server)
    finally:
        os.close(fd)
    _workers.add(pid)
    return pid


def _reap() -> None:
    """Record how processes ended, so that none stays a zombie."""
    while hasattr(os, "waitid"):
        try:
            # Only look: the id of a process that was waited for may be another's.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid in _workers:
            _end(found.si_pid)
        else:
            os.waitpid(found.si_pid, 0)


def _end(worker: int) -> None:
    kill_group(worker)
    _ended[worker] = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    _workers.discard(worker)
    # Processes that left the worker's group are children of this process by now, and so are their own once they die.
    while strays := _strays():
        for pid in strays:
            kill_group(pid)
            os.waitpid(pid, 0)


def _strays() -> list[int]:
    """Children of this process that are neither workers nor in the session of a worker that still runs."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(OSError):
            if process.pid not in _workers and os.getsid(process.pid) not in _workers:
                found.append(process.pid)
    return found


def _work(fd: int, server: int) -> None:
    code = 1
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL)
        if os.getppid() != server:  # it ended before that
            return
        random.seed()
        if "numpy" in sys.modules:  # preloaded, with one state for all workers
            sys.modules["numpy"].random.seed()
        global inside
        inside = True
        _serve(Connection(fd))
        code = 0
    except (EOFError, ConnectionError):
        code = 0  # the parent closed its end
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(connection: Connection) -> None:
    setup: dict[str, Any] = connection.recv()
    process = os.getpid()
    try:
        sys.path[:] = setup["path"]
        os.environ.clear()
        os.environ.update(setup["environment"])
        if setup["folder"] is not None:
            with contextlib.suppress(OSError):
                os.chdir(setup["folder"])
        if setup["memory"] is not None:
            _, highest = resource.getrlimit(resource.RLIMIT_AS)
            memory = setup["memory"] if highest == resource.RLIM_INFINITY else min(setup["memory"], highest)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        function = pickle.loads(setup["function"])
    except BaseException as error:
        connection.send(("broken", described(error), None))
        return
    connection.send(("ready", None, None))
    while True:
        try:
            arguments = connection.recv_bytes()
            result = _call(function, arguments, process)
        except MemoryError:
            # The last reply of this worker: how much memory is left, and of the message, is unknown.
            connection.send_bytes(pickle.dumps(("memory", "ran out of memory", None)))
            return
        connection.send_bytes(result)


def _call(function: Any, pickled: bytes, process: int) -> bytes:
    """The pickled outcome of a call: kind, value or message, and the pickled exception. Raises MemoryError only."""
    try:
        arguments = pickle.loads(pickled)
    except MemoryError:
        raise
    except BaseException as error:
        return pickle.dumps(("unread", described(error), None))
    try:
        value = function(*arguments)
    except MemoryError:
        raise
    except BaseException as error:
        return pickle.dumps(("error", described(error), _portable(error)))
    finally:
        if os.getpid() != process:  # a fork of this worker that returned from the function as well
            os._exit(0)
    try:
        return pickle.dumps(("value", value, None))
    except MemoryError:
        raise
    except BaseException as error:
        return pickle.dumps(("error", f"its result cannot be sent back: {described(error)}", None))


def described(error: BaseException) -> str:
    """An exception in one line, even if its own methods fail."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _portable(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
        return pickled if type(pickle.loads(pickled)) is type(error) else None
    except Exception:
        return None
