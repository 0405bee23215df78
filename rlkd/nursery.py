"""The process from which worker processes are forked (`rlkd.isolation` starts it; nothing else imports it).

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
from multiprocessing.connection import Connection
from typing import Any

# Commands on the control socket: a letter, a number, and for some a text of that length.
HEADER = struct.Struct("!cq")
FORK, KILL, PRELOAD, DONE, WRONG = b"F", b"K", b"P", b"D", b"W"

_PR_SET_PDEATHSIG = 1


def main(control_fd: int) -> None:
    """Serve commands until the other end of the control socket is closed, or the parent is gone."""
    control = socket.socket(fileno=control_fd)
    os.setsid()  # a Ctrl-C in the terminal is the parent's to handle
    parent = os.getppid()
    workers: set[int] = set()
    try:
        while os.getppid() == parent:
            # The socket alone would not do: a process that the parent forked holds a copy of its end.
            if not select.select([control], [], [], 1.0)[0]:
                continue
            message, descriptors, _, _ = socket.recv_fds(control, HEADER.size, 1)
            if not message:
                break
            message += _receive(control, HEADER.size - len(message))
            command, number = HEADER.unpack(message)
            if command == FORK:
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _work(descriptors[0])
                os.close(descriptors[0])
                workers.add(pid)
                control.sendall(HEADER.pack(DONE, pid))
            elif command == KILL:
                control.sendall(HEADER.pack(DONE, _end(number)))
                workers.discard(number)
            elif command == PRELOAD:
                modules = json.loads(_receive(control, number))
                try:
                    for module in modules:
                        importlib.import_module(module)
                except Exception as error:
                    text = repr(error).encode()
                    control.sendall(HEADER.pack(WRONG, len(text)) + text)
                else:
                    control.sendall(HEADER.pack(DONE, 0))
    except ConnectionError:
        pass
    finally:
        for pid in workers:
            _end(pid)


def _receive(control: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = control.recv(count - len(data))
        if not piece:
            raise ConnectionError("the parent is gone")
        data += piece
    return data


def _end(pid: int) -> int:
    """Kill a worker with all that it started; return how it ended, as `os.waitstatus_to_exitcode` tells it."""
    # Where it has just been forked, it may have no group of its own yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(fd: int) -> None:
    """The life of a worker: take the function, then answer call after call. Never returns."""
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        random.seed()
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
    try:
        sys.path[:] = setup["path"]
        with contextlib.suppress(OSError):
            os.chdir(setup["folder"])
        if setup["memory"] is not None:
            resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
        function = pickle.loads(setup["function"])
    except BaseException as error:
        connection.send(("broken", _described(error), None))
        return
    connection.send(("ready", None, None))
    while True:
        arguments = connection.recv()
        try:
            answer: tuple[str, Any, Any] = ("value", function(*arguments), None)
        except MemoryError:
            answer = ("memory", "ran out of memory", None)
        except BaseException as error:
            answer = ("error", _described(error), _portable(error))
        try:
            connection.send(answer)
        except (ConnectionError, BrokenPipeError):
            raise
        except BaseException as error:
            connection.send(("error", f"its result cannot be sent back: {_described(error)}", None))


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _portable(error: BaseException) -> BaseException | None:
    """The exception itself, where it survives pickling."""
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else None
    except Exception:
        return None


inside = False
