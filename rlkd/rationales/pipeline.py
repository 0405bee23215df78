"""The stages of the recipe: rows in, `write`, `select`, rows to train on out.

    questions = load_questions("gsm8k-sample", max_rows=60)
    write_stage(Path("runs/rationales"), questions, Writing(("ready",)))
    select_stage(Path("runs/rationales"), [load_selector("correct")])

`write` is done again from its journal by each start, which asks the teacher for nothing that it has answered.
`select` starts from `written.jsonl`, block by block; a selector or limit that compares all questions has them all in
memory. What there is afterwards stands in `output.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.answers import extract_answer
from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError, json_records
from rlkd.engines import Engine, require_identity, run
from rlkd.errors import UsageError
from rlkd.files import atomic_file
from rlkd.rationales.output import (
    Tally,
    alone_in,
    dropped_record,
    line_of,
    read_questions,
    require_written,
    update_summary,
    write_rows,
)
from rlkd.rationales.records import Candidate, Question, candidate
from rlkd.rationales.select import NOT_MEASURED, Selector, SelectorError, apply, judges_whole_set
from rlkd.rationales.write.journal import Journal, Teacher
from rlkd.rationales.write.writing import Writer, Writing
from rlkd.steps import calculations
from rlkd.structure import Structure

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.select.limits import SelectionLimits

# Questions that go through a selector together.
BLOCK = 256
# The stage of what writing itself drops.
WRITE = "write"
# What a selection leaves, and a new writing takes away.
SELECTED = ("selected.jsonl", "rationales.jsonl", "rationales.parquet")

Say = Callable[[str], object]


def load_questions(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rationales: int | None = None,
    max_rows: int | None = None,
) -> list[Question]:
    """Questions with the rationales that the rows bring along, from any source of `rlkd.data.loading.load_rows`.

    Rationales may also be objects `{source, text, final, correct}` in a .jsonl file, `text` being the only key that
    is needed: `final` is the answer of a text that announces none, `correct` becomes the score `flagged`. Columns
    `sources` and `paths`, one a rationale, are taken as theirs, so what this pipeline wrote can go in again. The
    answer of a text that announces none is the result of its last calculation (our choice: worked solutions end so).

    Raises `RowError` for a row that does not fit or has no question, `UsageError` for a source that does not exist.
    """
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows={max_rows}: expected at least 1, or nothing for all rows")
    path = Path(source).expanduser()
    if path.suffix == ".jsonl" and path.is_file() and _holds_objects(path, columns or {}):
        questions = list(islice(_from_objects(path, columns or {}, max_rationales), max_rows))
    else:
        try:
            rows = load_rows(source, split=split, config=config, columns=columns, max_rationales=max_rationales)
        except RowError as error:
            if "field 'rationales'" not in str(error) or path.suffix == ".jsonl":
                raise
            raise RowError(f"{error}. Rationales as objects are read from .jsonl files only") from error
        questions = [_question(row, source) for row in rows[:max_rows]]
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise RowError(f"{source}: the id {question.id!r} stands twice; ids must be unique")
        seen.add(question.id)
    return questions


def write_stage(
    folder: Path,
    questions: Sequence[Question],
    settings: Writing,
    *,
    engine: Engine | None = None,
    embedder: Embedder | None = None,
    bank: PathBank | None = None,
    bank_size: int | None = 75,
    route_threshold: float | None = None,
    concurrency: int = 16,
    batch: int = 16,
    deadline: float | None = 600.0,
    max_failure_rate: float = 0.1,
    say: Say = print,
) -> dict[str, Any]:
    """Write candidates into `written.jsonl`; its part of the summary.

    The files of an earlier selection are taken away, since they do not belong to what is written now. Raises
    `UsageError` before anything is asked where something is missing, and where the teacher fails too often.
    """
    from rich.console import Console
    from rich.progress import Progress

    if settings.asks and engine is not None:
        require_identity(engine, "teacher", engine.name)
    with (
        alone_in(folder),
        Progress(console=Console(stderr=True), transient=True) as progress,
        Journal(folder / "journal.jsonl") as journal,
    ):
        teacher = None
        if engine is not None and settings.asks:
            teacher = Teacher(
                engine,
                journal,
                seed=settings.seed,
                concurrency=concurrency,
                batch=batch,
                deadline=deadline,
                max_failure_rate=max_failure_rate,
            )
        if len(journal):
            say(f"{folder / 'journal.jsonl'} has {len(journal)} answers; they are not asked for again.")
        task = progress.add_task("writing", total=None)
        writer = Writer(
            settings,
            teacher,
            embedder=embedder,
            bank=bank,
            bank_size=bank_size,
            route_threshold=route_threshold,
            advance=lambda count: progress.advance(task, count),
        )
        progress.update(task, total=writer.requests_expected(len(questions)) or None)
        with atomic_file(folder / "written.jsonl") as written, atomic_file(folder / "dropped.jsonl") as dropped:
            for question, discarded in writer.write(questions):
                written.write(line_of(question.to_json()))
                for each in discarded:
                    record = dropped_record(each.question_id, WRITE, each.reason, each.candidate)
                    dropped.write(line_of(record))
        for name in SELECTED:
            (folder / name).unlink(missing_ok=True)
        if writer.bank is not None:
            writer.bank.to_file(folder / "bank.json")
        if teacher is not None:
            say(f"{teacher.asked} requests asked, {teacher.known} answers were there, {teacher.failed} failed.")
            if teacher.last_error is not None:
                say(
                    f"The last failure: {teacher.last_error}\nThe same command again asks for what failed; "
                    f"--deadline gives each more time."
                )
        paths = _paths(writer)
        part = {"teacher": teacher.name if teacher else None, "counts": writer.counts.to_json(), "paths": paths}
        update_summary(folder, "write", part)
    if paths and paths.get("message"):
        say(f"WARNING: {paths['message']}")
    return part


def select_stage(
    folder: Path,
    selectors: Sequence[Selector],
    limits: SelectionLimits | None = None,
    *,
    count: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """Select from `written.jsonl`, and write the rows to train on; its part of the summary.

    `count` gives the tokens of a text, for a token budget; None: words, numbers and signs
    (`rlkd.rationales.select.limits`). Selectors are applied in order, `limits` last. Raises `UsageError` where nothing
    has been written, and `SelectorError` where a selector cannot work at all.
    """
    require_written(folder / "written.jsonl")
    with alone_in(folder):
        tally = _select(folder, selectors, limits, count)
        write_rows(folder / "selected.jsonl", folder / "rationales.jsonl", tally.score_names)
        part = tally.to_json()
        update_summary(folder, "select", part)
    return part


def _select(
    folder: Path, selectors: Sequence[Selector], limits: SelectionLimits | None, count: Callable[[str], int] | None
) -> Tally:
    """Write `selected.jsonl` and `dropped.jsonl`."""
    from rich.console import Console
    from rich.progress import Progress

    tally = Tally()
    source = folder / "written.jsonl"
    earlier = [line for line in _lines(folder / "dropped.jsonl") if json.loads(line)["stage"] == WRITE]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("selecting", total=sum(1 for _ in _lines(source)))
        with atomic_file(folder / "selected.jsonl") as selected, atomic_file(folder / "dropped.jsonl") as dropped:
            dropped.writelines(earlier)

            def drop(stage: str, reason: str, question_id: str, each: Candidate) -> None:
                tally.drop(stage, reason, each)
                dropped.write(line_of(dropped_record(question_id, stage, reason, each)))

            def read() -> Iterator[Question]:
                for question in read_questions(source):
                    yield question
                    progress.advance(task)

            through: Iterable[Question] = read()
            for number, selector in enumerate(selectors):
                stage = _stage_name(selectors, number)
                tally.enter(stage, [])
                through = _through(selector, stage, through, tally, drop)
            if limits is not None:
                tally.enter("limits", [])
                through = _limited(limits, count, through, tally, drop)
            for question in through:
                if question.candidates:
                    tally.keep(question)
                    selected.write(line_of(question.to_json()))
    return tally


def _through(
    selector: Selector, stage: str, questions: Iterable[Question], tally: Tally, drop: Callable[..., None]
) -> Iterator[Question]:
    """The questions with what a selector keeps of them, block by block, or all at once where it compares them.

    Raises `SelectorError` at the end of all blocks where not one candidate could be measured.
    """
    source = iter(questions)
    measured, unmeasured = False, 0
    while block := list(source if judges_whole_set(selector) else islice(source, BLOCK)):
        with_some = [question for question in block if question.candidates]
        tally.enter(stage, with_some)
        kept, dropped = run(apply(selector, with_some))
        for each in dropped:
            drop(stage, each.reason, each.question_id, each.candidate)
        here = sum(each.reason == NOT_MEASURED for each in dropped)
        measured = measured or bool(kept) or here < len(dropped)
        unmeasured += here
        yield from kept
    if unmeasured and not measured:
        raise SelectorError(
            f"selector {stage!r} could measure none of {unmeasured} candidates; the warnings above say why"
        )


def _limited(
    limits: SelectionLimits,
    count: Callable[[str], int] | None,
    questions: Iterable[Question],
    tally: Tally,
    drop: Callable[..., None],
) -> Iterator[Question]:
    everything = [question for question in questions if question.candidates]
    tally.enter("limits", everything)
    kept, dropped = limits.apply(everything, count)
    for each in dropped:
        drop("limits", each.reason, each.question_id, each.candidate)
    yield from kept


def _stage_name(selectors: Sequence[Selector], number: int) -> str:
    """The selector's name; with its number where it stands there several times, or is that of a stage of ours."""
    names = [selector.__name__ for selector in selectors]
    own = names.count(names[number]) == 1 and names[number] not in (WRITE, "limits")
    return names[number] if own else f"{names[number]} ({number + 1})"


