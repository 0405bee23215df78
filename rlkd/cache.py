"""A cache of results on disk, shared by threads, processes and runs.

    >>> from pathlib import Path
    >>> from rlkd.cache import Cache, cache_key
    >>> cache = Cache(Path("scores.sqlite"))  # doctest: +SKIP
    >>> key = cache_key("accuracy", 1, {"gold": "72"}, "So it is 72.")  # everything that the value depends on
    >>> cache.put({key: 1.0})  # doctest: +SKIP
    >>> cache.get([key])  # doctest: +SKIP
    {'2f0c...': 1.0}

Guarantees:

1. An entry is durable once `put` has returned. A process killed at any moment loses no earlier entry, and leaves
   neither a partial batch nor a file that others cannot read. A power failure may lose the latest entries only.
2. The first value of a key stays. Values come back unchanged: floats bit for bit, but tuples as lists.
3. An unreadable or unwritable file never stops a run: lookups miss, nothing is stored, and one warning says why.
4. With `max_bytes`, the oldest entries are dropped.

Only results belong here; callers must not store failures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

SMALLEST_CAP = 2**16
"""Bytes; an empty file has 12 kB, and a bound near that would silently store nothing."""

# Seconds to wait for other writers: long, since writers wait in normal use; short after a failure, so that a file that
# stays locked (a hung network folder) costs a run one long wait and not one per batch.
_PATIENCE, _PATIENCE_AFTER_FAILURE = 60.0, 1.0

# SQLite tracks a file's locks per process. A child forked while another thread works on the file would inherit locks
# that nobody releases, and would ignore those of others. So a fork waits until no thread is working.
_at_work = threading.RLock()
os.register_at_fork(
    before=_at_work.acquire,
    after_in_parent=_at_work.release,
    after_in_child=_at_work._at_fork_reinit,  # type: ignore[attr-defined]
)


def cache_key(*parts: Any) -> str:
    """The key of an entry: a hash (SHA-256, 64 hexadecimal digits) of everything that its value depends on.

    Different parts give different keys: 1, 1.0, True and "1" all differ, and so do `"a", "b"` and `["a", "b"]`. Only
    tuples equal lists, and the order of a dict does not count. Raises TypeError for a part that JSON cannot express (a
    set, an object, a dict with keys other than strings), and ValueError for nan and inf: a substitute such as `str()`
    could give two different parts one key.
    """
    return hashlib.sha256(_encoded("a part of a cache key", parts, sort_keys=True)).hexdigest()


class Cache:
    """JSON values under keys (`cache_key`), in one SQLite file.

    Several kinds of entries may share a file if their keys name the kind. Pickles as its arguments. An empty cache is
    falsy, like any empty container: test `cache is None`.

    Args:
        path: the file; created with its folder on first use.
        max_bytes: limit of the pages in use, checked after every put; None for no limit. A put that exceeds it drops
            the oldest entries until a tenth is free. The file may exceed the limit by one put, and keeps that size as
            reusable free pages. Oldest means first put, not least recently used (our choice): the latter would turn
            each read into a write that waits for every writer, and a dropped entry is merely computed again.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None):
        if max_bytes is not None and max_bytes < SMALLEST_CAP:
            raise ValueError(f"max_bytes={max_bytes} of cache {path}: expected at least {SMALLEST_CAP} bytes, or None")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._warned = False
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The known values among `keys`, by one query."""
        if not keys:
            return {}
        return self._attempt(partial(_read, keys=json.dumps(list(keys)))) or {}

    def put(self, values: Mapping[str, Any]) -> None:
        """Store values in one transaction; existing entries stay.

        Raises TypeError for a value that JSON cannot express, ValueError for nan and inf; then nothing is stored.
        """
        rows = [(key, _encoded(f"the value of {key!r}", value)) for key, value in values.items()]
        if rows:
            self._attempt(partial(_write, rows=rows, max_bytes=self.max_bytes))

    def __len__(self) -> int:
        """The number of entries; 0 if the file is unreadable."""
        return self._attempt(_count) or 0

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of `work` on the file; None after a warning if that fails."""
        with _at_work:
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError) as error:
                self._disconnect()  # the file may be repaired, unlocked or deleted before the next attempt
                reason, first, self._warned = error, not self._warned, True
            except BaseException:
                self._disconnect()  # rolls back the transaction
                raise
        if first:
            logger.warning(
                f"cache {self.path}: {type(reason).__name__}: {reason}. The run goes on without it and computes those "
                "results again. To fix it, make room, delete the file or use another folder."
            )
        return None

    def _connected(self) -> sqlite3.Connection:
        # One per process, since SQLite forbids the use of a connection in a fork. Dropping it there is harmless: it
        # was idle when the process forked (`_at_work`). Within a process, threads take turns.
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            patience = _PATIENCE_AFTER_FAILURE if self._warned else _PATIENCE
            self._process = os.getpid()
            self._connection = sqlite3.connect(
                self.path,
                timeout=patience,
                isolation_level=None,  # `_write` begins its transaction itself
                check_same_thread=False,
            )
            _prepare(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[Path]]:
        return partial(Cache, max_bytes=self.max_bytes), (self.path,)


