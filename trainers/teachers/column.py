"""Several teachers: the value of a row in one column names the teacher that scores it.

    teachers: {math: Qwen/Qwen2.5-Math-7B-Instruct, code: "http://127.0.0.1:8001/v1#coder"}
    teacher_column: domain

    the row:  {"domain": "code", "prompt": ...}    its teacher: the server

A teacher that several values name is loaded once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlkd.engines import from_environment
from rlkd.errors import UsageError
from trainers.common.model_card import masked


def has_column(dataset: Any, part: str, column: str, setting: str) -> bool:
    """Whether a dataset has a column; False where its columns are not known.

    Raises `UsageError` where it has others only; `part` is its name there, `setting` the key that names the column.
    """
    names = getattr(dataset, "column_names", None)
    if dataset is None or names is None:
        return False
    if column not in names:
        raise UsageError(
            f"{part} has no column {column!r}, which {setting} names; the columns are {', '.join(names)}. Name one of "
            f"them, or rename with --columns"
        )
    return True


@dataclass(frozen=True)
class TeacherColumn:
    """The column and the teacher of each of its values: a model, its name, an engine's spec or a cache's folder."""

    column: str
    by_value: Mapping[str, Any]

    @cached_property
    def teachers(self) -> list[Any]:
        """Each teacher once, in order; a teacher's number is its place here."""
        return distinct_teachers(self.by_value)

    def values(self, number: int) -> list[str]:
        """The values whose rows the teacher of this number scores."""
        return [value for value, teacher in self.by_value.items() if _same(teacher, self.teachers[number])]

    def numbers(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """The number of each row's teacher; raises `UsageError` for a row without one."""
        return [self._number(row, f"the row {row.get('id')!r}") for row in rows]

    def check(self, dataset: Any, part: str) -> None:
        """Raise `UsageError` for a dataset without the column, or with a row that no teacher scores.

        The rows of a stream are checked as they come, by `numbers`.
        """
        if has_column(dataset, part, self.column, "teacher_column") and hasattr(dataset, "__len__"):
            shown = dataset.select_columns([name for name in dataset.column_names if name in (self.column, "id")])
            for index, row in enumerate(shown):
                own = f" (id {row['id']!r})" if "id" in row else ""
                self._number(row, f"{part}: row {index}{own}")

    def own_rows(self, dataset: Any, number: int) -> Any:
        """The rows of an indexed dataset that the teacher of this number scores."""
        wanted = set(self.values(number))
        return dataset.select([i for i, value in enumerate(dataset[self.column]) if str(value) in wanted])

    def _number(self, row: Mapping[str, Any], place: str) -> int:
        value = row.get(self.column)
        teacher = self.by_value.get(str(value))
        if value is None or teacher is None:
            raise UsageError(
                f"{place} has {value!r} in the column {self.column!r} (teacher_column), and teachers has "
                f"{', '.join(map(repr, self.by_value))}. Add a teacher for it, or leave such rows out"
            )
        return next(number for number, one in enumerate(self.teachers) if _same(one, teacher))


@dataclass
class TeachersByColumn:
    """Mixin for a config: the settings `teachers` and `teacher_column`."""

    teachers: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers in place of teacher: that of each value of teacher_column; on the command line "
            'JSON, such as \'{"math": "MODEL", "code": "http://HOST:PORT/v1#MODEL"}\'.'
        },
    )
    teacher_column: str | None = field(
        default=None, metadata={"help": "Column whose value says which of the teachers scores a row."}
    )

    def read_teachers(self, teacher: str | None) -> None:
        """Check the settings and read addresses from the environment; raises `UsageError`. `teacher`: the only one."""
        if isinstance(self.teachers, str):
            try:
                self.teachers = json.loads(self.teachers)
            except ValueError as error:
                raise UsageError(f"teachers: {masked(self.teachers)!r} is no JSON object ({error})") from error
        if self.teachers is None:
            if self.teacher_column is not None:
                raise UsageError(f"teacher_column {self.teacher_column!r} without teachers: set both, or none")
            return
        if not isinstance(self.teachers, dict) or not self.teachers:
            raise UsageError(f"teachers: expected a mapping from values to teachers, found {masked(self.teachers)!r}")
        if teacher is not None:
            raise UsageError("teacher and teachers are both set. Leave teacher out, or teachers and teacher_column")
        if self.teacher_column is None:
            raise UsageError("teachers without teacher_column: set it to the column whose values teachers lists")
        for value, name in self.teachers.items():
            if not isinstance(name, str) or not name.strip() or name == "self":
                raise UsageError(
                    f"teachers: {value!r} has {masked(name)!r}; expected a model, http://HOST:PORT/v1#MODEL, or the "
                    f"folder of a teacher cache"
                )
        self.teachers = {str(value): from_environment(name, "a teacher") for value, name in self.teachers.items()}

    @property
    def columns_read(self) -> list[str]:
        """The columns of the data that say which teacher scores a row."""
        return [] if self.teacher_column is None else [self.teacher_column]

    def column_of(self, teacher: Any) -> TeacherColumn | None:
        """The teachers by the column's values where `teacher` is a mapping; None for one teacher."""
        if not isinstance(teacher, Mapping):
            return None
        if self.teacher_column is None:
            raise UsageError("several teachers without teacher_column: set it to the column that says whose a row is")
        return TeacherColumn(self.teacher_column, {str(value): one for value, one in teacher.items()})


def distinct_teachers(teacher: Any) -> list[Any]:
    """The teachers of a run, each once: of a mapping from values to teachers, or the only one."""
    if not isinstance(teacher, Mapping):
        return [teacher]
    found: list[Any] = []
    for one in teacher.values():
        if not any(_same(one, other) for other in found):
            found.append(one)
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two teachers are one: the same object, or names that are equal."""
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)
