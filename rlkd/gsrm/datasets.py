"""Reads questions with right and wrong solutions, for the AUROC table of an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlkd.data.rows import RowError, json_records
from rlkd.errors import UsageError


@dataclass(frozen=True, slots=True)
class RatedSolution:
    """One solution of a question: its author, and whether its final answer is right."""

    source: str
    text: str
    correct: bool


@dataclass(frozen=True, slots=True)
class RatedQuestion:
    """A question with the teacher's trace and the solutions to be told apart."""

    question: str
    teacher: str
    solutions: tuple[RatedSolution, ...]


def load_rationales(
    path: Path, *, teacher: str = "human", exclude: Collection[str] = ("socratic",), first: int = 0, limit: int | None
) -> list[RatedQuestion]:
    """Read a JSONL file of `{question, rationales: [{source, text, correct}]}` rows; other keys are ignored.

    `teacher`: source of the teacher's traces; it and the sources in `exclude` are not compared. Rows without that
    source, or without another one, are left out. `first` and `limit` choose rows by their index.

    Raises `RowError` for a row that does not fit, `UsageError` where no row is left.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path.absolute()}")
    rated = []
    for location, record in islice(json_records(path), first, None if limit is None else first + limit):
        _check(location, record, question=str, rationales=list)
        solutions = []
        for i, item in enumerate(record["rationales"]):
            _check(f"{location}, rationale {i}", item, source=str, text=str, correct=bool)
            solutions.append(RatedSolution(item["source"], item["text"], item["correct"]))
        teachers = [solution for solution in solutions if solution.source == teacher]
        others = tuple(s for s in solutions if s.source != teacher and s.source not in exclude)
        if teachers and others:
            rated.append(RatedQuestion(record["question"], teachers[0].text, others))
    if not rated:
        raise UsageError(
            f"{path}: no row from index {first} on has a rationale of the source {teacher!r} and one of another source"
        )
    return rated


def _check(location: str, record: Any, **types: type) -> None:
    for name, kind in types.items():
        value = record.get(name) if isinstance(record, Mapping) else record
        if not isinstance(record, Mapping) or not isinstance(value, kind):
            raise RowError(f"{location}, field {name!r}: expected a {kind.__name__}, found {value!r:.80}")
