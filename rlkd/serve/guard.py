"""The parent of a server: when the server or the supervisor ends, everything below it ends, however that happened.

A server starts processes of its own, which may leave its process group and outlive it. The guard is their "subreaper":
orphans below it become its children. It exits with the server's code or signal. On SIGTERM, SIGINT and the end of its
parent (with at most 5 seconds of grace) it sends SIGKILL after the grace, on SIGUSR1 at once. Processes that SIGKILL
does not end within `stuck` seconds are listed in the log and left. If the guard itself is killed, the server dies with
it, and the rest is found by the variable MARK in its environment.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time

from rlkd.process import adopt_orphans, descendants, die_with_parent, send

MARK = "RLKD_SERVE_MARK"
ORPHANED_GRACE = 5.0
REST_GRACE = 5.0  # for processes that an ended server left
STUCK = "SIGKILL does not end process {} (stuck in a driver? state D in ps); left behind"


class Guard:
    """One server and everything below it."""

    def __init__(self, parent: int, grace: float, stuck: float, command: list[str]):
        self.parent = parent
        self.grace = grace
        self.stuck = stuck
        self.status: int | None = None  # of the server, once it has ended
        self.deadline: float | None = None  # from then on, SIGKILL
        self.wakeup, writing = os.pipe()
        for end in (self.wakeup, writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # the numbers of signals arrive here
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        adopt_orphans()
        die_with_parent(signal.SIGHUP)  # wakes this process at once
        self.server = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)

    def run(self) -> int:
        """Wait until everything has ended; returns the server's status as `waitpid` gives it."""
        has_terminated_rest = False
        while True:
            self._reap()
            now = time.monotonic()
            if self.status is not None or (self.deadline is not None and now >= self.deadline):
                left = descendants(os.getpid())
                if self.status is not None and not left:
                    return self.status
                if self.status is not None and not has_terminated_rest:
                    has_terminated_rest = True
                    send(left, signal.SIGTERM)
                    self._end_within(min(self.grace, REST_GRACE) if self.deadline is None else self.grace)
                if self.deadline is not None and now >= self.deadline:
                    send(left, signal.SIGKILL)
                if self.deadline is not None and now >= self.deadline + self.stuck:
                    pids = {process.pid for process in left} | ({self.server.pid} if self.status is None else set())
                    print(STUCK.format(", ".join(map(str, sorted(pids)))), file=sys.stderr, flush=True)
                    return signal.SIGKILL if self.status is None else self.status
            if os.getppid() != self.parent:
                self.parent = os.getppid()
                self._terminate(signal.SIGTERM, min(self.grace, ORPHANED_GRACE))
            for number in self._signals(1.0 if self.deadline is None and self.status is None else 0.05):
                if number == signal.SIGUSR1:
                    self._terminate(signal.SIGKILL, 0.0)
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._terminate(number, self.grace)

    def _signals(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.wakeup], [], [], seconds)
        return os.read(self.wakeup, 512) if ready else b""

    def _terminate(self, number: int, grace: float) -> None:
        self._end_within(grace)
        if self.status is None:  # not waited for, so the id is still the server's
            with contextlib.suppress(ProcessLookupError):
                # An interrupt goes to the whole group, as from a terminal.
                (os.killpg if number == signal.SIGINT else os.kill)(self.server.pid, number)

    def _end_within(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self.server.pid:
                    self.status = status


def main(parent: str, grace: str, stuck: str, *command: str) -> None:
    """Run the command under a guard, and end as it ended."""
    try:
        status = Guard(int(parent), float(grace), float(stuck), list(command)).run()
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the server's own core dump is enough
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
