"""The process from which worker processes are forked (`rlkd.workers.pool` starts it; nothing else imports it).

It stays small, has one thread and holds nothing but the modules it was told to preload, so that a fork takes
milliseconds. It ends when the process that started it is gone, however that ended, and takes all workers along.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import random
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Commands on the control socket: a letter, a number, and for some a text of that length.
HEADER = struct.Struct("!cq")
FORK, KILL, PRELOAD, DONE, WRONG = b"F", b"K", b"P", b"D", b"W"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(control_fd: int, parent: int) -> None:
    """Serve commands until the other end of the control socket is closed, or the parent is gone."""
    control = socket.socket(fileno=control_fd)
    # What a worker started and left behind is handed to this process and not to the system's first one.
    _set(_PR_SET_CHILD_SUBREAPER, 1)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    try:
        # The socket alone would not do: a process that the parent forked holds a copy of its end.
        while os.getppid() == parent:
            _reap()
            if not poll.poll(1000):
                continue
            message, descriptors, _, _ = socket.recv_fds(control, HEADER.size, 1)
            if not message:
                break
            message += _receive(control, HEADER.size - len(message))
            command, number = HEADER.unpack(message)
            if command == FORK:
                nursery = os.getpid()
                try:
                    pid = os.fork()
                except OSError as error:
                    os.close(descriptors[0])
                    _complain(control, error)
                    continue
                if pid == 0:
                    control.close()
                    _work(descriptors[0], nursery)
                os.close(descriptors[0])
                _workers.add(pid)
                control.sendall(HEADER.pack(DONE, pid))
            elif command == KILL:
                if number in _workers:
                    _end(number)
                control.sendall(HEADER.pack(DONE, _ended.pop(number, 0)))
            elif command == PRELOAD:
                modules = json.loads(_receive(control, number))
                try:
                    for module in modules:
                        importlib.import_module(module)
                except BaseException as error:
                    _complain(control, error)
                else:
                    control.sendall(HEADER.pack(DONE, 0))
    except ConnectionError:
        pass
    finally:
        for pid in list(_workers):
            _end(pid)


_workers: set[int] = set()
_ended: dict[int, int] = {}  # workers that ended by themselves, and how, until somebody asks


def _complain(control: socket.socket, error: BaseException) -> None:
    text = repr(error).encode(errors="replace")
    control.sendall(HEADER.pack(WRONG, len(text)) + text)


def _receive(control: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = control.recv(count - len(data))
        if not piece:
            raise ConnectionError("the parent is gone")
        data += piece
    return data


def _set(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _reap() -> None:
    """Take note of what has ended, so that nothing stays a zombie."""
    while hasattr(os, "waitid"):
        try:
            # A look first: a process that is waited for is gone, and its number may be another's.
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
    """Kill a worker with all that it started, and note how it ended, as `os.waitstatus_to_exitcode` tells it."""
    _kill(worker)
    _ended[worker] = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    _workers.discard(worker)
    # What left the worker's group has come to this process now, and so do its own children once it is killed.
    while strays := list(_strays()):
        for pid in strays:
            _kill(pid)
            os.waitpid(pid, 0)


def _kill(pid: int) -> None:
    # A worker that has just been forked may have no group of its own yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _strays() -> Iterator[int]:
    """Children of this process that are no workers, nor of a worker's session and so left behind by one at work."""
    if sys.platform != "linux":
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # gone meanwhile
                continue
            parent, session = int(fields[1]), int(fields[3])
            if parent == os.getpid() and pid not in _workers and session not in _workers:
                yield pid


def _work(fd: int, nursery: int) -> None:
    """The life of a worker: take the function, then answer call after call. Never returns."""
    code = 1
    try:
        os.setsid()
        _set(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != nursery:  # it ended before that
            return
        random.seed()
        if "numpy" in sys.modules:  # preloaded, and with one state for all
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
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            memory = setup["memory"] if most == resource.RLIM_INFINITY else min(setup["memory"], most)
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        function = pickle.loads(setup["function"])
    except BaseException as error:
        connection.send(("broken", described(error), None))
        return
    connection.send(("ready", None, None))
    while True:
        try:
            given = connection.recv_bytes()
            answer = _answer(function, given, process)
        except MemoryError:
            # The last word: what is left of the memory is not known, nor, where it was the call itself that did not
            # fit, what is left of that on the way.
            connection.send_bytes(pickle.dumps(("memory", "ran out of memory", None)))
            return
        connection.send_bytes(answer)


def _answer(function: Any, given: bytes, process: int) -> bytes:
    """What a call came to: kind, value or message, and the exception (pickled). Raises MemoryError only."""
    try:
        arguments = pickle.loads(given)
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
        if os.getpid() != process:  # a fork of this worker, in which the function came to its end too
            os._exit(0)
    try:
        return pickle.dumps(("value", value, None))
    except MemoryError:
        raise
    except BaseException as error:
        return pickle.dumps(("error", f"its result cannot be sent back: {described(error)}", None))


def described(error: BaseException) -> str:
    """An exception in one line, whatever its own methods do."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # raised by an exception's own method
        return type(error).__name__


def _portable(error: BaseException) -> bytes | None:
    """The exception itself, where it survives pickling."""
    try:
        pickled = pickle.dumps(error)
        return pickled if type(pickle.loads(pickled)) is type(error) else None
    except Exception:
        return None


inside = False
