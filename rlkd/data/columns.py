"""A record's columns under the names of a row's fields: renamed, traces by their flags, conversations taken apart."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from rlkd.data.pass_rates import PASS_RATE, SAMPLES
from rlkd.data.per_rationale import keep_rationales
from rlkd.data.rows import FIELDS, Row, RowError, listed, shown
from rlkd.errors import UsageError

# What `columns` may name besides the fields of a row, and columns that decide how a field is read.
OTHER_FIELDS = ("correct", "messages")
READ_BESIDE = ("messages", "choices", "options", PASS_RATE, SAMPLES)

# Flags and nulls in words, as tables have them.
_FLAGS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0", "correct", "right"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0", "incorrect", "wrong"), False),
}
_NULLS = ("", "null", "none", "nan")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise `UsageError` for a key of `columns` that is no field of a row."""
    known = (*FIELDS, *OTHER_FIELDS)
    for name, column in columns.items():
        if name not in known:
            raise UsageError(
                f"columns: {name!r} is not a field of a row. Fields: {', '.join(known)}.{_near(name, known)}"
            )
        if not isinstance(column, str):
            raise UsageError(f"columns: {name}: expected the name of a column, found {shown(column)}")


def columns_to_read(columns: Mapping[str, str], others: Collection[str] | None) -> set[str] | None:
    """The names of the columns to read: those of the fields, and `others`; None, for all, without `others`."""
    if others is None:
        return None
    own = {field for field in FIELDS if field not in columns}
    return {*own, *columns.values(), *READ_BESIDE, *others}


def renamed(
    record: Mapping[str, Any], columns: Mapping[str, str], aligned: Collection[str], where: str
) -> tuple[Row, bool]:
    """A record under the names of our fields, without the traces flagged wrong, and whether it has flags.

    `columns`: our field -> its column; not of a record with measured pass rates, which has our names. `aligned`:
    columns with an entry for each rationale; it goes with its rationale. Raises `RowError`.
    """
    if SAMPLES in record:
        columns = {}
    for field, column in columns.items():
        if column not in record:
            near = _near(column, record)
            raise RowError(f"{where}: no column {column!r} (for {field!r}); there are {', '.join(record)}.{near}")
    found = {field: record[column] for field, column in columns.items()}
    taken = set(columns.values())
    row = {key: value for key, value in record.items() if key not in taken and key not in found} | found
    if row.get("prompt") is None and row.get("question") is None and row.get("messages") is not None:
        _take_apart(row, where)
    if "correct" not in columns or _is_null(flags := row.pop("correct")):
        return row, False
    _drop_flagged(row, flags, aligned, where)
    return row, True


def _near(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _take_apart(row: Row, where: str) -> None:
    """Make `prompt` of the messages, and `rationales` of the assistant's message at their end.

    A row with rationales of its own keeps these.
    """
    messages = listed(row.pop("messages"), dict)
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError(f"{where}, field 'messages': expected a list of messages, found {shown(messages)}")
    if messages and messages[-1].get("role") == "assistant":
        *messages, last = messages
        if not row.get("rationales") and last.get("content"):
            row["rationales"] = last["content"]
    row["prompt"] = messages


def _drop_flagged(row: Row, flags: Any, aligned: Collection[str], where: str) -> None:
    flags = listed(flags, bool | int | float | str | None)
    row["rationales"] = listed(row.get("rationales"), str | None)
    traces = [row["rationales"]] if isinstance(row["rationales"], str) else row["rationales"]
    if not isinstance(flags, list):
        flags = [flags]
    if not isinstance(traces, list) or len(flags) != len(traces):
        expected = len(traces) if isinstance(traces, list) else 0
        raise RowError(f"{where}, field 'correct': expected {expected} flags, found {shown(flags)}")
    right = [_flag(flag, where) for flag in flags]
    row["rationales"] = traces
    keep_rationales(row, right, aligned)


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
