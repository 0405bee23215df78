"""`rlkd gsrm`: what a structure model is worth, why a trace scores what it scores, and how good the judges are.

    rlkd gsrm evaluate [--rationales FILE] [...]     parse rate, agreement, stability, faithfulness, AUROC table
    rlkd gsrm explain [...]                          two traces, their steps, every verdict and the arithmetic
    rlkd gsrm judges [...]                           accuracy and errors of the judges on labelled pairs of steps

Numpy and models are imported by the command that needs them, never for `--help`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from rlkd.errors import UsageError
from rlkd.gsrm.alignment import NORMS, Norm, best_branch
from rlkd.gsrm.decomposers import Decomposer, DecompositionError, Level, Trace
from rlkd.gsrm.factory import DECOMPOSERS, JUDGES, Engines, make_decomposer, make_judge
from rlkd.gsrm.judges import Judge, JudgeError
from rlkd.gsrm.model import GSRM, Judgement, comparable
from rlkd.structure import Structure

EVALUATE = """\
Measure a decomposer and a judge; every figure with a 95 % interval (bootstrap over questions).

On held-out problems with Socratic steps (--rows, --data): parse rate, step count, agreement of questions, answers and
meta parts on solutions joined into one paragraph; stability over layouts; faithfulness with swapped traces.

With --rationales: how well the structure reward tells right from wrong solutions (AUROC, over all solutions and within
each question), beside length, numbers alone, a crude cascade, shuffled teachers, and with the last step of both sides
removed. FILE has one JSON object a line, further keys are passed over:

  {"question": "...", "rationales": [{"source": "human", "text": "...", "correct": true},
                                     {"source": "model-a", "text": "...", "correct": false}, ...]}

The trace of --teacher-source is the teacher's; it and the sources in --exclude are no candidates."""

