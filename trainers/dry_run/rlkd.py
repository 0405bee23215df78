"""The dry run of RLKD: its checks, and rewards tried on its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.common.student import model_sources
from trainers.dry_run.batches import rollout_plan, show_steps
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.memory import show_memory
from trainers.dry_run.probe import show_probe
from trainers.dry_run.rows import show_rows
from trainers.dry_run.scores import show_scores
from trainers.dry_run.student import check_held_out_prompts, first_prompt, show_lengths, show_student
from trainers.dry_run.teacher import show_teachers
from trainers.rlkd.memory import memory_plan
from trainers.rlkd.preparation import prepare
from trainers.vllm.adapter_checks import adapter_config
from trainers.vllm.checks import asked_once, prepare_rollouts


def show_rlkd(
    run: DryRun,
    script: Any,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    test_rows: Sequence[Mapping[str, Any]],
) -> None:
    """Show a run of `recipes/rlkd.py`. `settings`: arguments of `RLKDTrainer`."""
    args, model = settings["args"], settings["model"]
    dataset = settings["train_dataset"] if rows else None
    tests = script.dataset_test_name or script.source_name
    show_rows(run, rows, test_rows, source=script.source_name, tests=tests)
    prepared = prepare(
        args,
        model,
        None,
        dataset,
        None,
        peft_config=settings["peft_config"],
        catch=run.catch,
        loads=run.mode == "probe",
    )
    student, template = prepared.student, args.chat_template_kwargs
    dataset = prepared.train_dataset
    if args.use_vllm:
        with run.catch(), asked_once(args):
            adapter = adapter_config(model, settings["peft_config"])
            prepare_rollouts(args, model_sources(model)[0], dataset, student.tokenizer, adapter)
    check_held_out_prompts(run, script, student, test_rows, args.max_completion_length, template)
    show_student(run, student, first_prompt(dataset), template)
    if args.teacher_kl:
        show_teachers(run, args, prepared.teachers, template)
    show_lengths(run, student, dataset, completion=args.max_completion_length, template=template)
    plan, factors = rollout_plan(args, 0 if dataset is None else len(dataset))
    show_steps(run, plan, factors)
    built = {"rewards": prepared.rewards, "scorer": prepared.scorer}
    show_memory(run, memory_plan, args, model, settings["peft_config"], student, dataset, **built)
    show_scores(run, prepared.rewards, dataset, student.tokenizer, template)
    if args.shuffle_rewards:
        run.line("a control run", f"the values of {', '.join(args.shuffle_rewards)} change places within each group")
    if run.mode == "probe" and not run.messages:
        from trainers.rlkd.trainer import RLKDTrainer

        show_probe(run, args, lambda: RLKDTrainer(**settings), steps=plan.steps, window=plan.window)
