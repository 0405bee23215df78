"""What has been worked out once, kept on disk, so that no batch, process or later run works it out again.

    >>> from pathlib import Path
    >>> from rlkd.cache import Cache, cache_key
    >>> cache = Cache(Path("scores.sqlite"))  # doctest: +SKIP
    >>> key = cache_key("accuracy", 1, {"gold": "72"}, "So it is 72.")  # whatever the value depends on
    >>> cache.put({key: 1.0})  # doctest: +SKIP
    >>> cache.get([key])  # doctest: +SKIP
    {'2f0c...': 1.0}

What holds, whoever shares the file:

1. An entry is kept once `put` has returned: a process killed at any moment loses nothing that it had put, leaves no
   batch half written and no file that the others cannot read. Power loss may take what was put last, never the rest.
2. The first value of a key stays. A value comes back as it went in: floats bit for bit, tuples as lists.
3. A file that cannot be read or written never stops a run: nothing is found or kept, and one warning says why.
4. With `max_bytes`, the oldest entries make room.

Only results belong here. That failures are not kept is up to the callers, who know what a failure is.
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
"""Bytes; an empty file has 12 kB, and a bound near that would keep nothing without saying so."""

# Seconds to wait for other processes that write: long, since waiting is what they do in normal use; short after a
# failure, so that a file that stays locked (a hung network folder) costs a run one long wait and not one a batch.
_PATIENCE, _PATIENCE_AFTER_FAILURE = 60.0, 1.0

# What SQLite knows of a file's locks it knows per process, so a child that is forked while another thread is at work
# inherits locks that nobody will ever release, and reads past those of others. So a fork waits until no thread is.
_at_work = threading.RLock()
os.register_at_fork(
    before=_at_work.acquire,
    after_in_parent=_at_work.release,
    after_in_child=_at_work._at_fork_reinit,  # type: ignore[attr-defined]
)


def cache_key(*parts: Any) -> str:
    """What an entry is kept under: a hash (SHA-256, 64 hexadecimal digits) of everything its value depends on.

    Different parts have different keys: 1, 1.0, True and "1" are four parts, and so are `"a", "b"` and `["a", "b"]`.
    The same key have only tuples and lists, and dicts in different order. Raises TypeError for what JSON has no word
    for (a set, an object, a dict whose keys are not strings), ValueError for nan and inf: a stand-in such as `str()`
    would give two different things one key.
    """
    return hashlib.sha256(_encoded("a part of a cache key", parts, sort_keys=True)).hexdigest()


class Cache:
    """Entries of a JSON value under a key (`cache_key`), in one SQLite file that threads, processes and runs share.

    Several kinds of entries may share a file, as long as their keys name the kind. Pickles as its arguments. Like all
    that has a length, an empty cache is false: ask `cache is None`.

    Args:
        path: the file; made when it is first needed, with its folder.
        max_bytes: a bound on the pages in use, checked after every put. One that exceeds it has the oldest entries
            taken out until a tenth is free. The file may outgrow the bound by one put, and keeps that size, as free
            pages that are used again. Oldest means first put, not longest unused (our choice): for the latter each
            read would have to write, and so wait for every writer; and what is dropped by mistake is only worked out
            again. None: no bound.
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
        """The values that are known among those of `keys`, by one query."""
        if not keys:
            return {}
        return self._attempt(partial(_read, keys=json.dumps(list(keys)))) or {}

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values, in one transaction; what is there already stays as it is.

        Raises TypeError for a value that JSON has no word for, ValueError for nan and inf; nothing is kept then.
        """
        rows = [(key, _encoded(f"the value of {key!r}", value)) for key, value in values.items()]
        if rows:
            self._attempt(partial(_write, rows=rows, max_bytes=self.max_bytes))

    def __len__(self) -> int:
        """The number of entries; 0 where the file cannot be read."""
        return self._attempt(_count) or 0

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of `work` on the file; None, after a warning, if the file does not allow it."""
        with _at_work:
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError) as error:
                self._disconnect()  # the file may be mended, freed or deleted: the next attempt begins anew
                reason, first, self._warned = error, not self._warned, True
            except BaseException:
                self._disconnect()  # which takes back what was half done
                raise
        if first:
            logger.warning(
                f"cache {self.path}: {type(reason).__name__}: {reason}. The run goes on, and works out again what it "
                "cannot find there or keep. To mend it, make room or delete the file, or name another folder."
            )
        return None

    def _connected(self) -> sqlite3.Connection:
        # One for each process, since SQLite forbids its use in a fork of the one that opened it. There it is let go,
        # which harms nobody: it was idle when the process forked (`_at_work`). Within a process, threads take turns.
        if self._connection is None or self._process != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            patience = _PATIENCE_AFTER_FAILURE if self._warned else _PATIENCE
            self._process = os.getpid()
            self._connection = sqlite3.connect(
                self.path,
                timeout=patience,
                isolation_level=None,  # `_write` says where its transaction begins
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
    # The journal stays SQLite's default, the rollback journal. A write-ahead log would save 1 ms of the 1.3 ms that a
    # put of 64 entries takes, and nothing of a put of 8,192; but its index is memory shared by the processes, which a
    # network folder cannot give. NORMAL is enough: a killed process loses nothing even without any sync, and after a
    # power loss the file is still whole.
    connection.execute("PRAGMA synchronous = NORMAL")
    # A look first: so a file that may only be read is read, and nobody waits for writers in order to open it.
    if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'entries'").fetchone() == (0,):
        # The rowid is the order in which entries came: it is one more than the greatest there is.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        connection.execute("COMMIT")


def _read(connection: sqlite3.Connection, keys: str) -> dict[str, Any]:
    query = "SELECT key, value FROM entries WHERE key IN (SELECT value FROM json_each(?))"
    rows = connection.execute(query, (keys,)).fetchall()
    try:
        return {key: json.loads(value) for key, value in rows}
    except (TypeError, ValueError) as error:  # a table of another program, or bytes that have changed on the disk
        raise sqlite3.DatabaseError(f"a value in the table 'entries' is no JSON: {error}") from error


def _write(connection: sqlite3.Connection, rows: Sequence[tuple[str, bytes]], max_bytes: int | None) -> None:
    # IMMEDIATE, so that a writer waits for another before it has read anything. Two that have read and then want to
    # write wait for each other, and SQLite ends that at once with "database is locked", whatever the timeout.
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
    """Take out entries, first put first, until at most `target` bytes are in use or none is left."""
    while (used := _used_bytes(connection)) > target:
        oldest, newest = connection.execute("SELECT min(rowid), max(rowid) FROM entries").fetchone()
        if oldest is None:
            return
        # As many as would do if all had one size. It takes a few rounds, since the index of the keys, in which they
        # stand at random, frees a page only when most of its entries have gone.
        share = math.ceil((newest - oldest + 1) * (used - target) / used)
        connection.execute("DELETE FROM entries WHERE rowid < ?", (oldest + share,))


def _encoded(name: str, value: Any, *, sort_keys: bool = False) -> bytes:
    """A value as JSON, such that different values have different bytes."""
    _require_json(name, value)
    # Not in ASCII: there, two surrogates that stand alone look the same as the character that a pair of them means.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _require_json(name: str, value: Any) -> None:
    """Raise TypeError or ValueError for what JSON cannot express, dict keys included, which `json` would convert."""
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
