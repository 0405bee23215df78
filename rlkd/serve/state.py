"""What a start writes down about itself, so that another command can see it, stop it, or clean up after it.

One file a config in `$RLKD_CACHE/serve` (`~/.cache/rlkd/serve`), beside a lock that the supervisor holds while it
lives: the system lets go of it however the supervisor ends. So a free lock beside a file means that something ended
without cleaning up. What it left is ended by `clean`: the processes of the file, by id and start time, and those that
carry its mark. Both are certain: no stranger's process is ended.

A file of another machine (a shared home), or from before a restart of this one, or of another container, names nothing
that could be ended here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rlkd.files import lock_file, write_atomically
from rlkd.models import cache_folder
from rlkd.serve import processes
from rlkd.serve.processes import Process

LONGEST_LOOK = 5.0  # seconds; a look takes far less


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
        """Take the lock, until `release` or the end of this process; whether it was free."""
        deadline = time.monotonic() + LONGEST_LOOK
        while (handle := lock_file(self.path.with_suffix(".lock"))) is None:
            # A look from elsewhere (`held`) is in the way for a moment, and tells itself from a holder.
            if time.monotonic() > deadline or self.held():
                return False
            time.sleep(0.01)
        self._lock = handle
        return True

    def held(self) -> bool:
        """Whether somebody has the lock, looked at so that other looks do not count."""
        handle = lock_file(self.path.with_suffix(".lock"), shared=True)
        if handle is not None:
            handle.close()
        return handle is None

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self) -> dict[str, Any] | None:
        """What is written; None where there is nothing (or not all of it, after a full disk)."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write(self, content: dict[str, Any]) -> None:
        """Replace what is written, at once."""
        write_atomically(self.path, json.dumps(content | {"where": where()}, indent=1))

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def choosing_ports() -> Iterator[None]:
    """One start at a time, from the choice of its ports until they are written down.

    vLLM listens only when it has loaded its model: until then, what is written is all that shows a port to be taken.
    """
    handle = lock_file(folder() / "ports.lock", wait=True)
    assert handle is not None  # it waits
    with handle:
        yield


def taken_ports(own: StateFile) -> dict[int, str]:
    """The ports of this machine's other running configs, each with its config."""
    found = {}
    for file in files():
        content = file.read()
        if file.path == own.path or content is None or content["where"]["host"] != socket.gethostname():
            continue
        if file.held():
            for server in content["servers"]:
                if (port := urlsplit(server.get("address", "")).port) is not None:
                    found[port] = content["config"]
    return found


def folder() -> Path:
    """Where the files are."""
    return cache_folder() / "serve"


def files() -> list[StateFile]:
    """All there are."""
    return [StateFile(path) for path in sorted(folder().glob("*.json"))]


def where() -> dict[str, str]:
    """What must be equal for a process id to mean the same: machine, its start, and the container."""
    found = {"host": socket.gethostname(), "boot": "", "namespace": ""}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["namespace"] = str(Path("/proc/self/ns/pid").readlink())
    return found


def is_here(content: dict[str, Any]) -> bool:
    """Whether the process ids of a file mean processes of this machine as it runs now."""
    return processes.HAS_PROC and content.get("where") == where()


def supervisor(content: dict[str, Any]) -> Process | None:
    """The supervisor of a file, where it can be named here."""
    pair = content.get("supervisor")
    return Process(*pair) if is_here(content) and pair else None


def remains(content: dict[str, Any]) -> list[Process]:
    """The processes of a file's servers that run still; never this process or one that it descends from."""
    if not is_here(content):
        return []
    mark = f"{content['mark']}:"
    spared = processes.ancestors()
    recorded = {Process(*pair) for server in content["servers"] for pair in server["processes"]}
    found = {each for each in recorded if processes.alive(each)} | set(
        processes.marked(lambda text: text.startswith(mark))
    )
    return sorted(each for each in found if each.pid not in spared)


def clean(content: dict[str, Any]) -> list[str]:
    """End what a file's supervisor has left; say what that was."""
    titles = {each: processes.title(each.pid) for each in remains(content)}
    ended = processes.end_all(lambda: remains(content))
    return [f"{each.pid} {titles.get(each, '')}".strip() for each in ended]


def clean_up() -> Iterator[tuple[str, list[str]]]:
    """End what dead supervisors of any config left on this machine: each one's config and what was ended."""
    for file in files():
        content = file.read()
        if content is None or not is_here(content) or not file.hold():
            continue
        try:
            yield content.get("config", str(file.path)), clean(content)
            file.remove()
        finally:
            file.release()
