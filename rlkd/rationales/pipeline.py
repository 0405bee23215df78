"""The stages of the recipe: questions in, `write`, `select`, rows to train on out.

    questions = load_questions("gsm8k-sample", max_rows=60)
    write_stage(Path("runs/rationales"), questions, Writing(("ready",)))
    select_stage(Path("runs/rationales"), [load_selector("correct")])

Each start repeats `write` from its journal; `select` starts from `written.jsonl`, block by block.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from rlkd.engines import Engine, require_identity, run
from rlkd.files import atomic_file
from rlkd.rationales.further import further_examples
from rlkd.rationales.output import dropped_line, line_of, only_process_in, read_questions, require_written, write_rows
from rlkd.rationales.questions import load_questions
from rlkd.rationales.records import Candidate, DroppedCandidate, Question
from rlkd.rationales.select import NOT_MEASURED, Selector, SelectorError, apply, judges_whole_set
from rlkd.rationales.select.correct import WRONG
from rlkd.rationales.summary import SelectionTally, update_summary
from rlkd.rationales.write.journal import Journal
from rlkd.rationales.write.teacher import RationaleTeacher
from rlkd.rationales.write.writer import Writer
from rlkd.rationales.write.writing import Writing

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.select.limits import SelectionLimits

__all__ = ["load_questions", "select_stage", "write_stage"]

# Questions that go through a selector together.
BLOCK = 256
# The stage of candidates that writing itself drops.
WRITE = "write"
# Files of a selection, which a new writing removes.
SELECTED = ("selected.jsonl", "rationales.jsonl", "rationales.parquet")

# Divides questions into those with the candidates that stay, and the candidates that go.
_Divide = Callable[[Sequence[Question]], tuple[list[Question], list[DroppedCandidate]]]


def write_stage(
    folder: Path,
    questions: Sequence[Question],
    settings: Writing,
    *,
    engine: Engine | None = None,
    student: Engine | None = None,
    prompt_style: Mapping[str, Any] | None = None,
    embedder: Embedder | None = None,
    bank: PathBank | None = None,
    bank_size: int | None = 75,
    route_threshold: float | None = None,
    log: Callable[[str], object] = print,
    **sending: Any,
) -> dict[str, Any]:
    """Write candidates into `written.jsonl`; returns its part of the summary.

    `engine` is the teacher. `sending` are settings of `RationaleTeacher`; `prompt_style` to `route_threshold` are
    those of `Writer`. Removes the files of an earlier selection, which do not belong to the new candidates. Raises
    `UsageError` for contradicting settings before any request, and if too many requests fail.
    """
    if engine is not None and settings.needs_teacher:
        require_identity(engine, "teacher", engine.name)
    if student is not None:
        require_identity(student, "student", student.name)
    with (
        only_process_in(folder),
        Progress(console=Console(stderr=True), transient=True) as progress,
        Journal(folder / "journal.jsonl") as journal,
    ):
        teacher = pupil = None
        if engine is not None and settings.needs_teacher:
            teacher = RationaleTeacher(engine, journal, seed=settings.seed, **sending)
        if student is not None and "student" in settings.writers:
            pupil = RationaleTeacher(student, journal, seed=settings.seed, **sending)
        if len(journal):
            log(f"{folder / 'journal.jsonl'} has {len(journal)} answers; their requests are not sent again.")
        task = progress.add_task("writing", total=None)
        writer = Writer(
            settings,
            teacher,
            student=pupil,
            prompt_style=prompt_style,
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
                    dropped.write(dropped_line(each))
        for name in SELECTED:
            (folder / name).unlink(missing_ok=True)
        if writer.bank is not None:
            writer.bank.to_file(folder / "bank.json")
        for asked in filter(None, (teacher, pupil)):
            log(f"{asked.sent} requests sent, {asked.known} answers from the journal, {asked.failed} failed.")
            if asked.last_error is not None:
                log(
                    f"The last failure: {asked.last_error}\nThe same command again retries failed requests; "
                    f"--deadline allows more time for each."
                )
        paths = _path_figures(writer)
        part = {"teacher": teacher.name if teacher else None, "counts": writer.counts.to_json(), "paths": paths}
        update_summary(folder, WRITE, part)
    if paths and paths.get("message"):
        log(f"WARNING: {paths['message']}")
    return part


def _path_figures(writer: Writer) -> dict[str, Any] | None:
    """The figures of the paths; None if no writer is step-keyed."""
    if not {"steps", "bank"} & set(writer.settings.writers):
        return None
    from rlkd.rationales.bank.paths import path_entropy

    figures: dict[str, Any] = {
        "used": len(writer.paths_used),
        "distinct": len(set(writer.paths_used)),
        "entropy_bits": path_entropy(writer.paths_used),
    }
    if writer.bank is not None and (coverage := writer.coverage()) is not None:
        figures |= {
            "in_bank": len(writer.bank),
            "bank_entropy_bits": writer.bank.entropy(),
            "offered_share": coverage.share,
            "message": coverage.message(),
        }
    return figures


def select_stage(
    folder: Path,
    selectors: Sequence[Selector],
    limits: SelectionLimits | None = None,
    *,
    count: Callable[[str], int] | None = None,
    further: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Select from `written.jsonl`, and write the rows to train on; returns its part of the summary.

    `count` counts the tokens of a text for a token budget; None: words, numbers and signs
    (`rlkd.rationales.select.limits`). Selectors are applied in order, `limits` last; then come `further` examples,
    drawn by `seed` (`rlkd.rationales.further`). Raises `UsageError` if nothing has been written, and `SelectorError`
    if a selector could measure nothing.
    """
    source = folder / "written.jsonl"
    require_written(source)
    with only_process_in(folder), Progress(console=Console(stderr=True), transient=True) as progress:
        tally = SelectionTally()
        of_writing = [line for line in _lines(folder / "dropped.jsonl") if json.loads(line)["stage"] == WRITE]
        total = sum(1 for _ in _lines(source))
        with atomic_file(folder / "selected.jsonl") as selected, atomic_file(folder / "dropped.jsonl") as dropped:
            dropped.writelines(of_writing)
            wrong: dict[str, list[Candidate]] = defaultdict(list)

            def drop(each: DroppedCandidate) -> None:
                tally.drop(each)
                if further and each.reason == WRONG:
                    wrong[each.question_id].append(each.candidate)
                dropped.write(dropped_line(each))

            questions: Iterable[Question] = progress.track(read_questions(source), total, description="selecting")
            stages: list[tuple[str, _Divide, bool]] = [
                (_stage_name(selectors, number), partial(_apply, each), judges_whole_set(each))
                for number, each in enumerate(selectors)
            ]
            if limits is not None:
                stages.append(("limits", partial(limits.apply, count=count), True))
            for stage, divide, whole_set in stages:
                tally.enter(stage, [])
                questions = _selected(stage, divide, whole_set, questions, tally, drop)
            chosen: list[Question] = []
            for question in questions:
                if question.candidates:
                    tally.keep(question)
                    selected.write(line_of(question.to_json()))
                    if further:
                        chosen.append(question)
            for example in further_examples(chosen, wrong, further or {}, seed):
                tally.further.update(each.source for each in example.candidates)
                selected.write(line_of(example.to_json()))
        write_rows(folder / "selected.jsonl", folder / "rationales.jsonl", tally.score_names)
        part = tally.to_json()
        update_summary(folder, "select", part)
    return part


