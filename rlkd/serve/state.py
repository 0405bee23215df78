"""The state file of a run: other shells read it for `--status` and `--stop`, the next start for cleaning up.

The supervisor holds a lock next to it while it lives. A free lock means that a run ended without cleaning up; its
leftovers are the processes whose environment has the run's random mark.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from rlkd.files import lock_file, write_atomically
from rlkd.models import cache_folder
from rlkd.process import carriers, send, title
from rlkd.serve.guard import MARK

LOOK_SECONDS = 5.0  # that another command may hold the lock to look at it; a look takes far less


class StateFile:
    """The file of one config."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: IO[bytes] | None = None

    @classmethod
    def of(cls, config: Path) -> StateFile:
        """The file for a config on this machine."""
        config = config.expanduser().resolve()
        digest = hashlib.sha256(f"{socket.gethostname()}\n{config}".encode()).hexdigest()[:12]
        return cls(folder() / f"{config.stem}-{digest}.json")

    def hold(self) -> bool:
        """Take the lock, until `release` or the end of this process; returns whether it was free."""
        deadline = time.monotonic() + LOOK_SECONDS
        while (handle := lock_file(self.path.with_suffix(".lock"))) is None:
            if time.monotonic() > deadline or self.is_held():
                return False
            time.sleep(0.01)  # another command looks at it
        self._lock = handle
        return True

    def is_held(self) -> bool:
        """Whether a supervisor has the lock; other looks do not count."""
        handle = lock_file(self.path.with_suffix(".lock"), shared=True)
        if handle is not None:
            handle.close()
        return handle is None

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self) -> dict[str, Any] | None:
        """Its content; None if there is none (or only a part of it, after a full disk)."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write(self, content: dict[str, Any]) -> None:
        """Replace its content."""
        write_atomically(self.path, json.dumps(content | {"host": socket.gethostname()}, indent=1))


@contextlib.contextmanager
def choosing_ports() -> Iterator[None]:
    """One start at a time, from choosing its ports until they are written to its state file.

    vLLM listens only after it has loaded its model: until then only the state file shows that a port is taken.
    """
    handle = lock_file(folder() / "ports.lock", wait=True)
    assert handle is not None  # it waits
    with handle:
        yield


def folder() -> Path:
    """The folder of the files."""
    return cache_folder() / "serve"


def known(config: Path | None = None) -> list[tuple[StateFile, dict[str, Any]]]:
    """The state files of this machine (or of one config) with their contents."""
    paths = [StateFile.of(config).path] if config is not None else sorted(folder().glob("*.json"))
    found = [(file, file.read()) for file in map(StateFile, paths)]
    return [(file, content) for file, content in found if content and content["host"] == socket.gethostname()]


def taken_ports(own: StateFile) -> dict[int, str]:
    """The ports of this machine's other running configs, each with its config."""
    return {
        port: content["config"]
        for file, content in known()
        if file.path != own.path and file.is_held()
        for server in content["servers"]
        if (port := urlsplit(server.get("address", "")).port) is not None
    }


def supervisor(content: dict[str, Any]) -> psutil.Process | None:
    """The supervisor of a state file; None if it is gone, or runs in another container."""
    pid, started = content["supervisor"]
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) < 1:  # both go by the system's clock, which may be adjusted
            return process
    return None


def leftovers(content: dict[str, Any]) -> list[psutil.Process]:
    """The running processes that a run has started."""
    return carriers(MARK, f"{content['mark']}:")


def kill_all(find: Callable[[], list[psutil.Process]], seconds: float = 10.0) -> list[psutil.Process]:
    """Kill the processes that `find` returns until it returns none, or the time is over; returns all that were hit."""
    hit: dict[psutil.Process, None] = {}
    deadline = time.monotonic() + seconds
    while (processes := find()) and time.monotonic() < deadline:
        send(processes, signal.SIGKILL)
        hit |= dict.fromkeys(processes)
        time.sleep(0.02)
    return list(hit)


def clean_up(config: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """End what dead supervisors left (of any config, or of one): yields each config and its ended processes."""
    for file, content in known(config):
        if file.hold():
            try:
                titles = {process: title(process) for process in leftovers(content)}
                ended = kill_all(lambda content=content: leftovers(content))  # type: ignore[misc]
                file.path.unlink(missing_ok=True)
                yield content["config"], [f"{each.pid} {titles.get(each, '')}".strip() for each in ended]
            finally:
                file.release()
