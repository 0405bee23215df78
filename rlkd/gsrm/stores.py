"""Structures and verdicts on disk, in files that threads, processes and runs share (`rlkd.cache`).

Only results are stored, never errors, and the first value of a key stays.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlkd.cache import Cache, cache_key
from rlkd.gsrm.prompts import FieldQuestion, verdict_request
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.structure import Structure

K = TypeVar("K")
V = TypeVar("V")


class _Store(ABC, Generic[K, V]):
    def __init__(self, path: Path):
        self.cache = Cache(Path(path))

    @abstractmethod
    def _key(self, model: str, item: K) -> str: ...

    @abstractmethod
    def _to_json(self, value: V) -> Any: ...

    @abstractmethod
    def _from_json(self, value: Any) -> V: ...

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

    def _key(self, model: str, item: ReasoningTrace) -> str:
        return cache_key("structure", model, item.question, item.text, "teacher" if item.teacher else "student")

    def _to_json(self, value: Structure) -> Any:
        return value.to_list()

    def _from_json(self, value: Any) -> Structure:
        return Structure.from_list(value)


class VerdictStore(_Store[FieldQuestion, float]):
    """Log-odds of yes against no; `model` is the engine's name. The key holds the whole prompt, wording included.

    Log-odds and not verdicts, so that another threshold needs no new request. Raises ValueError for nan.
    """

    def _key(self, model: str, item: FieldQuestion) -> str:
        return cache_key("verdict", model, verdict_request(item))

    def _to_json(self, value: float) -> Any:
        # Infinite where a model rules out one of the answers; JSON has no such number.
        return str(value) if math.isinf(value) else value

    def _from_json(self, value: Any) -> float:
        return float(value)
