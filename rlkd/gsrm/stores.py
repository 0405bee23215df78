"""Structures and verdicts on disk, in files that threads, processes and runs share (`rlkd.cache`).

Only results are stored, never errors, and the first value of a key stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlkd.cache import Cache, cache_key
from rlkd.gsrm.prompts import FieldQuestion, verdict_request
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.structure import Structure

K = TypeVar("K")
V = TypeVar("V")


class _Store(Generic[K, V]):
    def __init__(
        self, path: Path, key: Callable[[str, K], str], to_json: Callable[[V], Any], from_json: Callable[[Any], V]
    ):
        self.cache = Cache(Path(path))
        self._key, self._to_json, self._from_json = key, to_json, from_json

    def get(self, model: str, items: Iterable[K]) -> dict[K, V]:
        """The stored results of a model among those of `items`, by one query."""
        keys = {self._key(model, item): item for item in items}
        return {keys[key]: self._from_json(value) for key, value in self.cache.get(list(keys)).items()}

    def put(self, model: str, values: Mapping[K, V]) -> None:
        """Store results of a model, in one transaction."""
        self.cache.put({self._key(model, item): self._to_json(value) for item, value in values.items()})


class StructureStore(_Store[ReasoningTrace, Structure]):
    """Structures of traces; `model` is the decomposer's fingerprint.

    A teacher's trace and a student's have different keys: a decomposer may accept a truncated one from a student only.
    """

    def __init__(self, path: Path):
        super().__init__(path, _structure_key, Structure.to_list, Structure.from_list)


class VerdictStore(_Store[FieldQuestion, float]):
    """Log-odds of yes against no; `model` is the engine's name. The key holds the whole prompt, wording included.

    Log-odds and not verdicts, so that another threshold needs no new request. Raises ValueError for nan.
    """

    def __init__(self, path: Path):
        super().__init__(path, _verdict_key, _finite, float)


def _structure_key(model: str, trace: ReasoningTrace) -> str:
    return cache_key("structure", model, trace.question, trace.text, "teacher" if trace.teacher else "student")


def _verdict_key(model: str, question: FieldQuestion) -> str:
    return cache_key("verdict", model, verdict_request(question))


def _finite(log_odds: float) -> float | str:
    # Infinite where a model rules out one of the answers; JSON has no such number.
    return str(log_odds) if math.isinf(log_odds) else log_odds