def _prepare(connection: sqlite3.Connection) -> None:
    # The journal is SQLite's default, the rollback journal. A write-ahead log would save 1 ms of the 1.3 ms that a put
    # of 64 entries takes, and nothing of a put of 8,192; but its index is memory shared between processes, which
    # network folders do not support. NORMAL is enough: a killed process loses nothing even without any sync, and a
    # power failure leaves the file intact.
    connection.execute("PRAGMA synchronous = NORMAL")
    # Look first, so that read-only files work and opening does not wait for writers.
    if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entries'").fetchone() == (0,):
        # The rowid gives the order of insertion: each is one more than the largest so far.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        connection.execute("COMMIT")


def _read(connection: sqlite3.Connection, keys: str) -> dict[str, Any]:
    query = "SELECT key, value FROM entries WHERE key IN (SELECT value FROM json_each(?))"
    rows = connection.execute(query, (keys,)).fetchall()
    try:
        return {key: json.loads(value) for key, value in rows}
    except (TypeError, ValueError) as error:  # another program's table, or corrupted bytes
        raise sqlite3.DatabaseError(f"a value in the table 'entries' is not JSON: {error}") from error


def _write(connection: sqlite3.Connection, rows: Sequence[tuple[str, bytes]], max_bytes: int | None) -> None:
    # IMMEDIATE, so that a writer waits for others before it reads. Two transactions that have read and then want to
    # write would deadlock, which SQLite ends at once with "database is locked", whatever the timeout.
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", rows)
    if max_bytes is not None and _used_bytes(connection) > max_bytes:
        _drop_oldest(connection, max_bytes * 9 // 10)
    connection.execute("COMMIT")


def _count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT count(*) FROM entries").fetchone()[0]


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _drop_oldest(connection: sqlite3.Connection, target: int) -> None:
    """Drop entries in the order of insertion until at most `target` bytes are in use."""
    while (used := _used_bytes(connection)) > target:
        oldest, newest = connection.execute("SELECT min(rowid), max(rowid) FROM entries").fetchone()
        if oldest is None:
            return
        # Enough if all entries had one size. It takes a few rounds, since the index has the keys in random order and
        # frees a page only when most of its entries are gone.
        share = math.ceil((newest - oldest + 1) * (used - target) / used)
        connection.execute("DELETE FROM entries WHERE rowid < ?", (oldest + share,))


def _encoded(name: str, value: Any, *, sort_keys: bool = False) -> bytes:
    """A value as JSON; different values give different bytes."""
    _require_json(name, value)
    # Not ASCII, in which two lone surrogates would look like the character that the pair encodes.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _require_json(name: str, value: Any) -> None:
    """Raise TypeError or ValueError for a value or dict key that JSON cannot express (`json` would convert keys)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has a dict with the key {key!r} of type {type(key).__name__}: expected a str")
            _require_json(name, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_json(name, item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} has {value!r}: expected a finite number, since JSON has no other")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(
            f"{name} has a {type(value).__module__}.{type(value).__qualname__}, which JSON cannot express: expected "
            "str, int, float, bool, None, or lists and dicts of these"
        )