def _apply(selector: Selector, questions: Sequence[Question]) -> tuple[list[Question], list[DroppedCandidate]]:
    return run(apply(selector, questions))


def _selected(
    stage: str,
    divide: _Divide,
    whole_set: bool,
    questions: Iterable[Question],
    tally: SelectionTally,
    drop: Callable[[DroppedCandidate], None],
) -> Iterator[Question]:
    """The questions with the candidates that a stage keeps, block by block, or all at once if it compares them.

    Raises `SelectorError` at the end of all blocks if not one candidate could be measured.
    """
    source = iter(questions)
    measured, unmeasured = 0, 0
    while block := list(source if whole_set else islice(source, BLOCK)):
        with_candidates = [question for question in block if question.candidates]
        tally.enter(stage, with_candidates)
        kept, dropped = divide(with_candidates)
        tally.compare(stage, with_candidates, kept, dropped)
        for each in dropped:
            drop(replace(each, stage=stage))
        failed = sum(each.reason == NOT_MEASURED for each in dropped)
        measured += len(kept) + len(dropped) - failed
        unmeasured += failed
        yield from kept
    if unmeasured and not measured:
        raise SelectorError(
            f"selector {stage!r} could measure none of {unmeasured} candidates; the warnings above give the causes"
        )


def _stage_name(selectors: Sequence[Selector], number: int) -> str:
    """The selector's name; with its number if it occurs several times, or is the name of a stage of ours."""
    names = [selector.__name__ for selector in selectors]
    own = names.count(names[number]) == 1 and names[number] not in (WRITE, "limits")
    return names[number] if own else f"{names[number]} ({number + 1})"


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                yield line.decode("utf-8", "replace")
