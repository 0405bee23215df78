"""Read the records of a file: JSON Lines or a JSON document, CSV, TSV, Parquet, Arrow; plain or compressed.

The suffix names the kind, `rows.jsonl.gz` is JSON Lines compressed by gzip. A JSON document is an array of objects,
one object, or an object that has the rows under `data`, `rows` or the name of the split. Cells of CSV and TSV are
texts; an empty cell is a missing value.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlkd.data.gold import WrittenFloat
from rlkd.data.rows import RowError, json_lines, raise_it, shown
from rlkd.errors import UsageError

JSON = (".jsonl", ".ndjson", ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
ARROW = (".parquet", ".arrow", ".feather")
KINDS = (*JSON, *TABLES, *ARROW)
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BLANK = b"\xef\xbb\xbf \t\r\n"
# Rows of an Arrow file that are Python objects at the same time.
BATCH = 256

Located = tuple[str, Mapping[str, Any]]
OnError = Callable[[RowError], None]


def file_kind(path: Path) -> tuple[str, str]:
    """The kind of a file and its compression by the suffixes of its name, each "" if not one that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""
    return ("", packed) if packed and kind in ARROW else (kind, packed)


def file_stem(source: str) -> str:
    """The name of a source without the suffixes of its kind and compression, for the ids of its rows."""
    path = Path(source)
    kind, packed = file_kind(path)
    return path.name[: len(path.name) - len(kind) - len(packed)] if kind else path.stem


def file_records(
    path: Path, split: str, names: Collection[str] | None = None, on_error: OnError = raise_it
) -> Iterator[Located]:
    """The records of a file, each with its location for error messages.

    Args:
        path: the file.
        split: key of the rows in a JSON document.
        names: columns of an Arrow file to read; None: all.
        on_error: gets a malformed record that can be skipped, and raises unless it is to be skipped.

    Raises `RowError` that names the place of a malformed record, `UsageError` for a damaged file.
    """
    kind, packed = file_kind(path)
    try:
        if kind in ARROW:
            yield from _arrow_records(path, kind, names)
            return
        with COMPRESSED[packed](path, "rb") if packed else path.open("rb") as file:
            if kind in TABLES:
                yield from _table_records(file, path, TABLES[kind], on_error)
            else:
                yield from _json_records(file, path, split, on_error)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read{f' as {packed}' if packed else ''}: {error}") from error


def _json_records(file: IO[bytes], path: Path, split: str, on_error: OnError) -> Iterator[Located]:
    """JSON Lines if the first line is an object of its own, else one document, or lines of which the first is bad."""
    head: list[bytes] = []
    for line in file:
        head.append(line)
        if line.strip(_BLANK):
            break
    else:
        return
    first = _object(head[-1])
    # An object with the rows inside is a document, even on one line.
    if first is not None and _inner(first, split) is None:
        yield from json_lines(_chain(head, file), str(path), parse_float=WrittenFloat, on_error=on_error)
        return
    content = b"".join(head) + file.read()
    try:
        values = _values(content, path)
    except RowError:
        lines = io.BytesIO(content).readlines()
        if content.lstrip(_BLANK).startswith(b"[") or all(_object(line) is None for line in lines):
            raise
        yield from json_lines(lines, str(path), parse_float=WrittenFloat, on_error=on_error)
        return
    if len(values) == 1 and isinstance(values[0], dict) and (inner := _inner(values[0], split)) is not None:
        values = inner
    for position, value in enumerate(values):
        where = f"{path}, row {position}"
        if isinstance(value, dict):
            yield where, value
        else:
            on_error(RowError(f"{where}: found {shown(value)}, expected a JSON object"))


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is anything else."""
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None


def _chain(head: list[bytes], file: IO[bytes]) -> Iterator[bytes]:
    yield from head
    yield from file


def _values(content: bytes, path: Path) -> list[Any]:
    """The elements of an array, or objects in a row, each over any number of lines."""
    decoder = json.JSONDecoder(parse_float=WrittenFloat)
    values: list[Any] = []
    try:
        text = content.decode("utf-8-sig")
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            value, position = decoder.raw_decode(text, position)
            values += value if isinstance(value, list) else [value]
    except json.JSONDecodeError as error:
        raise RowError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); expected one object per "
            f"line, or an array of objects"
        ) from error
    except ValueError as error:
        raise RowError(f"{path}: not JSON ({error})") from error
    return values


def _inner(value: Mapping[str, Any], split: str) -> list[Any] | None:
    """The rows inside an object that is none itself: those under the name of the split, or under `data` or `rows`."""
    if "question" in value or "prompt" in value:
        return None
    only_lists = all(isinstance(rows, list) for rows in value.values())
    for key in (split, "data", "rows"):
        rows = value.get(key)
        if isinstance(rows, list) and (rows or only_lists) and all(isinstance(row, dict) for row in rows):
            return rows
    return None


def _table_records(file: IO[bytes], path: Path, delimiter: str, on_error: OnError) -> Iterator[Located]:
    csv.field_size_limit(2**31 - 1)  # the default is shorter than many traces
    lines = _Lines(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    position = -1
    try:
        header = next(reader, [])
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise RowError(f"{path}: the column {twice[0]!r} occurs twice")
        while (cells := _cells(reader, lines, delimiter)) is not None:
            if not cells:
                continue
            position += 1
            where = f"{path}, row {position} (line {reader.line_num})"
            if len(cells) != len(header):
                on_error(RowError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns"))
                continue
            yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise RowError(f"{path}, line {reader.line_num + 1}: {error}") from error


class _Lines:
    """The lines of a text; remembers the last one, how many there were, and whether more were asked for."""

    def __init__(self, text: Iterable[str]):
        self._text = iter(text)
        self.last = ""
        self.number = 0
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.ended = True
        self.last = next(self._text)
        self.ended = False
        self.number += 1
        return self.last


def _cells(reader: Iterator[list[str]], lines: _Lines, delimiter: str) -> list[str] | None:
    """The cells of the next row, None behind the last.

    Programs that write TSV often quote nothing: a line with words behind a quotation (`"Yes" or "no"?`) is split at
    its tabs, unless the quotation began on an earlier line.
    """
    before = lines.number
    try:
        return next(reader, None)
    except csv.Error:
        if delimiter != "\t" or lines.number != before + 1 or lines.ended:
            raise
        return lines.last.rstrip("\r\n").split(delimiter)


def _arrow_records(path: Path, kind: str, names: Collection[str] | None) -> Iterator[Located]:
    import pyarrow
    import pyarrow.dataset

    try:
        if kind == ".parquet":
            dataset = pyarrow.dataset.dataset(path, format="parquet")
            columns = _wanted(dataset.schema.names, names)
            batches = dataset.to_batches(batch_size=BATCH, columns=columns, batch_readahead=1, fragment_readahead=1)
        else:
            batches = _ipc_batches(path)
        position = 0
        for batch in batches:
            for record in batch.select(_wanted(batch.schema.names, names)).to_pylist():
                yield f"{path}, row {position}", record
                position += 1
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _wanted(there: list[str], names: Collection[str] | None) -> list[str]:
    return [name for name in there if names is None or name in names]


def _ipc_batches(path: Path) -> Iterator[Any]:
    """The batches of an Arrow file, or of an Arrow stream as `datasets` writes it."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        for batch in batches:
            for start in range(0, len(batch), BATCH):
                yield batch.slice(start, BATCH)
