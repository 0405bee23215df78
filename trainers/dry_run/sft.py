"""The dry run of a fine-tuning, on rationales or on structures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkd.rendering import prompt_ids, text_ids
from trainers.common.example_weights import WEIGHT
from trainers.common.gold import SAMPLED_ROWS
from trainers.common.student import ModelFacts, check_turn_end
from trainers.dry_run.batches import example_plan, show_steps
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.probe import show_probe
from trainers.dry_run.rows import show_rows, spread
from trainers.dry_run.student import check_held_out_prompts, distribution, show_student

Examples = Sequence[Mapping[str, Any]]


def show_sft(
    run: DryRun,
    script: Any,
    args: Any,
    student: ModelFacts,
    rows: Sequence[Mapping[str, Any]],
    test_rows: Sequence[Mapping[str, Any]],
    examples: Examples,
    build: Callable[[], Any],
) -> None:
    """Show a run of `recipes/sft.py`. `build` makes its trainer."""
    tests = script.dataset_test_name or script.source_name
    show_rows(run, rows, test_rows, source=script.source_name, tests=tests)
    template: Any = script.chat_template_kwargs
    template = template if isinstance(template, dict) else None
    check_held_out_prompts(run, script, student, test_rows, script.max_completion_length, template)
    _show_weights(run, script, examples)
    if script.shuffle_stages is not None:
        run.section("curriculum")
        run.line("a control run", f"the examples exchange their stages (seed {script.shuffle_stages})")
    show_examples(run, args, student, examples, template, build)


def _show_weights(run: DryRun, script: Any, examples: Examples) -> None:
    weights = [example[WEIGHT] for example in examples if WEIGHT in example]
    if weights or script.weight_temperature is not None:
        run.section("weights of examples")
    if weights:
        none = f"; {weights.count(0)} are 0" if 0 in weights else ""
        run.line(script.weight_column, f"{min(weights):.3g} to {max(weights):.3g}, over their mean{none}")
    if script.weight_temperature is not None:
        run.line("own loss", f"exp(-loss / {script.weight_temperature:g})")
    if script.shuffle_weights:
        run.line("a control run", "each example has the weight of its neighbour in the batch")


def show_examples(
    run: DryRun,
    args: Any,
    student: ModelFacts,
    examples: Examples,
    template: Mapping[str, Any] | None,
    build: Callable[[], Any],
) -> None:
    """Show the student and the examples of a fine-tuning in its tokens, the steps, and the probe if asked for."""
    show_student(run, student, examples[0]["prompt"] if examples else None, template)
    check_turn_end(student, template)
    if examples and student.tokenizer is not None:
        with run.catch():
            _show_lengths(run, args, student, examples, template)
    plan, factors = example_plan(args, len(examples))
    show_steps(run, plan, factors)
    if run.mode == "probe" and not run.messages:
        show_probe(run, args, build, steps=plan.steps)


def _show_lengths(
    run: DryRun, args: Any, student: ModelFacts, examples: Examples, template: Mapping[str, Any] | None
) -> None:
    sampled = spread(examples, SAMPLED_ROWS)
    prompts = [len(prompt_ids(student.tokenizer, example["prompt"], template)) for example in sampled]
    replies = [example["completion"] for example in sampled]
    texts = [reply if isinstance(reply, str) else str(reply[0]["content"]) for reply in replies]
    completions = [len(text_ids(student.tokenizer, text, special=False)) + 1 for text in texts]
    both = [sum(pair) for pair in zip(prompts, completions, strict=True)]
    run.section(f"lengths (tokens of {student.name})")
    of = f" ({len(sampled)} of {len(examples)} sampled)" if len(sampled) < len(examples) else ""
    run.line("prompts", f"{distribution(prompts)}{of}")
    run.line("completions", distribution(completions))
    if args.max_length is None:
        run.line("examples", f"{distribution(both)}; max_length has no limit")
        return
    dropped = sum(length >= args.max_length for length in prompts)
    cut = sum(length > args.max_length for length in both) - dropped
    run.line(
        "examples",
        f"{distribution(both)}; longer than max_length {args.max_length}: {cut} are truncated, {dropped} are dropped "
        f"(their prompts alone are longer)",
    )
    if cut + dropped:
        run.warn(
            f"{cut + dropped} of {len(sampled)} sampled examples are longer than max_length {args.max_length}: "
            f"truncated ones do not teach where an answer ends. Raise max_length, or leave them out of the data"
        )
