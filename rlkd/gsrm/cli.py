"""`rlkd gsrm`: evaluates structure models, explains structure scores, evaluates judges.

Numpy and models are imported by the command that needs them, never for `--help`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from rlkd.data.rows import json_records
from rlkd.engines import EnginePool
from rlkd.errors import UsageError
from rlkd.gsrm.alignment import BUILT_IN as ALIGNMENTS
from rlkd.gsrm.alignment import best_branch
from rlkd.gsrm.decomposers import BUILT_IN as DECOMPOSERS
from rlkd.gsrm.decomposers import Level
from rlkd.gsrm.factory import default_alignment, make
from rlkd.gsrm.judges import BUILT_IN as JUDGES
from rlkd.gsrm.model import GSRM, compare_traces
from rlkd.structure import Structure

EVALUATE = """\
Evaluate a decomposer, a judge and alignment rules; every figure with a 95 % interval (bootstrap over questions).

On held-out problems with Socratic steps (--rows, --data): parse rate, step count, agreement of questions, answers and
meta parts on solutions joined into one paragraph; stability over layouts; faithfulness with swapped traces.

With --rationales: how well the structure reward tells right from wrong solutions (AUROC, over all solutions and within
each question), next to the answer of the last step alone, length, numbers alone, a crude cascade, shuffled teachers,
and with the last step of both sides removed; and how often it says nothing within a question.
FILE has one JSON object per line; further keys are ignored:

  {"question": "...", "rationales": [{"source": "human", "text": "...", "correct": true},
                                     {"source": "model-a", "text": "...", "correct": false}, ...]}

The trace of --teacher-source is the teacher's; it and the sources in --exclude are not compared."""

EXPLAIN = """\
Show why a student's trace has its score against a teacher's: steps side by side, verdicts, arithmetic.

  rlkd gsrm explain                                                        a built-in example
  rlkd gsrm explain --student FILE --teacher FILE [FILE ...] [--question Q]  two or more traces
  rlkd gsrm explain --student FILE --data DATA --row ID                    teacher traces from a row of a data file
  rlkd gsrm explain --rollouts FILE [--step N] [--index I]                 a recorded rollout of a run"""

JUDGES_DESCRIPTION = """\
Accuracy and both error rates of judges on labelled pairs of steps, with 95 % intervals.

  rlkd gsrm judges                                        the default judge on the shipped pairs
  rlkd gsrm judges --judge deterministic embedding --fit  with thresholds fitted on the other half first"""

