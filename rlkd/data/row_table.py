"""Rows of a large source in a memory-mapped Arrow file instead of Python objects.

    file = TableFile()
    file.add(rows)                 # a part of the rows at a time; the parts may have different columns
    dataset = file.finish()

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


class TableFile:
    """An Arrow file that is written part by part; see the module."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rlkd-rows-")
        self._parts: list[Path] = []

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write further rows; raises `RowError` where the values of a field differ in type."""
        import pyarrow

        if not rows:
            return
        keys = list(dict.fromkeys(key for row in rows for key in row))
        try:
            table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise mixed_types([{key: row.get(key) for key in keys} for row in rows], error) from error
        self._parts.append(self._write(f"part{len(self._parts)}.arrow", table.schema, [table]))

    def finish(self) -> Dataset:
        """All rows as one dataset, with the columns of all parts."""
        import pyarrow
        from datasets import Dataset

        parts = [_mapped(path) for path in self._parts]
        try:
            schema = pyarrow.unify_schemas([part.schema for part in parts], promote_options="permissive")
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise RowError(
                f"the rows do not fit one table: {str(error).rstrip('.')}. Give all values of a field the same type, "
                f"or leave the column out (other_columns names those to read)"
            ) from error
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


def mixed_types(rows: Sequence[Mapping[str, Any]], error: Exception) -> RowError:
    """The error of rows that do not fit one table; names the field and the first row of another type."""
    import pyarrow

    for field in rows[0]:
        known: Any = None
        for row in rows:
            values = [value for value in (known, row[field]) if value is not None]
            try:
                pyarrow.array(values)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
                return RowError(
                    f"row {row.get('id')!r}, field {field!r}: found {shown(row[field])}, but an earlier row has "
                    f"{shown(known)}; all values of a field must have the same type"
                )
            # An empty list fits a list of anything.
            known = known or row[field]
    return RowError(f"the rows do not fit one table: a field has values of different types: {error}")