EXPLAIN = """\
Show why a student's trace scores what it scores against a teacher's: steps side by side, verdicts, arithmetic.

  rlkd gsrm explain                                                        a built-in example
  rlkd gsrm explain --student FILE --teacher FILE [FILE ...] [--question Q]  two or more traces
  rlkd gsrm explain --student FILE --data DATA --row ID                    teacher traces from a row of a data file
  rlkd gsrm explain --rollouts FILE [--step N] [--index I]                 what a run recorded of a rollout"""

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
    parser = argparse.ArgumentParser(prog="rlkd gsrm", description="Structure models: measure and explain them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _evaluate_parser(commands)
    _explain_parser(commands)
    commands.add_parser("judges", help="accuracy and both error rates of the judges on labelled pairs of steps")
    if arguments[:1] == ["judges"]:
        from rlkd.gsrm.judge_eval import judges_main

        return judges_main(list(arguments[1:]))
    options = parser.parse_args(list(arguments))
    return evaluate(options) if options.command == "evaluate" else explain(options)


def _evaluate_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="parse rate, agreement, stability, faithfulness, AUROC table",
        description=EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(parser)
    parser.add_argument(
        "--norm", nargs="+", choices=NORMS, help="norms to measure (default: all; `ordered` not for --judge model)"
    )
    parser.add_argument("--data", help="rows with structures: a data file (default: the embedded GSM8K test sample)")
    parser.add_argument("--rows", type=_count, default=200, metavar="N", help="so many of them; 0: none (200)")
    parser.add_argument("--rationales", type=Path, metavar="FILE", help="right and wrong solutions; see above")
    parser.add_argument("--teacher-source", default="human", metavar="NAME", help="whose trace teaches (human)")
    parser.add_argument(
        "--exclude", nargs="*", default=["socratic"], metavar="NAME", help="sources left out (socratic)"
    )
    parser.add_argument("--first", type=_count, default=0, metavar="I", help="first row of --rationales (0)")
    parser.add_argument("--limit", type=_count, metavar="N", help="so many rows of --rationales (all)")
    parser.add_argument("--seed", type=_count, default=0, help="of the bootstrap and the swaps (0)")
    parser.add_argument("--draws", type=_count, default=2000, help="of the bootstrap (2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="keep structures (and verdicts of --judge model) there, so that a killed evaluation goes on. They are "
        "kept under the engine's name: for another model under the same name, take another file",
    )


def _explain_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="why a trace scores what it scores",
        description=EXPLAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(parser)
    parser.add_argument("--norm", choices=NORMS, default="teacher", help="how steps become a score (teacher)")
    parser.add_argument("--question", default="", help="the problem")
    parser.add_argument("--student", type=Path, metavar="FILE", help="the student's trace, as text")
    parser.add_argument("--teacher", type=Path, nargs="+", metavar="FILE", help="the teacher's traces, one a file")
    parser.add_argument("--data", help="a data file, or gsm8k-sample")
    parser.add_argument("--row", metavar="ID", help="id of the row in --data whose teacher traces are taken")
    parser.add_argument(
        "--rollouts", type=Path, metavar="FILE", help="rollouts of a run (OUTPUT_DIR/rollouts/*.jsonl)"
    )
    parser.add_argument("--step", type=_count, metavar="N", help="training step (default: any)")
    parser.add_argument("--index", type=_count, metavar="I", help="place among these (default: the best structure)")


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--decomposer", choices=DECOMPOSERS, default="rules", help="how traces become steps (rules)")
    parser.add_argument("--engine", metavar="SPEC", help="model that decomposes: transformers:NAME, http://...#NAME")
    parser.add_argument("--max-new-tokens", type=_count, metavar="N", help="room for a structure")
    parser.add_argument("--level", choices=get_args(Level), default="calculation", help="of rules")
    parser.add_argument("--as-written", action="store_true", help="generative: leave the reply as the model wrote it")
    parser.add_argument("--judge", choices=JUDGES, default="deterministic", help="how steps are compared")
    parser.add_argument("--judge-engine", metavar="SPEC", help="model of --judge model (default: --engine)")
    parser.add_argument("--threshold", type=float, help="of the judges deterministic and embedding")
    parser.add_argument("--embedding-model", metavar="NAME", help="of --judge embedding")
    parser.add_argument("--deadline", type=float, default=1800.0, metavar="S", help="seconds for one batch (1800)")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 0")
    return value


def _models(options: argparse.Namespace) -> tuple[Decomposer, Judge]:
    engines = Engines(options.deadline)
    try:
        decomposer = make_decomposer(
            options.decomposer,
            engines,
            options.engine,
            max_new_tokens=options.max_new_tokens,
            ground=not options.as_written,
            level=options.level,
        )
        judge = make_judge(
            options.judge,
            engines,
            options.judge_engine or options.engine,
            threshold=options.threshold,
            embedding_model=options.embedding_model,
            store=getattr(options, "cache", None),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    engines.check_ready()
    return decomposer, judge


def evaluate(options: argparse.Namespace) -> int:
    """`rlkd gsrm evaluate`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rlkd.data.loading import load_rows
    from rlkd.data.samples import SAMPLE
    from rlkd.gsrm.evaluation import evaluate_gsrm, load_rationales
    from rlkd.report.terminal import render_evaluation

    rows = []
    if options.rows:
        source = options.data or SAMPLE
        rows = [row for row in load_rows(source, split="test") if row["rationales"] and row["structures"]]
        if not rows:
            raise UsageError(f"{source}: no row has both a rationale and its structure; without such rows, --rows 0")
    if not rows and options.rationales is None:
        raise UsageError("nothing to measure: give --rows above 0, --rationales FILE, or both")
    rated = []
    if options.rationales is not None:
        rated = load_rationales(
            options.rationales,
            teacher=options.teacher_source,
            exclude=options.exclude,
            first=options.first,
            limit=options.limit,
        )
    norms: list[Norm] = options.norm or [n for n in NORMS if n != "ordered" or options.judge != "model"]
    decomposer, judge = _models(options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        evaluation = evaluate_gsrm(
            decomposer,
            judge,
            rows=rows[: options.rows],
            rated=rated,
            norms=norms,
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

    console = Console()
    if options.rollouts is not None:
        if options.student or options.teacher or options.data:
            raise UsageError("--rollouts shows what a run recorded; leave out --student, --teacher and --data")
        _explain_rollout(options, console)
        return 0
    question, student, teachers = _traces(options)
    judgements = _judged(*_models(options), options.norm, question, student, teachers)
    _show(console, question, judgements)
    return 0


def _traces(options: argparse.Namespace) -> tuple[str, str, list[str | Structure]]:
    """The question, the student's trace and the teacher's: the files', the row's, or the example's."""
    if options.data is not None or options.row is not None:
        if options.data is None or options.row is None or options.student is None or options.teacher:
            raise UsageError("a row of a data file goes with --data, --row and --student, and without --teacher")
        from rlkd.data.loading import load_rows
        from rlkd.data.rows import question_of

        rows = {row["id"]: row for row in load_rows(options.data)}
        if options.row not in rows:
            raise UsageError(f"{options.data} has no row {options.row!r}; it has {', '.join(list(rows)[:5])} ...")
        row = rows[options.row]
        teachers: list[str | Structure] = list(row["rationales"])
        if options.decomposer not in ("rules", "generative") and row["structures"]:
            teachers = [Structure.from_list(steps) for steps in row["structures"]]
        if not teachers:
            raise UsageError(f"{options.data}, row {options.row!r}: no rationale and no structure to compare with")
        return row.get("question") or question_of(row["prompt"]), _read(options.student), teachers
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


def _judged(
    decomposer: Decomposer,
    judge: Judge,
    norm: Norm,
    question: str,
    student: str,
    teachers: Sequence[str | Structure],
) -> list[Judgement]:
    """The judgement against each of the teacher's branches that has something to compare."""
    from rlkd.engines import run

    gsrm = GSRM(decomposer, judge, norm=norm)
    mine = Trace(question, student)
    theirs = [Trace(question, text, teacher=True) for text in teachers if isinstance(text, str)]
    found = dict(zip([mine, *theirs], run(gsrm.structure([mine, *theirs])), strict=True))
    for trace, structure in found.items():
        if isinstance(structure, DecompositionError):
            whose = "student" if trace is mine else "teacher"
            raise UsageError(f"the {whose}'s trace cannot be decomposed: {structure}")
    branches = [found[Trace(question, t, teacher=True)] if isinstance(t, str) else t for t in teachers]
    usable = [branch for branch in branches if isinstance(branch, Structure) and comparable(branch, norm)]
    if not usable:
        raise UsageError(
            "not applicable: no teacher trace has a step to compare with, so a run leaves this reward out"
        )
    own = found[mine]
    assert isinstance(own, Structure)
    [judged] = run(gsrm.compare([own], [usable]))
    if isinstance(judged, JudgeError):
        raise UsageError(f"the judge gave no verdict: {judged}")
    return judged


def _show(console: Any, question: str, judgements: Sequence[Judgement]) -> None:
    from rich.text import Text

    from rlkd.report.terminal import render_judgement

    best = best_branch([judgement.score for judgement in judgements])
    if question:
        console.print(Text(f"Question: {question}\n"))
    if len(judgements) > 1:
        for judgement in judgements:
            mark = "   <- the maximum over branches counts" if judgement.score.branch == best.branch else ""
            console.print(Text(f"branch {judgement.score.branch}: {judgement.score}{mark}"))
        console.print()
    console.print(render_judgement(judgements[best.branch].to_dict()))


def _explain_rollout(options: argparse.Namespace, console: Any) -> None:
    from rich.text import Text

    from rlkd.report.terminal import arithmetic, best_rollout, show_rollout

    records = [
        record for record in _rollouts(options.rollouts) if options.step is None or record.get("step") == options.step
    ]
    at = "" if options.step is None else f" of step {options.step}"
    if not records:
        raise UsageError(f"{options.rollouts}: no rollout{at}")
    if options.index is None:
        record = best_rollout(records)
    elif options.index < len(records):
        record = records[options.index]
    else:
        raise UsageError(f"--index {options.index}: {options.rollouts} has {len(records)} rollouts{at}, from 0 on")
    assert record is not None
    show_rollout(record, console)
    details = {n: o["detail"] for n, o in record["rewards"].items() if "verdicts" in (o.get("detail") or {})}
    for name, detail in details.items():
        console.print(Text(f"\n{name}:", style="bold"), *map(Text, arithmetic(detail)), sep="\n")
    if not details:
        console.print(
            Text("No reward of this rollout compared structures (not applicable, failed, or not in the run).")
        )


def _rollouts(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a rollouts file; a last line that a kill cut short is passed over."""
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for count, line in enumerate(stream, start=1):
                if not line.endswith("\n"):
                    return
                record = json.loads(line)
                if not isinstance(record, dict) or not {"step", "prompt", "completion", "rewards"} <= record.keys():
                    raise UsageError(f"{path}, line {count}: no rollout record, found {line[:80]!r}")
                yield record
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as rollouts: {error}") from error
