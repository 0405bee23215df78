"""Evaluation of a model on test rows: greedy and sampled accuracy, pass@k, maj@k, and rewards as metrics.

    rlkd evaluate --model_name_or_path FOLDER_OR_HUB_ID --dataset_name gsm8k --samples 8 --out evals/model
    rlkd evaluate --config recipes/evaluate.yaml --out evals/warm           # the embedded student, on a laptop
    rlkd evaluate --run runs/rlkd                                           # on the held-out rows of its training
    rlkd evaluate --config recipes/rlkd_smollm2.yaml --engine http://127.0.0.1:8000/v1#MODEL --out evals/served
    rlkd evaluate --config my.yaml --metrics accuracy structure my.py:brevity --out evals/metrics
    rlkd evaluate compare evals/warm evals/model                            # paired by row
    rlkd evaluate --dataset_name gsm8k --check_contamination train.jsonl    # no model: overlap with training rows
    rlkd evaluate --config my.yaml --samples 8 --pass_rates rows.jsonl --out evals/rates    # of the training rows

`rlkd evaluate` starts this file. Keys are those of the training recipes, whose config can be given as it is. A killed
evaluation continues with the same command. docs/evaluate.md describes the figures and the files.
"""

import sys
from pathlib import Path

# See recipes/rlkd.py: a script's own folder on the search path would hide the package `rlkd`.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rewards.metrics import ACCURACY, scored_completions
from rlkd.data.loading import to_dataset
from rlkd.data.pass_rates import with_pass_rates
from rlkd.data.rows import Row
from rlkd.engines import Engine, EngineError, check_ready, run
from rlkd.errors import UsageError
from rlkd.evaluation.comparison import compare_evaluations
from rlkd.evaluation.completing import complete_rows
from rlkd.evaluation.contamination import check_contamination
from rlkd.evaluation.folder import EvaluationFolder, RecordedCompletion, read_evaluation, row_record
from rlkd.evaluation.summary import score, summarise
from rlkd.files import atomic_file, write_atomically
from rlkd.rendering import text_ids
from rlkd.report.evaluation import render_comparison, render_contamination, render_results, wide_console
from trainers.common.evaluate_arguments import EvaluateScriptArguments, parse
from trainers.common.gold import check_reward_columns
from trainers.common.student import read_model
from trainers.common.think_tags import fitted_to_prompts, opens_thought, warn_of_special_tags
from trainers.dry_run.dry_run import DryRun, dry_run_status
from trainers.dry_run.rows import show_rows
from trainers.dry_run.scores import show_scores
from trainers.dry_run.student import show_lengths


