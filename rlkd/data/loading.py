"""Load rows from an embedded sample, a file or the hub, and make the dataset that trainers take."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkd.data.correctness import trace_verdicts
from rlkd.data.files import KINDS, Record, file_records, file_stem, is_file
from rlkd.data.rows import FIELDS, Row, RowError, build_prompt, check_row, listed, shown
from rlkd.data.samples import SAMPLES, embedded_rows, few_shot_examples
from rlkd.errors import UsageError
from rlkd.process import is_first_process

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

WrongRationales = Literal["drop", "keep", "unchecked"]

# Rows whose traces are compared with their answers at a time.
COMPARED_ROWS = 4096

# Flags and nulls in words, as tables have them.
_FLAGS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0", "correct", "right"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0", "incorrect", "wrong"), False),
}
_NULLS = ("", "null", "none", "nan")
_IMAGES = ("image", "images")


def load_rows(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rationales: int | None = None,
    wrong_rationales: WrongRationales = "drop",
    revision: str | None = None,
) -> list[Row]:
    """Load and check rows.

    Args:
        source: an embedded sample, a file (`rlkd.data.files`), or a dataset name on the hub.
        split: of an embedded sample (see `rlkd.data.rows`) or a hub dataset; a file has none, except a JSON document
            that holds rows under this name.
        config: configuration name of a hub dataset.
        columns: our field -> their column, e.g. `{question: problem, rationales: generations}`. Besides the fields of
            a row, `correct` names a list of flags, one per rationale: rationales that are not flagged true are
            dropped, and so are rows that then have none. A row whose flags are null keeps its rationales.
        max_rationales: maximum number of rationales per row, from the first (the RLKD paper: 1).
        wrong_rationales: rationales whose own answer differs from the row's (`rlkd.data.correctness`). `drop` leaves
            them out, and rows that then have none; `keep` only counts them; `unchecked` does not compare. Rationales
            with a flag are not compared, those without a readable answer are kept.
        revision: of a hub dataset, by default the newest.

    A row without an id gets one from source and position; ids that repeat get a suffix, with a warning. Raises
    `RowError` for a malformed row, `UsageError` for a missing source or one without rows.
    """
    # The embedded samples have no wrong rationales.
    compares = wrong_rationales != "unchecked" and source not in SAMPLES
    rows: list[Row] = []
    positions: list[int] = []
    counts: Counter[str] = Counter()
    checked = (
        (position, *_checked_row(record, columns or {}, where))
        for position, (where, record) in enumerate(records(source, split, config, revision))
    )
    while chunk := list(islice(checked, COMPARED_ROWS)):
        brought = [len(row["rationales"]) for _, row, _ in chunk]
        if compares:
            _compare([row for _, row, flagged in chunk if not flagged], wrong_rationales, counts)
        for (position, row, _), number in zip(chunk, brought, strict=True):
            if number and not row["rationales"]:
                counts["rows without another"] += 1
            elif not number and "correct" in (columns or {}):
                counts["rows without a flag"] += 1
            else:
                for name in ("rationales", "structures"):
                    row[name] = row[name][:max_rationales]
                rows.append(row)
                positions.append(position)
    if (left_out := counts["rows without a flag"]) and is_first_process():
        logger.warning("%s: left out %d rows without a rationale flagged as correct", source, left_out)
    _report(source, counts, wrong_rationales)
    if not rows:
        raise UsageError(f"{source} (split {split!r}) has no rows{' left' if counts else ''}")
    _make_ids(rows, positions, source)
    return rows


def _checked_row(record: Mapping[str, Any], columns: Mapping[str, str], where: str) -> tuple[Row, bool]:
    row, flagged = _rename(record, columns, where)
    return check_row(row, where), flagged


def _compare(rows: Sequence[Row], wrong_rationales: WrongRationales, counts: Counter[str]) -> None:
    """Count the rationales that are right and wrong; `drop` removes the wrong ones with their structures."""
    rows = [row for row in rows if row["answer"] is not None and row["rationales"]]
    verdicts = iter(
        trace_verdicts(
            [(text, row["answer"]) for row in rows for text in row["rationales"]],
            options=[bool(row.get("choices") or row.get("options")) for row in rows for _ in row["rationales"]],
        )
    )
    for row in rows:
        own = list(islice(verdicts, len(row["rationales"])))
        counts.update({"right": own.count(True), "wrong": own.count(False), "unreadable": own.count(None)})
        if wrong_rationales == "drop" and False in own:
            for name in ("structures", "rationales"):
                if len(row[name]) == len(own):
                    row[name] = [value for value, verdict in zip(row[name], own, strict=True) if verdict is not False]


def _report(source: str, counts: Counter[str], wrong_rationales: WrongRationales) -> None:
    """One line on the traces that were compared; a warning where some are wrong."""
    right, wrong, unreadable = counts["right"], counts["wrong"], counts["unreadable"]
    if not right + wrong + unreadable or not is_first_process():
        return
    line = (
        f"{source}: {right + wrong + unreadable:,} traces: {right:,} right, {wrong:,} wrong, "
        f"{unreadable:,} without a readable answer"
    )
    if wrong and wrong_rationales == "drop":
        alone = counts["rows without another"]
        line += f". The wrong ones are left out{f', and {alone:,} rows that have no other' if alone else ''}"
    elif wrong:
        line += ". The wrong ones are kept"
    logger.log(logging.WARNING if wrong or unreadable else logging.INFO, "%s", line)


def _make_ids(rows: Sequence[Row], positions: Sequence[int], source: str) -> None:
    """Give each row without an id one that no row has, and rows with the id of an earlier one another."""
    used = {row["id"] for row in rows if "id" in row}
    times: Counter[str] = Counter()
    repeated: list[str] = []
    given: set[str] = set()
    for position, row in zip(positions, rows, strict=True):
        name = row.get("id", f"{file_stem(source)}-{position}")
        if name in given or ("id" not in row and name in used):
            if "id" in row:
                repeated.append(name)
            times[name] += 1
            while (other := f"{name}-{times[name] + 1}") in used:
                times[name] += 1
            name = other
        given.add(name)
        used.add(name)
        row["id"] = name
    if repeated and is_first_process():
        logger.warning(
            "%s: %d rows have the id of an earlier row, the first of them %r; a number is added to theirs",
            source,
            len(repeated),
            repeated[0],
        )


def to_dataset(rows: Sequence[Row], *, system_prompt: str | None = None, examples: int = 0) -> Dataset:
    """Make the `datasets.Dataset` that trainers take; rows without a `prompt` get one made from `question`.

    `system_prompt` and `examples` (the number of few-shot examples, as turns of the conversation) apply to those rows.
    Every row gets the same keys, because TRL reads them from the first row.
    """
    import pyarrow
    from datasets import Dataset

    pairs = few_shot_examples(examples)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    # A column of images without an image would make trainers expect some.
    keys = [key for key in keys if key not in _IMAGES or any(map(_has_image, (row.get(key) for row in rows)))]
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
        raise _mixed_types(made, error) from error


def _has_image(value: Any) -> bool:
    if isinstance(value, Mapping):  # the bytes and the path of an image, one of them null
        value = list(value.values())
    if isinstance(value, list):
        return any(map(_has_image, value))
    return bool(value) if isinstance(value, str | bytes) else value is not None


def _mixed_types(rows: Sequence[Row], error: Exception) -> RowError:
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


def records(source: str, split: str, config: str | None, revision: str | None = None) -> Iterator[Record]:
    """The unchecked records of a source, each with its location for error messages."""
    if source in SAMPLES:
        for row in embedded_rows(source, split):
            yield f"{source}, row {row['id']}", row
        return
    if is_file(source):
        yield from file_records(Path(source).expanduser(), split)
        return
    import datasets

    try:
        loaded = datasets.load_dataset(source, config, split=split, revision=revision)
    except Exception as error:
        raise UsageError(
            f"dataset {source!r} (config {config!r}, split {split!r}) cannot be loaded: {error}. "
            f"Give a dataset of the hub, a file ({', '.join(KINDS)}), or one of {', '.join(SAMPLES)}."
        ) from error
    for position, record in enumerate(loaded):
        yield f"{source}, split {split}, row {position}", record


def _rename(record: Mapping[str, Any], columns: Mapping[str, str], where: str) -> tuple[Row, bool]:
    """A record under the names of our fields, without the rationales flagged wrong, and whether it has flags."""
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
    if "correct" not in columns or _is_null(flags := row.pop("correct")):
        return row, False
    flags = listed(flags, bool | int | float | str | None)
    row["rationales"] = listed(row.get("rationales"), str | None)
    traces = [row["rationales"]] if isinstance(row["rationales"], str) else row["rationales"]
    if not isinstance(flags, list):
        flags = [flags]
    if len(flags) != len(traces):
        raise RowError(f"{where}, field 'correct': expected {len(traces)} flags, found {shown(flags)}")
    right = [_flag(flag, where) for flag in flags]
    row["rationales"] = traces
    for name in ("rationales", "structures"):
        if isinstance(row.get(name), list) and len(row[name]) == len(right):
            row[name] = [value for value, flag in zip(row[name], right, strict=True) if flag]
    return row, True


def _is_null(flag: Any) -> bool:
    """Whether a flag is missing: null, the NaN of a column of floats, or a word for them."""
    return flag is None or (isinstance(flag, str | float) and str(flag).strip().casefold() in _NULLS)


def _flag(flag: Any, where: str) -> bool:
    """Whether a flag says that its rationale is right; null does not."""
    if _is_null(flag):
        return False
    found = _FLAGS.get(str(flag).strip().casefold())
    if found is None:
        raise RowError(f"{where}, field 'correct': expected true or false for each rationale, found {shown(flag)}")
    return found
