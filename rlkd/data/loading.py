"""Load rows from an embedded sample, a file or the hub, and make the dataset that trainers take."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.data.rows import FIELDS, Row, RowError, build_prompt, check_row, json_records, shown
from rlkd.data.samples import SAMPLES, embedded_rows, few_shot_examples
from rlkd.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_rows(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rationales: int | None = None,
) -> list[Row]:
    """Load and check rows.

    Args:
        source: an embedded sample, a `.jsonl`/`.json`/`.parquet` file, or a dataset name on the hub.
        split: of an embedded sample (see `rlkd.data.rows`) or a hub dataset; a file has none.
        config: configuration name of a hub dataset.
        columns: our field -> their column, e.g. `{question: problem, rationales: generations}`. Besides the fields of
            a row, `correct` names a list of flags, one per rationale: rationales flagged false are dropped, and so are
            rows that then have none.
        max_rationales: maximum number of rationales per row, from the first (the RLKD paper: 1).

    Raises `RowError` for a malformed row, `UsageError` for a missing source or one without rows.
    """
    rows: list[Row] = []
    without = 0
    for where, record in records(source, split, config):
        row = check_row(_rename(record, columns or {}, where), where)
        if "correct" in (columns or {}) and not row["rationales"]:
            without += 1
            continue
        row.setdefault("id", f"{Path(source).stem}-{len(rows)}")
        if max_rationales is not None:
            row["rationales"] = row["rationales"][:max_rationales]
            row["structures"] = row["structures"][:max_rationales]
        rows.append(row)
    if without:
        logger.warning("%s: left out %d rows without a rationale flagged as correct", source, without)
    if not rows:
        raise UsageError(f"{source} (split {split!r}) has no rows")
    _check_unique_ids(rows, source)
    return rows


def to_dataset(rows: Sequence[Row], *, system_prompt: str | None = None, examples: int = 0) -> Dataset:
    """Make the `datasets.Dataset` that trainers take; rows without a `prompt` get one made from `question`.

    `system_prompt` and `examples` (the number of few-shot examples, as turns of the conversation) apply to those rows.
    Every row gets the same keys, because TRL reads them from the first row.
    """
    import pyarrow
    from datasets import Dataset

    pairs = few_shot_examples(examples)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    made = []
    # A column contains texts or conversations, not both.
    form = type(rows[0].get("prompt") or []) if rows else list
    for row in rows:
        if not isinstance(row.get("prompt") or [], form):
            raise RowError(
                f"row {row.get('id')!r}, field 'prompt': found {shown(row.get('prompt'))}, but the first row has a "
                f"{'text' if form is str else 'list of messages'}; all prompts must have the same type"
            )
        prompt = row.get("prompt") or build_prompt(row["question"], system_prompt, pairs)
        made.append({"prompt": prompt, **{key: row.get(key) for key in keys if key != "prompt"}})
    try:
        return Dataset.from_list(made)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise RowError(f"the rows do not fit one table: a field has values of different types: {error}") from error


def records(source: str, split: str, config: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The unchecked records of a source, each with its location for error messages."""
    if source in SAMPLES:
        for row in embedded_rows(source, split):
            yield f"{source}, row {row['id']}", row
        return
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise UsageError(f"there is no file {path.absolute()}")
        yield from _parquet_records(path) if path.suffix == ".parquet" else json_records(path)
        return
    import datasets

    try:
        loaded = datasets.load_dataset(source, config, split=split)
    except Exception as error:
        raise UsageError(
            f"dataset {source!r} (config {config!r}, split {split!r}) cannot be loaded: {error}. "
            f"Give a dataset of the hub, a .jsonl or .parquet file, or one of {', '.join(SAMPLES)}."
        ) from error
    for position, record in enumerate(loaded):
        yield f"{source}, split {split}, row {position}", record


def _parquet_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet

    for position, record in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
        yield f"{path}, row {position}", record


def _rename(record: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Row:
    unknown = set(columns) - {*FIELDS, "correct"}
    if unknown:
        known = ", ".join((*FIELDS, "correct"))
        raise UsageError(f"columns: {sorted(unknown)[0]!r} is not a field of a row. Fields: {known}.")
    for field, column in columns.items():
        if column not in record:
            raise RowError(f"{where}: no column {column!r} (for {field!r}); there are {', '.join(record)}")
    renamed = {field: record[column] for field, column in columns.items()}
    taken = set(columns.values())
    row = {key: value for key, value in record.items() if key not in taken and key not in renamed} | renamed
    flags = row.pop("correct", None) if "correct" in columns else None
    if flags is not None:
        traces = row.get("rationales") or []
        if not isinstance(flags, list) or len(flags) != len(traces):
            raise RowError(f"{where}, field 'correct': expected {len(traces)} flags, found {shown(flags)}")
        for name in ("rationales", "structures"):
            if isinstance(row.get(name), list) and len(row[name]) == len(flags):
                row[name] = [value for value, flag in zip(row[name], flags, strict=True) if flag]
    return row


def _check_unique_ids(rows: Sequence[Row], source: str) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise RowError(f"{source}: the id {row['id']!r} occurs twice; ids must be unique")
        seen.add(row["id"])
