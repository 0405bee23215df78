"""The dry run of a distillation: its checks, and the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.dry_run.batches import distillation_plan, show_steps
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.memory import show_memory
from trainers.dry_run.probe import show_probe
from trainers.dry_run.rows import show_rows
from trainers.dry_run.student import check_held_out_prompts, first_prompt, show_lengths, show_student
from trainers.dry_run.teacher import show_teachers
from trainers.validity_kd.memory import memory_plan
from trainers.validity_kd.preparation import prepare
from trainers.vllm.checks import asked_once


def show_distillation(
    run: DryRun,
    script: Any,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    test_rows: Sequence[Mapping[str, Any]],
) -> None:
    """Show a run of `recipes/validity_kd.py`. `settings`: arguments of `ValidityKDTrainer`."""
    args, model = settings["args"], settings["model"]
    dataset = settings["train_dataset"] if rows else None
    tests = script.dataset_test_name or script.source_name
    show_rows(run, rows, test_rows, source=script.source_name, tests=tests)
    with asked_once(args):
        prepared = prepare(
            args,
            model,
            args.teachers or args.teacher,
            dataset,
            None,
            peft_config=settings["peft_config"],
            catch=run.catch,
            loads=run.mode == "probe",
        )
    student, dataset, template = prepared.student, prepared.train_dataset, args.chat_template_kwargs
    check_held_out_prompts(run, script, student, test_rows, args.max_completion_length, template)
    show_student(run, student, first_prompt(dataset), template)
    show_teachers(run, args, prepared.opened, template)
    if prepared.other is not None:
        run.line("tokenizer", "another one than the student's: compared on spans of text")
    if prepared.context is not None:
        whose = "another row's" if args.foreign_context else "the row's"
        run.line("context", f"{whose} {prepared.context.column}, in the teacher's prompt only")
    if prepared.trace_end is not None:
        end = prepared.tokenizer.convert_ids_to_tokens(prepared.trace_end)
        run.line("", f"its traces end with {end!r}, which ends a generation of both models")
    show_lengths(run, student, dataset, completion=args.max_completion_length, template=template)
    plan, factors = distillation_plan(args, 0 if dataset is None else len(dataset))
    show_steps(run, plan, factors)
    adapter, scorer = settings["peft_config"], prepared.scorer
    show_memory(run, memory_plan, args, model, adapter, student, dataset, scorer=scorer)
    if run.mode == "probe" and not run.messages:
        from trainers.validity_kd.trainer import ValidityKDTrainer

        show_probe(run, args, lambda: ValidityKDTrainer(**settings), steps=plan.steps)