def _paths(writer: Writer) -> dict[str, Any] | None:
    """What became of the paths; None where nothing was to be written step by step."""
    if not {"steps", "bank"} & set(writer.settings.writers):
        return None
    from rlkd.rationales.bank.paths import path_entropy

    part: dict[str, Any] = {
        "used": len(writer.paths_used),
        "distinct": len(set(writer.paths_used)),
        "entropy_bits": path_entropy(writer.paths_used),
    }
    if writer.bank is not None and (coverage := writer.coverage()) is not None:
        part |= {
            "in_bank": len(writer.bank),
            "bank_entropy_bits": writer.bank.entropy(),
            "offered_share": coverage.share,
            "message": coverage.message(),
        }
    return part


def _question(row: Mapping[str, Any], source: str) -> Question:
    """A row of `load_rows` with its rationales as candidates."""
    if not row.get("question"):
        raise RowError(
            f"{source}, row {row['id']!r}: it has a 'prompt' and no 'question'; a teacher is asked about questions. "
            f'Name their column: --columns \'{{"question": "COLUMN"}}\''
        )
    texts, structures = row["rationales"], row["structures"]
    sources = _aligned(row, "sources", len(texts))
    paths = _aligned(row, "paths", len(texts))
    candidates = []
    for place, text in enumerate(texts):
        made = candidate(
            row["id"],
            _valid(text),
            str(sources[place] or "ready") if sources else "ready",
            path=tuple(map(str, paths[place] or ())) if paths else (),
            structure=Structure.from_list(structures[place]) if len(structures) == len(texts) else None,
        )
        candidates.append(replace(made, answer=_last_result(made.text)) if made.answer is None else made)
    taken = {"id", "question", "answer", "prompt", "rationales", "structures"}
    taken |= {name for name, found in (("sources", sources), ("paths", paths)) if found is not None}
    # Those of an earlier selection belong to rationales that may not be chosen again.
    taken |= {"scores", "stages"} if sources else set()
    columns = {name: value for name, value in row.items() if name not in taken}
    return Question(row["id"], row["question"], _gold(row["answer"]), tuple(candidates), columns)


