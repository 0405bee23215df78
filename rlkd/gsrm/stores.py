"""Verdicts of judge models on disk, so that no run asks a question that an earlier one has had answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlkd.cache import Cache, cache_key
from rlkd.engines.base import Message


def verdict_key(engine: str, question: Sequence[Message]) -> str:
    """What a verdict is kept under: the engine's name and the whole question, wording and texts alike.

    So a question that is worded anew in a later version is a new question.
    """
    return cache_key("verdict", engine, list(question))


class VerdictStore:
    """Log-odds of yes against no in a file that threads, processes and runs share (`rlkd.cache`).

    Log-odds and no verdicts: another margin decides anew and asks nothing. Only answers are kept, never failures.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.cache = Cache(self.path)

    def get(self, keys: Sequence[str]) -> dict[str, float]:
        """The log-odds that are known among those of `keys`, by one query."""
        return {key: float(kept) for key, kept in self.cache.get(keys).items()}

    def put(self, log_odds: Mapping[str, float]) -> None:
        """Keep log-odds, in one transaction; what is there already stays as it is. Raises ValueError for nan."""
        # Infinite where a model rules out one of the answers; JSON has no such number, so it is kept as text.
        self.cache.put({key: str(odds) if math.isinf(odds) else odds for key, odds in log_odds.items()})