# An example of our own, with two ways to the answer.
EXAMPLE_QUESTION = (
    "A baker bakes 4 trays of 12 rolls. He sells 30 rolls at $2 each and gives the rest away, 3 to each child. "
    "How many children get rolls?"
)
EXAMPLE_TEACHERS = (
    "He bakes 4 * 12 = 48 rolls. After the sale 48 - 30 = 18 rolls are left. So 18 / 3 = 6 children get rolls.",
    "The rolls of the sale would have served 30 / 3 = 10 children. All the rolls would serve 48 / 3 = 16 children. "
    "So 16 - 10 = 6 children get rolls.",
)
EXAMPLE_STUDENT = (
    "He bakes 4 * 12 = 48 rolls. After the sale 48 - 30 = 28 rolls are left. For the sold ones he gets 30 * 2 = $60. "
    "So 18 / 3 = 6 children get rolls."
)


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd gsrm`."""
    parser = argparse.ArgumentParser(prog="rlkd gsrm", description="Evaluate and explain structure models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    for run_command, add_options, summary, description in (
        (evaluate, _evaluate_options, "parse rate, agreement, stability, faithfulness, AUROC", EVALUATE),
        (explain, _explain_options, "the arithmetic of a structure score", EXPLAIN),
        (judges, _judges_options, "accuracy and error rates of judges", JUDGES_DESCRIPTION),
    ):
        described = description.replace("%", "%%")
        command = commands.add_parser(run_command.__name__, formatter_class=raw, help=summary, description=described)
        add_options(command)
        command.set_defaults(run=run_command)
    options = parser.parse_args(list(arguments))
    return options.run(options)


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model_options(parser)
    add(
        "--alignment",
        nargs="+",
        metavar="SPEC",
        help=f"alignment rules: {_named(ALIGNMENTS)} (default: all built-in ones; `ordered` not for a costly judge)",
    )
    add("--data", help="data file of rows with structures (default: the embedded GSM8K test sample)")
    add("--rows", type=_count, default=200, metavar="N", help="number of these rows; 0 for none (default: 200)")
    add("--rationales", type=Path, metavar="FILE", help="right and wrong solutions; see above")
    add("--teacher-source", default="human", metavar="NAME", help="source of teacher traces (default: human)")
    add("--exclude", nargs="*", default=["socratic"], metavar="NAME", help="excluded sources (default: socratic)")
    add("--first", type=_count, default=0, metavar="I", help="first row of --rationales (default: 0)")
    add("--limit", type=_count, metavar="N", help="number of rows of --rationales (all)")
    add("--seed", type=_count, default=0, help="seed of the bootstrap and the swaps (default: 0)")
    add("--draws", type=_count, default=2000, help="bootstrap draws (default: 2000)")
    add("--json", type=Path, metavar="FILE", help="output file for all figures")
    add(
        "--cache",
        type=Path,
        metavar="FILE",
        help="file that stores structures and verdicts of a model, so that an interrupted evaluation can be resumed. "
        "The key is the engine's name: for another model under the same name, use another file",
    )


def _explain_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model_options(parser)
    add(
        "--alignment",
        metavar="SPEC",
        help=f"alignment rule: {_named(ALIGNMENTS)} (default: ordered; teacher for a costly judge)",
    )
    add("--question", default="", help="the problem")
    add("--student", type=Path, metavar="FILE", help="the student's trace, as text")
    add("--teacher", type=Path, nargs="+", metavar="FILE", help="the teacher's traces, one per file")
    add("--data", help="data file, or gsm8k-sample")
    add("--row", metavar="ID", help="id of the row in --data with the teacher's traces")
    add("--rollouts", type=Path, metavar="FILE", help="rollouts of a run (OUTPUT_DIR/rollouts/*.jsonl)")
    add("--step", type=_count, metavar="N", help="training step (default: any)")
    add("--index", type=_count, metavar="I", help="index among these (default: the best structure)")


def _judges_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--judge", nargs="+", default=["deterministic"], metavar="SPEC", help=f"judges: {_named(JUDGES)}")
    add("--engine", metavar="SPEC", help="engine of the judge 'model'")
    add("--embedding-model", metavar="NAME", help="sentence encoder of the judge 'embedding'")
    add("--store", type=Path, help="file that stores the replies of the judge 'model'")
    tuned = parser.add_mutually_exclusive_group()
    tuned.add_argument("--threshold", type=float, help="threshold of the one judge named; for 'model' in nats")
    tuned.add_argument("--fit", action="store_true", help="fit each threshold on the half 'fit' first")
    add("--pairs", type=Path, help="labelled pairs of your own (default: the shipped ones)")
    add("--split", choices=("fit", "check", "all"), default="check", help="split (default: check)")
    add("--sample", type=int, metavar="N", help="number of pairs, drawn at random (seed 0)")
    add("--meta-only", action="store_true", help="drop question and answer from all steps")
    add("--json", action="store_true", help="print JSON")


def _model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--decomposer", default="rules", metavar="SPEC", help=f"decomposer: {_named(DECOMPOSERS)} (default: rules)")
    add("--engine", metavar="SPEC", help="decomposer engine: transformers:NAME, http://...#NAME")
    add("--max-new-tokens", type=_count, metavar="N", help="maximum tokens per structure")
    add("--level", choices=get_args(Level), help="level of the decomposer 'rules'")
    add("--as-written", action="store_true", help="no grounding of the decomposer 'generative'")
    add("--judge", default="deterministic", metavar="SPEC", help=f"judge: {_named(JUDGES)}")
    add("--judge-engine", metavar="SPEC", help="judge engine (default: --engine)")
    add("--threshold", type=float, help="judge threshold")
    add("--embedding-model", metavar="NAME", help="sentence encoder of the judge 'embedding'")
    add("--deadline", type=float, default=1800.0, metavar="S", help="seconds for one batch (default: 1800)")


def _named(built_in: Iterable[str]) -> str:
    return f"{', '.join(built_in)} or path/to/file.py:name"


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 0")
    return value


def _models(options: argparse.Namespace) -> tuple[Any, Any]:
    """The decomposer and the judge that the options name."""
    engines = EnginePool(options.deadline)
    try:
        decomposer = make(
            "decomposer",
            options.decomposer,
            engines=engines,
            engine=options.engine,
            max_new_tokens=options.max_new_tokens,
            ground=not options.as_written,
            level=options.level,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    engine = options.judge_engine or options.engine
    judge = _judge(options.judge, engines, engine, options, getattr(options, "cache", None))
    engines.check_ready()
    if (check := getattr(judge, "check_ready", None)) is not None:
        check()
    return decomposer, judge


def _judge(spec: str, engines: EnginePool, engine: str | None, options: argparse.Namespace, store: Path | None) -> Any:
    chosen = {"threshold": options.threshold, "embedding_model": options.embedding_model, "store": store}
    try:
        return make("judge", spec, engines=engines, engine=engine, **chosen)
    except ValueError as error:
        raise UsageError(str(error)) from error


def evaluate(options: argparse.Namespace) -> int:
    """`rlkd gsrm evaluate`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rlkd.data.loading import load_rows
    from rlkd.data.samples import SAMPLE
    from rlkd.gsrm.datasets import load_rationales
    from rlkd.gsrm.evaluation import evaluate_gsrm
    from rlkd.report.terminal import render_evaluation

    rows = []
    if options.rows:
        source = options.data or SAMPLE
        rows = [row for row in load_rows(source, split="test") if row["rationales"] and row["structures"]]
        if not rows:
            raise UsageError(f"{source}: no row has both a rationale and its structure; without such rows, --rows 0")
    if not rows and options.rationales is None:
        raise UsageError("nothing to evaluate: give --rows above 0, --rationales FILE, or both")
    rated = []
    if options.rationales is not None:
        sources = {"teacher": options.teacher_source, "exclude": options.exclude}
        rated = load_rationales(options.rationales, **sources, first=options.first, limit=options.limit)
    decomposer, judge = _models(options)
    rules = [make("alignment", spec) for spec in options.alignment or ALIGNMENTS]
    if options.alignment is None and getattr(judge, "costly", False):
        rules = [rule for rule in rules if not rule.every_pair]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        evaluation = evaluate_gsrm(
            decomposer,
            judge,
            rows=rows[: options.rows],
            rated=rated,
            alignments=rules,
            store=options.cache,
            draws=max(1, options.draws),
            seed=options.seed,
            progress=progress,
        )
    figures = evaluation.to_dict()
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console = Console()
    # The AUROC table has many columns; a file or a pipe has room for them.
    (console if console.is_terminal else Console(width=150)).print(render_evaluation(figures))
    return 0


def explain(options: argparse.Namespace) -> int:
    """`rlkd gsrm explain`."""
    from rich.console import Console
    from rich.text import Text

    from rlkd.report.terminal import render_score, show_scores

    console = Console()
    if options.rollouts is not None:
        if options.student or options.teacher or options.data:
            raise UsageError("--rollouts shows a recorded rollout; leave out --student, --teacher and --data")
        named = make("alignment", options.alignment) if options.alignment else None
        show_scores(_chosen_rollout(options), console, alignment=named)
        return 0
    decomposer, judge = _models(options)
    rule = make("alignment", options.alignment or default_alignment(judge))
    gsrm = GSRM(decomposer, judge, alignment=rule)
    question, student, teachers = _traces(options, decomposer)
    scores = compare_traces(gsrm, question, student, teachers)
    best = best_branch(scores)
    if question:
        console.print(Text(f"Question: {question}\n"))
    if len(scores) > 1:
        for score in scores:
            mark = "   <- the maximum over branches counts" if score is best else ""
            console.print(Text(f"branch {score.branch}: {score}{mark}"))
        console.print()
    console.print(render_score(best, rule))
    return 0


def _traces(options: argparse.Namespace, decomposer: Any) -> tuple[str, str, list[str | Structure]]:
    """The question, the student's trace and the teacher's: of the files, the row, or the example."""
    if options.data is not None or options.row is not None:
        if options.data is None or options.row is None or options.student is None or options.teacher:
            raise UsageError("a row of a data file goes with --data, --row and --student, and without --teacher")
        from rlkd.data.loading import load_rows
        from rlkd.gsrm.traces import question_in

        rows = {row["id"]: row for row in load_rows(options.data)}
        if options.row not in rows:
            raise UsageError(f"{options.data} has no row {options.row!r}; it has {', '.join(list(rows)[:5])} ...")
        row = rows[options.row]
        teachers: list[str | Structure] = list(row["rationales"])
        if row["structures"] and not getattr(decomposer, "decomposes_teachers", False):
            teachers = [Structure.from_list(steps) for steps in row["structures"]]
        if not teachers:
            raise UsageError(f"{options.data}, row {options.row!r}: no rationale and no structure to compare with")
        return question_in(row), _read(options.student), teachers
    if options.student is None and not options.teacher:
        return EXAMPLE_QUESTION, EXAMPLE_STUDENT, list(EXAMPLE_TEACHERS)
    if options.student is None or not options.teacher:
        raise UsageError("--student FILE and --teacher FILE [FILE ...] go together")
    return options.question, _read(options.student), [_read(path) for path in options.teacher]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error


def _chosen_rollout(options: argparse.Namespace) -> Any:
    from rlkd.report.terminal import best_rollout

    path = options.rollouts
    try:
        located = list(json_records(path, skip_unfinished=True))
    except (OSError, UsageError) as error:
        raise UsageError(f"{path} cannot be read as rollouts: {error}") from error
    for location, record in located:
        if not {"step", "prompt", "completion", "rewards"} <= record.keys():
            raise UsageError(f"{location}: not a rollout record: {json.dumps(record)[:80]}")
    records = [record for _, record in located if options.step in (None, record["step"])]
    at = "" if options.step is None else f" of step {options.step}"
    if not records:
        raise UsageError(f"{path}: no rollout{at}")
    if options.index is None:
        return best_rollout(records)
    if options.index >= len(records):
        raise UsageError(f"--index {options.index}: {path} has {len(records)} rollouts{at}, from 0 on")
    return records[options.index]


def judges(options: argparse.Namespace) -> int:
    """`rlkd gsrm judges`."""
    import random
    from dataclasses import asdict

    from rlkd.engines import run
    from rlkd.gsrm.judge_eval import evaluate_judge, fit_threshold, load_pairs, meta_only
    from rlkd.report.terminal import render_judge_errors

    def pairs_of(split: Any) -> list[Any]:
        pairs = load_pairs(options.pairs, split)
        if options.sample is not None and options.sample < len(pairs):
            pairs = random.Random(0).sample(pairs, options.sample)
        return meta_only(pairs) if options.meta_only else pairs

    if options.threshold is not None and len(options.judge) > 1:
        raise UsageError(f"--threshold {options.threshold} belongs to one judge; {len(options.judge)} are named")
    results = {}
    for spec in options.judge:
        judge = _judge(spec, EnginePool(None), options.engine, options, options.store)
        if options.fit:
            run(fit_threshold(judge, pairs_of("fit")))
        errors = run(evaluate_judge(judge, pairs_of(options.split)))
        threshold = getattr(judge, "threshold", None)
        results[spec] = {"threshold": threshold} | asdict(errors)
        if not options.json:
            from rich.console import Console

            title = spec if threshold is None else f"{spec}, threshold {threshold:g}"
            Console().print(render_judge_errors(title, errors))
    if options.json:
        print(json.dumps(results, indent=2))
    return 0
