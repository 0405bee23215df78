"""Rows of a large source in a memory-mapped Arrow file instead of Python objects.

    file = TableFile()
    file.add(rows)                 # a part of the rows at a time; the parts may have different columns
    dataset = file.finish()

A file holds only what Arrow can hold exactly: no column of numbers and texts, or of 3 and 0.5, which would become 3.0.
`add` refuses such rows, and `take_back` returns those before them.

The operating system drops pages of such a file when memory is short and reads them again when they are needed. The
file lies in the folder for temporary files (TMPDIR) until the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rlkd.data.rows import Row, RowError, shown
from rlkd.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

WAY_OUT = "Give all values of a field the same type, or leave the column out (other_columns names those to read)"

# Rows that are Python objects at the same time, where a table is read in order.
BATCH = 256


class RowTable(Sequence[Row]):
    """Rows whose values lie in a memory-mapped file; a row is made when it is asked for.

    Columns that a row lacks are None. `names`: the ids, which are no column of the file.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]):
        self._dataset = dataset
        self._names = names

    @property
    def columns(self) -> list[str]:
        """The names of all fields."""
        return [*self._dataset.column_names, "id"]

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return {**self._dataset[index], "id": self._names[index]}

    def __iter__(self) -> Iterator[Row]:
        names = iter(self._names)
        for batch in self._dataset.data.to_batches(max_chunksize=BATCH):
            for row in batch.to_pylist():
                yield {**row, "id": next(names)}


class Unstorable(RowError):
    """Arrow cannot hold the values of a column exactly."""

    def __init__(self, column: str, reason: str):
        super().__init__(f"field {column!r}: {reason}. {WAY_OUT}")
        self.column = column
        self.reason = reason


class TableFile:
    """An Arrow file that is written part by part; see the module."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rlkd-rows-")
        self._parts: list[Path] = []
        self._types: dict[str, Any] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write further rows; raises `Unstorable`, and writes none, where Arrow cannot hold a column exactly."""
        import pyarrow

        if not rows:
            return
        keys = dict.fromkeys(key for row in rows for key in row)
        table = pyarrow.table({key: _column(key, [row.get(key) for row in rows]) for key in keys})
        types = {field.name: _joined(field.name, self._types.get(field.name), field.type) for field in table.schema}
        self._parts.append(self._write(f"part{len(self._parts)}.arrow", table.schema, [table]))
        self._types |= types

    def take_back(self) -> list[Row]:
        """The rows so far, as Python objects; ends the file."""
        rows = [row for path in self._parts for row in _mapped(path).to_pylist()]
        self._folder.cleanup()
        return rows

    def finish(self) -> Dataset:
        """All rows as one dataset, with the columns of all parts."""
        import pyarrow
        from datasets import Dataset

        schema = pyarrow.schema(self._types)
        parts = map(_mapped, self._parts)
        aligned = (pyarrow.concat_tables([schema.empty_table(), part], promote_options="permissive") for part in parts)
        path = self._write("rows.arrow", schema, aligned)
        for part in self._parts:
            part.unlink()
        dataset = Dataset.from_file(str(path))
        # The folder lives as long as the dataset and those that are made of it, at most until the process ends.
        _folders.append(self._folder)
        return dataset

    def _write(self, name: str, schema: Any, tables: Any) -> Path:
        import pyarrow

        path = Path(self._folder.name) / name
        try:
            with pyarrow.ipc.new_stream(path, schema) as writer:
                for table in tables:
                    writer.write_table(table, max_chunksize=BATCH)
        except OSError as error:
            raise UsageError(
                f"the rows cannot be stored in {path.parent}: {error}. Name a folder with more space: TMPDIR=FOLDER"
            ) from error
        return path


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _mapped(path: Path) -> Any:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        return pyarrow.ipc.open_stream(source).read_all()


def _unfit() -> tuple[type[Exception], ...]:
    """What pyarrow raises for values that do not fit one column; the last one for integers of more than 64 bits."""
    import pyarrow

    return pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError


def _column(name: str, values: Sequence[Any]) -> Any:
    """The values as an Arrow array; raises `Unstorable` where it would not return the same ones."""
    import pyarrow

    try:
        array = pyarrow.array(values)
    except _unfit() as error:
        large = isinstance(error, OverflowError)
        raise Unstorable(name, "an integer of more than 64 bits" if large else str(error).rstrip(".")) from error
    if "double" in str(array.type) and any(_is_rounded(value, array.type) for value in values):
        raise Unstorable(name, "integers and floats in one column")
    return array


def _is_rounded(value: Any, kind: Any) -> bool:
    """Whether an integer in a value becomes a float in an array of this type."""
    from pyarrow import types

    if value is None or types.is_string(kind):
        return False
    if types.is_list(kind):
        return any(_is_rounded(inner, kind.value_type) for inner in value)
    if types.is_struct(kind):
        return any(_is_rounded(value.get(field.name), field.type) for field in kind)
    return types.is_floating(kind) and isinstance(value, int)


def _joined(name: str, known: Any, kind: Any) -> Any:
    """The type of a column of both types; raises `Unstorable` where values of one of them would change."""
    import pyarrow

    if known is None:
        return kind
    try:
        both = pyarrow.unify_schemas(
            [pyarrow.schema({name: each}) for each in (known, kind)], promote_options="permissive"
        )
    except _unfit() as error:
        raise Unstorable(name, f"{known} and {kind} in one column") from error
    if _changes(known, both.field(0).type) or _changes(kind, both.field(0).type):
        raise Unstorable(name, f"{known} and {kind} in one column")
    return both.field(0).type


def _changes(kind: Any, joined: Any) -> bool:
    """Whether values of a type change in a joined one; nulls and fields that are missing do not."""
    from pyarrow import types

    if types.is_null(kind) or kind == joined:
        return False
    if types.is_list(kind) and types.is_list(joined):
        return _changes(kind.value_type, joined.value_type)
    if types.is_struct(kind) and types.is_struct(joined):
        return any(_changes(field.type, joined.field(field.name).type) for field in kind)
    return True


def mixed_types(rows: Sequence[Mapping[str, Any]], error: Exception) -> RowError:
    """The error of rows that do not fit one table; names the field and the first row of another type."""
    import pyarrow

    for field in rows[0]:
        known: Any = None
        for row in rows:
            value = row[field]
            try:
                pyarrow.array([each for each in (known, value) if each is not None])
            except OverflowError:
                return RowError(
                    f"row {row.get('id')!r}, field {field!r}: found {shown(value)}, expected integers of at most 64 "
                    f"bits. Write it as text, or leave the column out (other_columns names those to read)"
                )
            except _unfit():
                if known is None:  # such as an image, which datasets converts
                    break
                return RowError(
                    f"row {row.get('id')!r}, field {field!r}: found {shown(value)}, but an earlier row has "
                    f"{shown(known)}; all values of a field must have the same type. Mend the row, or leave the "
                    f"column out (other_columns names those to read)"
                )
            # An empty list fits a list of anything.
            known = known or value
    return RowError(f"the rows do not fit one table: a field has values of different types: {error}. {WAY_OUT}")
