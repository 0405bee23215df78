"""The part of the dry run about a teacher whose log-probabilities the loss reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlkd.engines import without_secrets
from rlkd.teachers.topk import TopKTeacher
from trainers.common.student import read_model
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.student import end_line
from trainers.validity_kd.teachers import kind_of_teacher


def show_teacher(run: DryRun, args: Any, opened: TopKTeacher | None, template: Mapping[str, Any] | None) -> None:
    """Print what the teacher is, and the tokens that end its turns. `opened`: where its weights are not here."""
    run.section("teacher")
    if args.teacher is None:
        run.line("", "none")
        return
    kind = kind_of_teacher(args.teacher)
    if kind == "self":
        run.line("self", "the student before this training")
        return
    if kind != "model":
        top = f", {opened.k} tokens per position" if opened is not None else ""
        run.line(kind, f"{without_secrets(str(args.teacher))}{top}")
        return
    facts = read_model(args.teacher, revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code)
    context = "unknown" if facts.context is None else f"{facts.context} tokens"
    run.line("model", f"{facts.name}, context {context}")
    if facts.tokenizer is not None:
        run.line("end tokens", end_line(facts, template))
