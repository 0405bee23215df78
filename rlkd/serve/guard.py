"""The process between the supervisor and a server: whatever becomes of either, all of the server ends.

    python guard.py CONTROL PARENT GRACE COMMAND [ARGUMENT ...]

A server starts processes of its own, which may leave its process group and outlive it. The warden is their
"subreaper": what is orphaned below it becomes its child, so that it can find and end everything. It ends

- when the server has ended by itself: with what the server left, and with the server's exit code or signal;
- when told to through the descriptor CONTROL: `t` SIGTERM, `i` SIGINT, each followed by SIGKILL after GRACE seconds,
  `k` SIGKILL at once;
- when the process PARENT is gone, however it ended: as with `t`, after 5 seconds at most.

What SIGKILL does not end within 10 seconds (stuck in a driver: state D) is named in the log and left behind.

The server itself dies with the warden by a death signal; what it has started then is found by the mark in its
environment (`state.py`). Where there is no `/proc`, the process group of the server is all that can be reached.

Only the standard library, in an interpreter without site packages: a start takes 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 (no package here)
try:
    import processes
finally:
    del sys.path[0]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ORPHANED_GRACE = 5.0
# What a server that ended by itself has left gets so long to end, too.
REST_GRACE = 5.0
# So long after SIGKILL, what is still there will not end.
STUCK = 10.0


class Warden:
    """One server and everything below it."""

    def __init__(self, control: int, parent: int, grace: float, command: list[str]):
        self.control: int | None = control
        self.parent = parent
        self.grace = grace
        self.status: int | None = None
        self.deadline: float | None = None  # of the end
        self.told_rest = False
        self.killed: float | None = None  # when SIGKILL was sent first
        self.prctl = _prctl()
        self.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.wakeup, writing = os.pipe()
        for end in (self.wakeup, writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.server = subprocess.Popen(command, start_new_session=True, preexec_fn=self._in_server)

    def _in_server(self) -> None:
        self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch(self) -> int:
        """Until everything is gone; return the server's status as `waitpid` has it."""
        while True:
            self._reap()
            if self.killed is not None and time.monotonic() >= self.killed + STUCK and self._left():
                return self._leave()
            if self.status is not None:
                if not self._rest():
                    return self.status
                self._end_rest()
            elif self.deadline is not None and time.monotonic() >= self.deadline:
                self._kill()
            elif os.getppid() != self.parent:
                self._orphaned()
            # Short while something is to end, else only a look at the parent.
            for command in self._commands(0.05 if self.deadline is not None else 1.0):
                self._obey(command)

    def _commands(self, seconds: float) -> bytes:
        readable = [self.wakeup] if self.control is None else [self.wakeup, self.control]
        ready, _, _ = select.select(readable, [], [], seconds)
        told = b""
        if self.wakeup in ready:
            numbers = os.read(self.wakeup, 512)
            if set(numbers) & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                told += b"t"
        if self.control in ready and self.control is not None:
            text = os.read(self.control, 512)
            told += text
            if not text:
                self.control = None
                self._orphaned()
        return told

    def _obey(self, command: int) -> None:
        if command == ord("k"):
            self.deadline = time.monotonic()
            self._kill()
        elif command == ord("i"):
            # As a terminal does it: to the whole group.
            self._until(self.grace)
            if self.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.server.pid, signal.SIGINT)
        elif command == ord("t"):
            self._terminate(self.grace)

    def _orphaned(self) -> None:
        self.parent = os.getppid()
        self._terminate(min(self.grace, ORPHANED_GRACE))

    def _terminate(self, grace: float) -> None:
        self._until(grace)
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server.pid, signal.SIGTERM)  # not reaped yet, so the id is the server's

    def _until(self, grace: float) -> None:
        end = time.monotonic() + grace
        self.deadline = end if self.deadline is None else min(self.deadline, end)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self.server.pid:
                    self.status = status

    def _rest(self) -> bool:
        if processes.HAS_PROC:
            return bool(processes.descendants([os.getpid()]))
        try:
            os.killpg(self.server.pid, 0)
        except OSError:
            return False
        return True

    def _end_rest(self) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + min(self.grace, REST_GRACE)
        if not self.told_rest:
            self.told_rest = True
            self._signal_rest(signal.SIGTERM)
        elif time.monotonic() >= self.deadline:
            self._signal_rest(signal.SIGKILL)

    def _left(self) -> list[int]:
        """What is still there, as far as it can be told."""
        server = [self.server.pid] if self.status is None else []
        return [*server, *(each.pid for each in processes.descendants([os.getpid()]) if each.pid not in server)]

    def _leave(self) -> int:
        pids = ", ".join(map(str, self._left()))
        print(
            f"SIGKILL does not end process {pids} (stuck in a driver? state D in ps); left behind",
            file=sys.stderr,
            flush=True,
        )
        return signal.SIGKILL if self.status is None else self.status

    def _kill(self) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server.pid, signal.SIGKILL)
        self._signal_rest(signal.SIGKILL)

    def _signal_rest(self, number: int) -> None:
        if number == signal.SIGKILL and self.killed is None:
            self.killed = time.monotonic()
        if processes.HAS_PROC:
            for each in processes.descendants([os.getpid()]):
                processes.send(each, number)
        else:
            with contextlib.suppress(OSError):
                os.killpg(self.server.pid, number)


def _prctl() -> Callable[[int, int], int]:
    """The system call of that name; where there is none, a function that does nothing."""
    if sys.platform != "linux":
        return lambda *_: 0
    call = ctypes.CDLL(None, use_errno=True).prctl
    return lambda option, value: call(option, ctypes.c_ulong(value), 0, 0, 0)


def main(arguments: list[str]) -> None:
    """Run the command under a warden, and end as it ended."""
    control, parent, grace, *command = arguments
    try:
        status = Warden(int(control), int(parent), float(grace), command).watch()
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the server's own dump is enough
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1:])
