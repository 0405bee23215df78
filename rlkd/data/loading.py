"""Load rows from embedded samples, files, folders or the hub, and make the dataset that trainers take."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from rlkd.data.bad_rows import BadRows
from rlkd.data.columns import check_columns, columns_to_read, renamed
from rlkd.data.correctness import trace_verdicts
from rlkd.data.joining import CheckedRow, QuestionJoin
from rlkd.data.per_rationale import columns_per_rationale, keep_rationales
from rlkd.data.row_table import WAY_OUT, RowTable, TableFile, Unstorable, mixed_types
from rlkd.data.rows import Row, RowError, build_prompt, check_row, shown
from rlkd.data.samples import SAMPLES, few_shot_examples
from rlkd.data.sources import Record, Source, records, source_name
from rlkd.errors import UsageError
from rlkd.process import is_first_process

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

WrongRationales = Literal["drop", "keep", "unchecked"]

# Rows whose traces are compared with their answers at a time.
COMPARED_ROWS = 4096
# From this number on, rows are kept in a memory-mapped file.
LARGE = 8192

_IMAGES = ("image", "images")


def load_rows(
    source: Source,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    other_columns: Collection[str] | None = None,
    max_rows: int | None = None,
    max_rationales: int | None = None,
    wrong_rationales: WrongRationales = "drop",
    skip_bad_rows: bool = False,
    join_questions: bool = False,
    per_rationale: Collection[str] = (),
    revision: str | None = None,
) -> Sequence[Row]:
    """Load and check rows.

    Args:
        source: one or several of: an embedded sample, a file or a pattern of files, a folder, a dataset name on the
            hub (`rlkd.data.sources`).
        split: of an embedded sample (see `rlkd.data.rows`), a saved folder or a hub dataset; a file has none, except a
            JSON document that holds rows under this name.
        config: configuration name of a hub dataset.
        columns: our field -> their column, e.g. `{question: problem, rationales: generations}`. Besides the fields of
            a row, `messages` names a conversation (`rlkd.data.columns`), and `correct` a list of flags, one per
            rationale: rationales that are not flagged true are dropped, and so are rows that then have none. A row
            whose flags are null keeps its rationales.
        other_columns: columns to read besides those of the fields; None: all.
        max_rows: number of rows after which the reading ends; rows that are left out do not count.
        max_rationales: maximum number of rationales per row, from the first (the RLKD paper: 1).
        wrong_rationales: rationales whose own answer differs from the row's (`rlkd.data.correctness`). `drop` leaves
            them out, and rows that then have none; `keep` only counts them; `unchecked` does not compare. Rationales
            with a flag are not compared, those without a readable answer are kept.
        skip_bad_rows: leave out malformed rows, with a warning, instead of ending at the first one.
        join_questions: join the rows of a question into one with all their rationales (`rlkd.data.joining`). Then all
            rows are read and held in memory before, and `max_rows` and `max_rationales` count joined ones.
        per_rationale: columns that may have a list with a value for each rationale; one whose rationale is left out
            goes with it. With `join_questions`, a single value of a row holds for all its rationales.
        revision: of a hub dataset, by default the newest.

    A row without an id gets one from source and position; ids that repeat get a suffix, with a warning. From `LARGE`
    rows on, those of files, folders and the hub are a `RowTable` where Arrow holds all columns exactly, else a list.
    Raises `RowError` for a malformed row, `UsageError` for a missing source, one without rows, and one with more than
    half of its rows malformed.
    """
    columns = columns or {}
    check_columns(columns)
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows {max_rows}: expected at least 1, or none for all rows")
    name = source_name(source)
    bad = BadRows(name, skip=skip_bad_rows)
    # The embedded samples have no wrong rationales, and are in memory already.
    is_sample = source in SAMPLES
    compares = wrong_rationales != "unchecked" and not is_sample
    kept = _Kept(name, stores=not is_sample)
    counts: Counter[str] = Counter()
    names = columns_to_read(columns, other_columns)
    streams = max_rows is not None and not join_questions
    found = records(source, split, config, revision, names=names, streams=streams, on_error=bad.add)
    there: dict[str, None] = {}
    aligned = columns_per_rationale(per_rationale)
    checked = _checked(_noting_columns(found, there), columns, aligned, bad)
    join = QuestionJoin(name, bad, per_rationale)
    if join_questions:
        checked = join.join(checked)
    read = 0
    while chunk := list(
        islice(checked, COMPARED_ROWS if max_rows is None else min(COMPARED_ROWS, max_rows - len(kept)))
    ):
        read += len(chunk)
        brought = [len(each.row["rationales"]) for each in chunk]
        if compares:
            _compare([each.row for each in chunk if not each.flagged], wrong_rationales, counts, aligned)
        for (_, made, row, _), number in zip(chunk, brought, strict=True):
            if number and not row["rationales"]:
                counts["rows without another"] += 1
            elif not number and "correct" in columns:
                counts["rows without a flag"] += 1
            else:
                if max_rationales is not None:
                    count = len(row["rationales"] or row["structures"])
                    keep_rationales(row, [place < max_rationales for place in range(count)], aligned)
                kept.add(row, made)
    if there and (missing := [name for name in other_columns or () if name not in there]):
        which = "no row has" if max_rows is None else f"none of the rows read (max_rows {max_rows}) has"
        raise UsageError(f"other_columns: {which} a column {missing[0]!r}; there are {', '.join(there)}")
    bad.report(read + join.joined)
    if (left_out := counts["rows without a flag"]) and is_first_process():
        logger.warning("%s: left out %d rows without a rationale flagged as correct", name, left_out)
    _report(name, counts, wrong_rationales)
    if not len(kept):
        raise UsageError(f"{name} (split {split!r}) has no rows{' left' if counts or bad.count else ''}")
    return kept.rows()


class _Kept:
    """The rows of a source that stay, and their ids.

    With `stores` and from `LARGE` on, they are in a file, where Arrow can hold them exactly; else in a list.
    """

    def __init__(self, source: str, *, stores: bool) -> None:
        self._source = source
        self._stores = stores
        self._rows: list[Row] = []
        self._given: list[str | None] = []
        self._made: list[str] = []
        self._file: TableFile | None = None

    def __len__(self) -> int:
        return len(self._made)

    def add(self, row: Row, made: str) -> None:
        self._given.append(row.pop("id", None))
        self._made.append(made)
        self._rows.append(row)
        if self._stores and len(self._rows) == (COMPARED_ROWS if self._file else LARGE):
            self._file = self._file or TableFile()
            self._store(self._file)

    def _store(self, file: TableFile) -> None:
        try:
            file.add(self._rows)
            self._rows = []
        except Unstorable as error:
            self._rows = [*file.take_back(), *self._rows]
            self._file, self._stores = None, False
            if is_first_process():
                logger.warning(
                    "%s: the rows stay in memory instead of a file, which cannot hold column %r: %s. %s",
                    self._source,
                    error.column,
                    error.reason,
                    WAY_OUT,
                )

    def rows(self) -> Sequence[Row]:
        ids = _make_ids(self._given, self._made, self._source)
        if self._file:
            self._store(self._file)
        if self._file:
            return RowTable(self._file.finish(), ids)
        for row, name in zip(self._rows, ids, strict=True):
            row["id"] = name
        return self._rows


def _noting_columns(found: Iterable[Record], there: dict[str, None]) -> Iterator[Record]:
    """The records; adds the names of their columns to `there`."""
    for record in found:
        there.update(dict.fromkeys(record.columns))
        yield record


def _checked(
    found: Iterable[Record], columns: Mapping[str, str], aligned: Collection[str], bad: BadRows
) -> Iterator[CheckedRow]:
    """Each record that is a row."""
    for where, made, record in found:
        try:
            row, flagged = renamed(record, columns, aligned, where)
            if isinstance(texts := row.get("rationales"), list) and None in texts:  # a null is no trace
                keep_rationales(row, [text is not None for text in texts], aligned)
            checked = check_row(row, where)
        except RowError as error:
            bad.add(error)
        else:
            yield CheckedRow(where, made, checked, flagged)


def _compare(
    rows: Sequence[Row], wrong_rationales: WrongRationales, counts: Counter[str], aligned: Collection[str]
) -> None:
    """Count the rationales that are right and wrong; `drop` removes the wrong ones, with their values in `aligned`."""
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
            keep_rationales(row, [verdict is not False for verdict in own], aligned)


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


def _make_ids(given: Sequence[str | None], made: Sequence[str], source: str) -> list[str]:
    """An id for each row: its own, with a number where an earlier row has that; a made one that no row has."""
    used = {name for name in given if name is not None}
    times: Counter[str] = Counter()
    repeated: list[str] = []
    ids: list[str] = []
    taken: set[str] = set()
    for own, other in zip(given, made, strict=True):
        name = other if own is None else own
        if name in taken or (own is None and name in used):
            if own is not None:
                repeated.append(name)
            times[name] += 1
            while (free := f"{name}-{times[name] + 1}") in used:
                times[name] += 1
            name = free
        taken.add(name)
        used.add(name)
        ids.append(name)
    if repeated and is_first_process():
        logger.warning(
            "%s: %d rows have the id of an earlier row, the first of them %r; a number is added to theirs",
            source,
            len(repeated),
            repeated[0],
        )
    return ids


def to_dataset(rows: Sequence[Row], *, system_prompt: str | None = None, examples: int = 0) -> Dataset:
    """Make the `datasets.Dataset` that trainers take; rows without a `prompt` get one made from `question`.

    `system_prompt` and `examples` (the number of few-shot examples, as turns of the conversation) apply to those rows.
    Every row gets the same keys, because TRL reads them from the first row. The dataset of a `RowTable` is
    memory-mapped too.
    """
    import pyarrow
    from datasets import Dataset

    pairs = few_shot_examples(examples)
    known = rows.columns if isinstance(rows, RowTable) else dict.fromkeys(key for row in rows for key in row)
    # A column of images without an image would make trainers expect some.
    keys = [key for key in known if key not in _IMAGES or any(map(_has_image, (row.get(key) for row in rows)))]
    # A column contains texts or conversations, not both.
    form = type(rows[0].get("prompt") or []) if rows else list
    made = (_example(row, keys, form, system_prompt, pairs) for row in rows)
    if isinstance(rows, RowTable):
        file = TableFile()
        while part := list(islice(made, COMPARED_ROWS)):
            file.add(part)
        return file.finish()
    listed = list(made)
    try:
        return Dataset.from_list(listed)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
        raise mixed_types(listed, error) from error


def _example(
    row: Row, keys: Sequence[str], form: type, system_prompt: str | None, pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    if not isinstance(row.get("prompt") or [], form):
        raise RowError(
            f"row {row.get('id')!r}, field 'prompt': found {shown(row.get('prompt'))}, but the first row has a "
            f"{'text' if form is str else 'list of messages'}; all prompts must have the same type"
        )
    prompt = row.get("prompt") or build_prompt(row["question"], system_prompt, pairs)
    return {"prompt": prompt, **{key: row.get(key) for key in keys if key != "prompt"}}


def _has_image(value: Any) -> bool:
    if isinstance(value, Mapping):  # the bytes and the path of an image, one of them null
        value = list(value.values())
    if isinstance(value, list):
        return any(map(_has_image, value))
    return bool(value) if isinstance(value, str | bytes) else value is not None
