"""The dry run of asynchronous RLKD: its checks, its rollout server, and rewards tried on its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.errors import UsageError
from rlkd.models import is_adapter
from trainers.async_grpo.preflight import check_async
from trainers.async_grpo.preparation import prepare
from trainers.common.student import model_sources
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.rows import show_rows
from trainers.dry_run.scores import show_scores
from trainers.dry_run.student import first_prompt, show_lengths, show_student
from trainers.vllm.checks import asked_once


def show_async(run: DryRun, script: Any, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Show a run of `recipes/rlkd_async.py`. `settings`: arguments of `RLKDAsyncTrainer`."""
    args, model, adapter = settings["args"], settings["model"], settings["peft_config"]
    if run.mode == "probe":
        with run.catch():
            raise UsageError(
                "--dry_run probe: an asynchronous run has no step by itself, it waits for rollouts. Use --dry_run, "
                "and read the time of the first steps of the run"
            )
    dataset = settings["train_dataset"] if rows else None
    show_rows(run, rows, source=script.source_name)
    template = args.chat_template_kwargs
    prepared = prepare(args, model, dataset, None, adapter, catch=run.catch)
    student, dataset = prepared.student, prepared.train_dataset
    show_student(run, student, first_prompt(dataset), template)
    show_lengths(run, student, dataset, completion=args.max_completion_length, template=template)
    run.section("steps")
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    run.line("step", f"{per_step} completions of finished groups of {args.num_generations}")
    steps = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    run.line("run", f"{steps}; a completion may be {args.max_staleness} policy updates old")
    run.section("server")
    if student.tokenizer is None or is_adapter(model):
        run.line("", "not checked: that needs the student's tokenizer, and an adapter merged into its base")
    else:
        with run.catch(), asked_once(args):
            check_async(args, model_sources(model)[0], adapter, dataset, prepared.tokenizer, frees=False)
            run.line("", f"{args.vllm_server_base_url} fits this run")
    rewards = prepared.composite.rewards if prepared.composite is not None else []
    show_scores(run, rewards, dataset, student.tokenizer, template, has_probe=False)