def main(script: EvaluateScriptArguments) -> None:
    """Check everything that needs no model, then complete, score and show."""
    console = wide_console()
    rows, answers = script.test_rows()
    overlap = None
    if script.check_contamination:
        overlap = check_contamination(rows, script.train_rows(), script.check_contamination)
        console.print(render_contamination(overlap))
    if not script.evaluates:
        if overlap is None:
            raise UsageError(
                "no model to evaluate: --model_name_or_path MODEL, --engine SPEC, or --run RUN (rlkd evaluate --help)"
            )
        if script.out:
            write_atomically(Path(script.out) / "contamination.json", json.dumps(overlap.to_dict(), indent=1) + "\n")
        return
    if script.out is None:
        raise UsageError("--out FOLDER is missing: it keeps completions and figures, so that a killed run continues")
    if ACCURACY in script.metrics and all(row["answer"] is None for row in rows):
        raise UsageError(
            f"none of the {len(rows)} rows has an answer, so there is no accuracy. Name its column (--columns "
            f'\'{{"answer": "COLUMN"}}\'), or other --metrics'
        )
    engine, plan, rewards = script.open_engine(), script.plan(), script.build_metrics(answers)
    dataset = to_dataset(rows, system_prompt=script.system_prompt, examples=script.few_shot_examples)
    prompts = dataset["prompt"]
    tokenizer, prefilled = check_prompts(engine, prompts, script.max_completion_length)
    rewards, notes = fitted_to_prompts(rewards, opened=prefilled)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    for reward in rewards:
        check_reward_columns(reward, dataset, dataset.column_names, "the test rows")
        reward.check_ready()
    check_ready(engine, "the model")

    drawn = f", {plan.samples} samples per row at temperature {plan.sampling.temperature:g}" * bool(plan.samples)
    length = f", up to {script.max_completion_length} tokens each"
    line = f"{len(rows)} rows, {engine.name}{', greedy' * plan.greedy}{drawn}{length}."
    console.print(line, markup=False, highlight=False)
    lines = [row_record(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    with EvaluationFolder(Path(script.out), script.recorded(engine), lines) as folder:
        asked = [(row["id"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
        with progress("completions", len(rows) * len(plan.numbers)) as advance:
            run(complete_rows(engine, asked, plan, folder, advance))
        run(engine.close())  # makes room for the models of rewards
        ids = [row["id"] for row in rows]
        keys = [(name, 0) for name in ids if plan.greedy]
        keys += [(name, number) for name in ids for number in range(1, plan.samples + 1)]
        by_id = {row["id"]: row for row in dataset}
        with progress("scores", len(keys)) as advance:
            scored = scored_completions(
                rewards,
                by_id,
                [folder.written[key] for key in keys],
                answers=answers,
                prefilled=prefilled,
                encode=None if tokenizer is None else partial(text_ids, tokenizer, special=False),
                advance=advance,
            )
        results = summarise(
            ids,
            {each.key: each for each in scored},
            samples=plan.samples,
            greedy=plan.greedy,
            metrics=[reward.__name__ for reward in rewards],
            compares=answers == "exact",
        )
        extra = {} if overlap is None else {"contamination": overlap.to_dict()}
        folder.finish(scored, {"answers": answers, **results, **extra})
    if script.pass_rates:
        write_pass_rates(Path(script.pass_rates), rows, scored)
    for reward in rewards:
        reward.close()
    console.print(render_results(results))
    print(f"figures:     {(folder.path / 'results.json').resolve()}\ncompletions: {folder.completions.resolve()}")
    if script.pass_rates:
        print(f"pass rates:  {Path(script.pass_rates).resolve()}")


def write_pass_rates(path: Path, rows: Sequence[Row], scored: Sequence[RecordedCompletion]) -> None:
    """Write the rows, each with the share of right ones among its samples."""
    verdicts: dict[str, list[float | None]] = {row["id"]: [] for row in rows}
    for each in scored:
        if each.sample:  # 0 is the greedy one
            verdicts[each.id].append(score(each, ACCURACY))
    with atomic_file(path) as file:
        file.writelines(json.dumps(row, default=str) + "\n" for row in with_pass_rates(rows, verdicts))


def dry_run(run: DryRun, script: EvaluateScriptArguments) -> None:
    """Show what would be evaluated (`--dry_run`)."""
    rows, answers = run.attempt(script.test_rows, ([], "exact"))
    name = script.dataset_test_name or script.dataset_name or "nothing"
    show_rows(run, rows, source=name, joins=False, split="train" if script.pass_rates else "test")
    if not script.evaluates:
        run.line("", "no model to evaluate (model_name_or_path, engine or run)")
        return
    if script.out is None:
        run.add("--out FOLDER is missing: it keeps completions and figures, so that a killed run continues")
    if ACCURACY in script.metrics and rows and all(row["answer"] is None for row in rows):
        run.add(f"none of the {len(rows)} rows has an answer, so there is no accuracy. Name its column, or --metrics")
    rewards = run.attempt(lambda: script.build_metrics(answers), [])
    engine, plan = script.open_engine(), script.plan()
    dataset = to_dataset(rows, system_prompt=script.system_prompt, examples=script.few_shot_examples)
    tokenizer = None
    if rows:
        tokenizer, prefilled = run.attempt(
            lambda: check_prompts(engine, dataset["prompt"], script.max_completion_length), (None, False)
        )
        rewards, notes = fitted_to_prompts(rewards, opened=prefilled)
        for note in notes:
            run.warn(note)
    for reward in rewards:
        with run.catch():
            check_reward_columns(reward, dataset, dataset.column_names, "the test rows")
            reward.check_ready()
    with run.catch():
        check_ready(engine, "the model")
    run.section("completions")
    run.line("model", engine.name)
    count = len(rows) * len(plan.numbers)
    drawn = f", {plan.samples} samples per row at temperature {plan.sampling.temperature:g}" * bool(plan.samples)
    run.line("", f"{count}: {'greedy' * plan.greedy}{drawn}, up to {script.max_completion_length} tokens each")
    if tokenizer is not None:
        template = engine.chat_template_kwargs
        show_lengths(
            run, read_model(engine.tokenizer), dataset, completion=script.max_completion_length, template=template
        )
    show_scores(run, rewards, dataset if rows else None, tokenizer, engine.chat_template_kwargs, has_probe=False)


def check_prompts(engine: Engine, prompts: Sequence[Any], limit: int) -> tuple[Any, bool]:
    """The model's tokenizer, and whether its prompts open a thought; None and False where a server renders them.

    Raises `UsageError` where a prompt has no chat template, or leaves no room for `limit` tokens.
    """
    if engine.tokenizer is None:
        return None, False
    from trainers.common.prompts import PromptCheck
    from trainers.common.student import check_turn_end

    facts = read_model(engine.tokenizer)
    if facts.tokenizer is None:  # the check of the engine says why
        return None, False
    check = PromptCheck(facts, limit, template=engine.chat_template_kwargs)
    check.check_form(prompts[0], "the test rows")
    check.check_lengths(prompts, "the test rows")
    check_turn_end(facts, engine.chat_template_kwargs)
    warn_of_special_tags(facts.tokenizer, facts.name)
    return facts.tokenizer, opens_thought(facts.tokenizer, prompts[0], engine.chat_template_kwargs)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on the terminal; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield partial(bar.advance, task)


def compare(arguments: Sequence[str]) -> None:
    """`compare A B`: the paired differences of two evaluations."""
    parser = argparse.ArgumentParser(
        prog="rlkd evaluate compare",
        description="Compare two evaluations of the same rows and prompts, paired by row.",
    )
    parser.add_argument("first", type=Path, metavar="A", help="--out of an evaluation")
    parser.add_argument("second", type=Path, metavar="B", help="--out of the one that is held against it")
    parser.add_argument("--flips", type=int, default=5, help="rows with another verdict to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="figures and all flipped rows as JSON")
    given = parser.parse_args(arguments)
    found = compare_evaluations(read_evaluation(given.first), read_evaluation(given.second))
    if given.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        wide_console().print(render_comparison(found, flips=given.flips))


def command(arguments: Sequence[str]) -> str | int:
    """Run the command line; returns the exit status, or the message of a mistake."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "one process evaluates: start it with python, or serve the model (--engine http://HOST:PORT/v1#MODEL)"
    try:
        if arguments[:1] == ["compare"]:
            compare(arguments[1:])
        elif (script := parse(arguments)).dry_run:
            return dry_run_status("check", dry_run, [script], arguments)
        else:
            main(script)
    except (UsageError, EngineError) as error:
        return f"\n{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        return "\ninterrupted; the same command continues"
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
