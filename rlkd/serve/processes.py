"""Processes: told apart for good, found, and ended without ever hitting a stranger.

A process id alone names nothing, as ids are used again. A process is its id *and* its start time, and a signal goes
through a handle of the process (a pidfd) that was checked after it was opened. Servers carry a mark in their
environment (`MARK`), by which they are found even where every ancestor is gone.

All of it reads `/proc`. On other systems tables are empty, and `HAS_PROC` is False. Only the standard library: the
warden uses this module without the package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
HAS_PROC = (PROC / "self" / "stat").exists()
MARK = "RLKD_SERVE_MARK"
# Arguments whose values are nobody's to read.
SECRET_ARGUMENTS = ("--api-key", "--hf-token")
HIDDEN = "***"


class Process(NamedTuple):
    """A process for good: its id and its start, in clock ticks since the machine's."""

    pid: int
    started: int


class Entry(NamedTuple):
    """A line of the process table."""

    process: Process
    parent: int
    zombie: bool


def entry(pid: int) -> Entry | None:
    """What the process table says of an id; None where there is no such process."""
    try:
        # The name stands in parentheses and may hold any character.
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return Entry(Process(pid, int(fields[19])), int(fields[1]), fields[0] in (b"Z", b"X"))
    except (OSError, IndexError, ValueError):
        return None


def identify(pid: int) -> Process | None:
    """The process that has the id now."""
    found = entry(pid)
    return found.process if found else None


def alive(process: Process) -> bool:
    """Whether it runs still. A zombie does not."""
    found = entry(process.pid)
    return found is not None and found.process == process and not found.zombie


def table() -> dict[int, Entry]:
    """All processes there are, by id."""
    if not HAS_PROC:
        return {}
    found = (entry(int(path.name)) for path in PROC.iterdir() if path.name.isdecimal())
    return {each.process.pid: each for each in found if each}


def descendants(roots: Iterable[int]) -> list[Process]:
    """Children of the roots, their children, and so on; without the roots, without zombies."""
    children: dict[int, list[Entry]] = {}
    for each in table().values():
        children.setdefault(each.parent, []).append(each)
    found, waiting = [], list(roots)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child.process.pid)
            if not child.zombie:
                found.append(child.process)
    return found


def marked(wanted: Callable[[str], bool]) -> list[Process]:
    """The processes whose environment carries a mark that is wanted. Others' environments cannot be read."""
    found = []
    prefix = f"{MARK}=".encode()
    for each in table().values():
        with contextlib.suppress(OSError):
            for variable in (PROC / str(each.process.pid) / "environ").read_bytes().split(b"\0"):
                if variable.startswith(prefix) and wanted(variable.removeprefix(prefix).decode(errors="replace")):
                    # Read again: the environment must be that of the process of the table.
                    if not each.zombie and identify(each.process.pid) == each.process:
                        found.append(each.process)
                    break
    return found


def ancestors() -> set[int]:
    """This process and those it descends from."""
    found, pid = {os.getpid()}, os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        above = entry(pid)
        pid = above.parent if above else 0
    return found


def send(process: Process, number: int) -> bool:
    """Send a signal; whether the process was there to get it."""
    try:
        handle = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return False
    try:
        # The handle holds the process that has the id now; is it the one that is meant?
        if not alive(process):
            return False
        if handle is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if handle is not None:
            os.close(handle)


def end_all(find: Callable[[], list[Process]], limit: float = 10.0) -> list[Process]:
    """Kill what `find` gives until it gives nothing, or for `limit` seconds; return all that were hit."""
    hit: dict[Process, None] = {}
    deadline = time.monotonic() + limit
    while (found := find()) and time.monotonic() < deadline:
        hit |= dict.fromkeys(each for each in found if send(each, signal.SIGKILL))
        time.sleep(0.02)
    return list(hit)


def masked(words: Iterable[str]) -> list[str]:
    """A command without the values of `SECRET_ARGUMENTS`."""
    found = []
    hiding = False
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            hiding = name.replace("_", "-") in SECRET_ARGUMENTS
            found.append(f"{name}={HIDDEN}" if hiding and equals else word)
        else:
            found.append(HIDDEN if hiding and word else word)
    return found


def title(pid: int) -> str:
    """The command line of a process, as far as it can be read, without secrets."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    line = " ".join(masked(words)).strip()
    return line if len(line) <= 120 else f"{line[:117]}..."
