"""The part of the dry run about the teachers whose log-probabilities the loss reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.engines import without_secrets
from rlkd.teachers.topk import TopKTeacher
from trainers.common.student import read_model
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.student import end_line
from trainers.teachers.kinds import kind_of_teacher


def show_teachers(
    run: DryRun, args: Any, opened: Sequence[TopKTeacher | None], template: Mapping[str, Any] | None
) -> None:
    """Print what each teacher is, and the tokens that end its turns. `opened`: those whose weights are not here."""
    run.section("teacher")
    column = args.column_of(args.teachers)
    for number, teacher in enumerate([args.teacher] if column is None else column.teachers):
        if column is not None:
            run.line("rows", f"{column.column}: {', '.join(column.values(number))}")
        _show(run, args, teacher, opened[number], template)


def _show(
    run: DryRun, args: Any, teacher: str | None, opened: TopKTeacher | None, template: Mapping[str, Any] | None
) -> None:
    if teacher is None:
        run.line("", "none")
        return
    kind = kind_of_teacher(teacher)
    if kind == "self":
        run.line("self", "the student before this training")
        return
    if kind != "model":
        top = f", {opened.k} tokens per position" if opened is not None else ""
        run.line(kind, f"{without_secrets(teacher)}{top}")
        return
    facts = read_model(teacher, revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code)
    context = "unknown" if facts.context is None else f"{facts.context} tokens"
    run.line("model", f"{facts.name}, context {context}")
    if facts.tokenizer is not None:
        run.line("end tokens", end_line(facts, template))
