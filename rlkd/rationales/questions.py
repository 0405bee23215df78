"""Questions from the data, with the rationales that their rows bring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlkd.answers import extract_answer
from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError, json_lines, json_records
from rlkd.data.sources import Source, source_name
from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, Question, candidate, storable
from rlkd.steps import calculations
from rlkd.structure import Structure


def load_questions(
    source: Source,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rationales: int | None = None,
    max_rows: int | None = None,
    other_columns: Collection[str] | None = None,
    skip_bad_rows: bool = False,
    join_questions: bool = False,
) -> list[Question]:
    """Questions with the rationales of their rows, from any source of `rlkd.data.loading.load_rows`.

    In a .jsonl file rationales may also be objects (`docs/rationales.md`). Columns `sources` and `paths` with one
    entry per rationale are used as such, so the output of a run can be its input again. The answer of a text that
    announces none is the result of its last calculation (our choice). Raises `RowError` for a row that does not fit or
    has no question, `UsageError` for an unknown source.
    """
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows={max_rows}: expected at least 1, or nothing for all rows")
    path = Path(source).expanduser() if isinstance(source, str) else Path()
    if path.suffix == ".jsonl" and path.is_file() and _has_objects(path, columns or {}):
        if join_questions:
            raise UsageError(
                f"join_questions: the rationales of {path} are objects, whose rows are not joined. Give texts, or all "
                f"rationales of a question in one row"
            )
        questions = list(islice(_from_objects(path, columns or {}, max_rationales), max_rows))
    else:
        rows = load_rows(
            source,
            split=split,
            config=config,
            columns=columns,
            other_columns=other_columns,
            max_rows=max_rows,
            skip_bad_rows=skip_bad_rows,
            join_questions=join_questions,
            max_rationales=max_rationales,
            wrong_rationales="unchecked",
        )
        questions = [_from_row(row, source_name(source)) for row in rows]
    for question_id, times in Counter(question.id for question in questions).items():
        if times > 1:
            raise RowError(f"{source_name(source)}: the id {question_id!r} occurs twice; ids must be unique")
    return questions


def _from_row(row: Mapping[str, Any], source: str) -> Question:
    """A row of `load_rows` with its rationales as candidates."""
    if not row.get("question"):
        raise RowError(
            f"{source}, row {row['id']!r}: it has a 'prompt' and no 'question', which the teacher needs. "
            f'Name their column: --columns \'{{"question": "COLUMN"}}\''
        )
    texts, structures = row["rationales"], row["structures"]
    aligned = {name: row[name] for name in ("sources", "paths") if _is_aligned(row.get(name), texts)}
    sources, paths = aligned.get("sources"), aligned.get("paths")
    candidates = []
    for index, text in enumerate(texts):
        known: dict[str, Any] = {"path": tuple(map(str, (paths[index] if paths else None) or ()))}
        if len(structures) == len(texts):
            known["structure"] = Structure.from_list(structures[index])
        name = str((sources[index] if sources else None) or "ready")
        candidates.append(_with_answer(candidate(row["id"], storable(text), name, **known)))
    taken = {"id", "question", "answer", "prompt", "rationales", "structures", *aligned}
    # Scores and stages of an earlier selection belong to rationales that may not be kept again.
    taken |= {"scores", "stages"} if sources else set()
    columns = {name: value for name, value in row.items() if name not in taken}
    return Question(row["id"], row["question"], _gold(row["answer"]), tuple(candidates), columns)


def _is_aligned(value: Any, texts: list[str]) -> bool:
    return isinstance(value, list) and len(value) == len(texts)


def _has_objects(path: Path, columns: Mapping[str, str]) -> bool:
    """Whether the rationales of a file are objects; the first row that has any decides."""
    with path.open("rb") as file:
        for _, record in json_lines(file, str(path), on_error=lambda error: None):
            rationales = record.get(columns.get("rationales", "rationales"))
            if rationales:
                return isinstance(rationales, list) and isinstance(rationales[0], dict)
    return False


def _from_objects(path: Path, columns: Mapping[str, str], max_rationales: int | None) -> Iterator[Question]:
    """Questions of a file whose rationales are objects."""
    wanted = {field: columns.get(field, field) for field in ("id", "question", "answer", "rationales")}
    if unknown := set(columns) - set(wanted):
        raise UsageError(f"columns: {min(unknown)!r} does not go with rationales as objects; {', '.join(wanted)} do")
    for number, (place, record) in enumerate(json_records(path)):
        row = {field: record.get(column) for field, column in wanted.items()}
        if not isinstance(row["question"], str) or not row["question"].strip():
            raise RowError(f"{place}, field 'question': expected text, found {row['question']!r}")
        question_id = f"{path.stem}-{number}" if row["id"] is None else str(row["id"])
        answer = _gold(None if row["answer"] is None else str(row["answer"]))
        rationales = row["rationales"] or []
        if not isinstance(rationales, list):
            raise RowError(f"{place}, field 'rationales': expected a list, found {str(rationales)[:80]!r}")
        candidates = tuple(_from_object(question_id, each, place) for each in rationales[:max_rationales])
        others = {name: value for name, value in record.items() if name not in wanted.values()}
        yield Question(question_id, row["question"], answer, candidates, others)


def _from_object(question_id: str, rationale: Any, place: str) -> Candidate:
    if not isinstance(rationale, dict) or not isinstance(rationale.get("text"), str):
        raise RowError(f"{place}, field 'rationales': expected objects with a 'text', found {str(rationale)[:80]!r}")
    each = candidate(question_id, storable(rationale["text"]), str(rationale.get("source") or "ready"))
    flag = rationale.get("correct")
    scores = {"flagged": float(flag)} if isinstance(flag, bool) else {}
    return _with_answer(each, rationale.get("final")).with_scores(scores)


def _with_answer(each: Candidate, final: Any = None) -> Candidate:
    """The candidate; if its text announces no answer, with `final` or the result of its last calculation."""
    if each.answer is not None:
        return each
    last = next((answer for _, _, answer in reversed(calculations(each.text))), None) if final is None else str(final)
    return replace(each, answer=last)


def _gold(answer: str | None) -> str | None:
    """The answer itself, if a column holds a worked solution that ends with it."""
    return None if answer is None else extract_answer(answer) or answer
