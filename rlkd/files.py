"""Files that survive a crash: atomic writes, locks between processes, and JSON lines.

with atomic_file(folder / "rows.jsonl") as file:  # readers see the old file or the whole new one
    file.write(...)
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlkd.errors import UsageError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the block succeeds, and leaves it alone otherwise.

    After the replacement the content is on disk and survives a power failure. Text is UTF-8; `mode` is "w" or "wb".
    Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every file system can synchronise a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file by `content` in one step (`atomic_file`)."""
    with atomic_file(path, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)


def lock_file(path: str | os.PathLike[str], *, shared: bool = False, wait: bool = False) -> IO[bytes] | None:
    """Lock a file, which is created if it is missing; return it, or None where another process holds the lock.

    The lock is released when the file is closed in this process and in all that inherited it, at the latest when they
    end. `wait`: until the lock is free, instead of returning None. Raises `UsageError` where the file system has no
    locks.
    """
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UsageError(
            f"{path} cannot be locked ({error.strerror}). Choose a folder on a local disk (for the cache: "
            f"RLKD_CACHE=FOLDER)"
        ) from error
    return file


def read_records(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The complete records of a file of JSON lines; skips a last line that was truncated by a crash.

    Raises ValueError for any other line that is not JSON.
    """
    with Path(path).open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def append_records(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines. The records survive a crash of this process once the function returns."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def remove_truncated_line(path: str | os.PathLike[str]) -> None:
    """Remove a last line that was truncated by a crash, so that records can be appended; no file is fine."""
    path = Path(path)
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
