"""Verdicts of judge models on disk, so that no run asks a question that an earlier one has had answered."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlkd.engines.base import Message


def verdict_key(engine: str, question: Sequence[Message]) -> str:
    """What a verdict is kept under: the engine's name and the whole question, wording and texts alike.

    So a question that is worded anew in a later version is a new question.
    """
    return hashlib.sha256(json.dumps([engine, list(question)]).encode()).hexdigest()


class VerdictStore:
    """Log-odds of yes against no, one SQLite file that several threads, processes and runs may share.

    Log-odds and no verdicts: another margin decides anew and asks nothing. Only answers are kept, never failures.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._local = threading.local()

    def get(self, keys: Sequence[str]) -> dict[str, float]:
        """The log-odds that are known among those of `keys`, by one query."""
        if not keys:
            return {}
        query = "SELECT key, log_odds FROM verdicts WHERE key IN (SELECT value FROM json_each(?))"
        return dict(self._connection().execute(query, (json.dumps(list(keys)),)))

    def put(self, log_odds: Mapping[str, float]) -> None:
        """Keep log-odds, in one transaction; what is there already stays as it is."""
        if not log_odds:
            return
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", log_odds.items())

    def _connection(self) -> sqlite3.Connection:
        # One for each thread, and none of the parent's in a forked process: SQLite allows neither to be shared.
        if getattr(self._local, "process", None) != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60.0)
            with connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, log_odds REAL NOT NULL)"
                )
            self._local.connection, self._local.process = connection, os.getpid()
        return self._local.connection

    def __reduce__(self) -> tuple[type[VerdictStore], tuple[Path]]:
        return VerdictStore, (self.path,)
