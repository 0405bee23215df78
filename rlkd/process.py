"""Operating system helpers for processes that start, watch and end other processes.

A process id alone identifies nothing, as ids are reused. `psutil.Process` is an id with its start time, and refuses to
signal another process that has the id since.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Arguments whose values are shown nowhere.
SECRET_ARGUMENTS = ("--api-key", "--hf-token")
HIDDEN = "***"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def cores() -> int:
    """The physical cores that this process may use: its affinity, at most its container's quota (cgroup v2)."""
    available = _physical(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(available, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return available


def _physical(cpus: Collection[int], folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """The number of cores behind these CPUs: two threads of one core share the units that multiply."""
    try:
        return len({(folder / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus})
    except OSError:
        return len(cpus)


def is_first_process() -> bool:
    """Whether this process is the first of a run, which speaks for all; a launcher numbers them in `RANK`."""
    return os.environ.get("RANK", "0") in ("", "0")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (Linux; elsewhere nothing)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own (Linux; elsewhere nothing)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)


def python_command(target: str, *arguments: str, flags: Sequence[str] = ()) -> list[str]:
    """The command that calls `module:function` in a new interpreter with this one's import path.

    A checkout need not be installed, and a file in the current folder shadows no module.
    """
    module, _, function = target.partition(":")
    code = (
        "import sys; n = int(sys.argv[1]) + 2; sys.path[:] = sys.argv[2:n]; del sys.argv[1:n]; "
        f"from {module} import {function}; {function}(*sys.argv[1:])"
    )
    return [sys.executable, "-P", *flags, "-c", code, str(len(sys.path)), *map(str, sys.path), *arguments]


def kill_group(pid: int) -> None:
    """Kill a process group and its leader, which may not have become one yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def is_running(process: psutil.Process) -> bool:
    """Whether this very process exists and has not ended (a zombie has)."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """Running processes below this one."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if is_running(process)]
    except psutil.NoSuchProcess:
        return []


def carriers(variable: str, prefix: str) -> list[psutil.Process]:
    """Running processes in whose environment a variable starts with `prefix`.

    This process and its ancestors are left out, and so are processes of other users, which cannot be read.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(variable, "").startswith(prefix):
                found += [process] * is_running(process)
    return found


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def listeners(port: int, host: str | None = None) -> list[int]:
    """The process id of each socket that listens on a port; with `host`, of those that a connection to it may reach.

    Sockets whose owner the system does not show (other users' processes) are left out.
    """
    wanted = {"0.0.0.0", "::"}
    if host is not None and host not in wanted:
        with contextlib.suppress(OSError):
            wanted |= {str(address[4][0]) for address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS, without root
        return []
    return [
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port == port
        and connection.pid is not None
        and (host in (None, "0.0.0.0", "::") or connection.laddr.ip.removeprefix("::ffff:") in wanted)
    ]


def masked(words: Iterable[str]) -> list[str]:
    """A command without the values of `SECRET_ARGUMENTS`."""
    found = []
    hides = False
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            hides = name.replace("_", "-") in SECRET_ARGUMENTS
            found.append(f"{name}={HIDDEN}" if hides and equals else word)
        else:
            found.append(HIDDEN if hides and word else word)
    return found


def title(process: psutil.Process | int) -> str:
    """The command line of a process, if it can be read, without secrets."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        line = " ".join(masked(process.cmdline()))
    except psutil.Error:
        return ""
    return line if len(line) <= 120 else f"{line[:117]}..."