def _last_result(text: str) -> str | None:
    """The result of the last calculation of a text."""
    return next((answer for _, _, answer in reversed(calculations(text))), None)


def _gold(answer: str | None) -> str | None:
    """The answer itself, where a column holds a worked solution that ends with it."""
    return None if answer is None else extract_answer(answer) or answer


def _aligned(row: Mapping[str, Any], name: str, count: int) -> list[Any] | None:
    value = row.get(name)
    return value if isinstance(value, list) and len(value) == count else None


def _holds_objects(path: Path, columns: Mapping[str, str]) -> bool:
    """Whether the rationales of a file are objects: those of the first row that has any decide."""
    for _, record in json_records(path):
        traces = record.get(columns.get("rationales", "rationales"))
        if traces:
            return isinstance(traces, list) and isinstance(traces[0], dict)
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
        traces = row["rationales"] or []
        if not isinstance(traces, list):
            raise RowError(f"{place}, field 'rationales': expected a list, found {str(traces)[:80]!r}")
        made = tuple(_from_object(question_id, trace, place) for trace in traces[:max_rationales])
        columns_left = {name: value for name, value in record.items() if name not in wanted.values()}
        yield Question(question_id, row["question"], answer, made, columns_left)


def _from_object(question_id: str, trace: Any, place: str) -> Candidate:
    if not isinstance(trace, dict) or not isinstance(trace.get("text"), str):
        raise RowError(f"{place}, field 'rationales': expected objects with a 'text', found {str(trace)[:80]!r}")
    made = candidate(question_id, _valid(trace["text"]), str(trace.get("source") or "ready"))
    if made.answer is None:
        final = trace.get("final")
        made = replace(made, answer=_last_result(made.text) if final is None else str(final))
    flag = trace.get("correct")
    return made.with_scores({"flagged": float(flag)} if isinstance(flag, bool) else {})


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                yield line.decode("utf-8", "replace")


def _valid(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode()
