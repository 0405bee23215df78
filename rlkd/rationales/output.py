"""The files of a run: questions between the stages, rows to train on, dropped candidates, and a summary.

`docs/rationales.md` lists them. Each file appears when it is complete, and is in the order of the input rows. One
process works in a folder at a time (`only_process_in`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.files import atomic_file, lock_file
from rlkd.rationales.records import DroppedCandidate, Question

# Rows that are converted to Arrow together.
BLOCK = 1000
COLUMNS = ("id", "question", "answer", "rationales", "structures", "sources", "paths", "scores", "stages")
# Prefix of a column of the data whose own name is one of these.
PREFIX = "data_"


@contextlib.contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is created if it is missing, until this process ends.

    Raises `UsageError` if another one is in it.
    """
    lock = lock_file(folder / ".lock")
    if lock is None:
        raise UsageError(f"another process writes in {folder}. Wait for it, or name another output_dir")
    with lock:
        yield


def require_written(path: Path) -> None:
    """Raise `UsageError` if the file is missing."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}: run the stage `write` first, with the same output_dir")


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of `written.jsonl` or `selected.jsonl`, one by one.

    Raises `UsageError` for a missing file, and for a line of another form.
    """
    require_written(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Question.from_json(json.loads(line))
            except (AttributeError, TypeError, ValueError) as error:
                raise UsageError(f"{path}, line {number}: not a question with candidates ({error})") from error


def line_of(record: Mapping[str, Any]) -> str:
    """A record as a line of a file."""
    return json.dumps(record, ensure_ascii=True) + "\n"


def dropped_line(each: DroppedCandidate) -> str:
    """A line of `dropped.jsonl`."""
    kept = {"question_id": each.question_id, "stage": each.stage, "reason": each.reason}
    return line_of(kept | {"candidate": each.candidate.to_json()})


def row_of(question: Question, score_names: Sequence[str]) -> dict[str, Any]:
    """A row to train on (`docs/rationales.md`): one question, its rationales, and aligned with them their properties.

    `structures` are given only if every rationale has one, since an empty structure would count as one. `scores` hold
    all names, None for a missing score. A column of the data whose name is one of `COLUMNS` becomes `data_NAME`.
    """
    candidates = question.candidates
    structures = [each.structure.to_list() for each in candidates if each.structure is not None]
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "answer": question.answer,
        "rationales": [each.text for each in candidates],
        "structures": structures if len(structures) == len(candidates) else [],
        "sources": [each.source for each in candidates],
        "paths": [list(each.path) for each in candidates],
        "scores": [{name: each.scores.get(name) for name in score_names} for each in candidates],
    }
    if "stage" in score_names:
        row["stages"] = [int(each.scores.get("stage", 1)) for each in candidates]
    return row | {f"{PREFIX}{name}" if name in COLUMNS else name: value for name, value in question.columns.items()}


def write_rows(selected: Path, rows: Path, score_names: Iterable[str] | None = None) -> None:
    """Write `rows` (.jsonl) and the same as .parquet from the questions in `selected`.

    `score_names` are those of all candidates; None: they are looked up. Raises `RowError` for a column of the data
    with values of different types: then `rows` exists, and the other file does not.
    """
    if score_names is None:
        scores = (each.scores for question in read_questions(selected) for each in question.candidates)
        score_names = {name for each in scores for name in each}
    names = sorted(score_names)
    with atomic_file(rows) as file:
        file.writelines(line_of(row_of(question, names)) for question in read_questions(selected))
    _write_parquet(rows, rows.with_suffix(".parquet"), names)


def _write_parquet(rows: Path, target: Path, score_names: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    texts = pyarrow.list_(text)
    step = pyarrow.struct([(name, text) for name in ("meta", "question", "answer")])
    # A struct has at least one field.
    score = pyarrow.struct([(name, pyarrow.float64()) for name in score_names or ["none"]])
    structures, scores, stages = (pyarrow.list_(each) for each in (pyarrow.list_(step), score, pyarrow.int64()))
    types = (text, text, text, texts, structures, texts, pyarrow.list_(texts), scores, stages)
    ours = [pair for pair in zip(COLUMNS, types, strict=True) if pair[0] != "stages" or "stage" in score_names]
    try:
        others = pyarrow.schema([])
        for block in _blocks(rows):
            # By name: Arrow would read the names of the first row only.
            names = dict.fromkeys(name for row in block for name in row if name not in COLUMNS)
            schema = pyarrow.table({name: [row.get(name) for row in block] for name in names}).schema
            others = pyarrow.unify_schemas([others, schema], promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise RowError(f"{rows}: a column of the data has values of different types: {error}") from error
    schema = pyarrow.schema(ours + list(others))
    with atomic_file(target, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for block in _blocks(rows):
            writer.write_table(pyarrow.Table.from_pylist(block, schema=schema))


def _blocks(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as file:
        while block := list(map(json.loads, islice(file, BLOCK))):
            yield block
