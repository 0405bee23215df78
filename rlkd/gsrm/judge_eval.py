"""How often a judge errs, on labelled pairs of steps; the command `rlkd gsrm judges`.

    rlkd gsrm judges                                        the default judge on the pairs that are shipped
    rlkd gsrm judges --judge deterministic embedding --fit  with thresholds fitted on the other half first

The pairs, how they were made and what they cannot show: `docs/judges.md`. A file of one's own (`--pairs`) has one JSON
object a line: `student` and `teacher` (steps), `label` (`meta`, `question`, `answer`: true or false), and, if wanted,
`kind` (any word) and `split` (`fit` or `check`).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.gsrm.factory import JUDGES, Engines
from rlkd.gsrm.judges import MINILM, DeterministicJudge, EmbeddingJudge, Field, Judge, JudgeError, ModelJudge
from rlkd.statistics import Interval, estimate
from rlkd.structure import FIELDS, Step, Structure

Split = Literal["fit", "check", "all"]

# What is tried where a threshold is fitted: shares of words, cosines, and margins in nats.
GRIDS: dict[str, tuple[float, ...]] = {
    "deterministic": tuple(round(0.3 + 0.05 * i, 2) for i in range(15)),
    "embedding": tuple(round(0.6 + 0.01 * i, 2) for i in range(40)),
    "model": tuple(0.125 * i for i in range(-40, 81)),
}


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two steps, and whether their fields agree."""

    student: Step
    teacher: Step
    label: dict[Field, bool]
    kind: str = "pair"


@dataclass(frozen=True, slots=True)
class FieldErrors:
    """How a judge does on one field. None where there is nothing to measure it on.

    `accuracy`: share of right verdicts; `false_yes`: share of yes among pairs that differ; `false_no`: share of no
    among pairs that agree. Each with Wilson's interval.
    """

    accuracy: Interval | None
    false_yes: Interval | None
    false_no: Interval | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A judge's errors by field, for each kind too; `failed`: pairs without a verdict, which count nowhere else."""

    pairs: int
    failed: int
    fields: dict[Field, FieldErrors]
    kinds: dict[str, dict[Field, FieldErrors]]


def load_pairs(path: Path | None = None, split: Split = "check") -> list[LabelledPair]:
    """Labelled pairs from a file (None: the shipped one). Raises `UsageError` with the line that does not fit."""
    if path is None:
        text = files("rlkd.assets").joinpath("step_pairs.jsonl").read_text(encoding="utf-8")
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise UsageError(f"{path}: no such file; expected labelled pairs, one JSON object a line")
    pairs = []
    for place, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            label = record["label"]
            if set(label) != set(FIELDS) or not all(isinstance(value, bool) for value in label.values()):
                raise ValueError(f"label {label!r}: expected true or false for each of {', '.join(FIELDS)}")
            pair = LabelledPair(
                Step(**record["student"]), Step(**record["teacher"]), label, record.get("kind", "pair")
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path or 'step_pairs.jsonl'}, line {place}: {error!r}") from None
        if split in ("all", record.get("split", split)):
            pairs.append(pair)
    if not pairs:
        raise UsageError(f"{path or 'step_pairs.jsonl'}: no pairs in the split {split!r}")
    return pairs


def meta_only(pairs: Sequence[LabelledPair]) -> list[LabelledPair]:
    """The pairs without question and answer: how well a judge does where there is no arithmetic to go by."""
    return [
        LabelledPair(Step(p.student.meta), Step(p.teacher.meta), {"meta": p.label["meta"]}, p.kind)
        for p in pairs
        if p.student.meta and p.teacher.meta
    ]


async def measure(judge: Judge, pairs: Sequence[LabelledPair]) -> Measured:
    """Judge all pairs in one call, and count.

    The fields are measured apart: question and answer on steps that both get the teacher's meta part, so that a wrong
    verdict on meta hides none on the others.
    """
    as_they_are = [(Structure([pair.student]), Structure([pair.teacher])) for pair in pairs]
    aligned = [
        (Structure([Step(pair.teacher.meta, pair.student.question, pair.student.answer)]), Structure([pair.teacher]))
        for pair in pairs
    ]
    judged = await judge.judge(as_they_are + aligned)
    outcomes: list[tuple[LabelledPair, dict[Field, bool]]] = []
    failed = 0
    for pair, whole, parts in zip(pairs, judged[: len(pairs)], judged[len(pairs) :], strict=True):
        if isinstance(whole, JudgeError) or isinstance(parts, JudgeError):
            failed += 1
            continue
        found: dict[Field, bool] = {"meta": whole[0].meta}
        found["question"], found["answer"] = parts[0].question is True, parts[0].answer is True
        outcomes.append((pair, found))
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    return Measured(
        len(pairs),
        failed,
        _errors(outcomes),
        {kind: _errors([(pair, found) for pair, found in outcomes if pair.kind == kind]) for kind in kinds},
    )


def _errors(outcomes: Sequence[tuple[LabelledPair, dict[Field, bool]]]) -> dict[Field, FieldErrors]:
    errors = {}
    fields: tuple[Field, ...] = get_args(Field)
    for field in fields:
        said = [(found[field], pair.label[field]) for pair, found in outcomes if field in pair.label]
        right = [float(yes == label) for yes, label in said]
        false_yes = [float(yes) for yes, label in said if not label]
        false_no = [float(not yes) for yes, label in said if label]
        errors[field] = FieldErrors(*(estimate(values) if values else None for values in (right, false_yes, false_no)))
    return errors


async def fit_threshold(name: str, judge: Judge, pairs: Sequence[LabelledPair]) -> float:
    """Give the judge the threshold with the least sum of both error rates on meta, and return it.

    Of equally good ones the middle one is taken (our choice: it lies farthest from both mistakes).
    """
    attribute = "margin" if name == "model" else "threshold"
    costs: dict[float, float] = {}
    for threshold in GRIDS[name]:
        setattr(judge, attribute, threshold)
        errors = (await measure(judge, pairs)).fields["meta"]
        costs[threshold] = sum(rate.value for rate in (errors.false_yes, errors.false_no) if rate is not None)
    best = [threshold for threshold, cost in costs.items() if cost == min(costs.values())]
    setattr(judge, attribute, best[len(best) // 2])
    return best[len(best) // 2]


def judges_main(arguments: Sequence[str]) -> int:
    """`rlkd gsrm judges`: print how often each judge errs."""
    parser = argparse.ArgumentParser(
        prog="rlkd gsrm judges",
        description="Accuracy and both error rates of judges on labelled pairs of steps, with 95 %% intervals.",
    )
    parser.add_argument("--judge", nargs="+", choices=JUDGES, default=["deterministic"], metavar="NAME")
    parser.add_argument("--engine", help="of the judge 'model': http://host:port/v1#model or transformers:path")
    parser.add_argument("--embedding-model", default=MINILM, help="of the judge 'embedding': folder or hub id")
    parser.add_argument("--store", type=Path, help="file that keeps the answers of the judge 'model'")
    tuned = parser.add_mutually_exclusive_group()
    tuned.add_argument("--threshold", type=float, help="of the one judge named; for 'model' its margin in nats")
    tuned.add_argument("--fit", action="store_true", help="fit each threshold on the half 'fit' first")
    parser.add_argument("--pairs", type=Path, help="labelled pairs of your own (default: those that are shipped)")
    parser.add_argument("--split", choices=get_args(Split), default="check", help="default: check")
    parser.add_argument("--sample", type=int, help="so many pairs, drawn at random (seed 0)")
    parser.add_argument("--meta-only", action="store_true", help="leave question and answer out of all steps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(arguments))
    if options.threshold is not None and len(options.judge) > 1:
        parser.error(f"--threshold {options.threshold} belongs to one judge; {len(options.judge)} are named")
    if "model" in options.judge and not options.engine:
        parser.error("the judge 'model' needs --engine: http://host:port/v1#model or transformers:path")
    pairs = _pairs(options, options.split)
    results = {}
    for name in options.judge:
        try:
            judge = _judge(name, options)
        except ValueError as error:
            parser.error(str(error))
        threshold = None
        if options.fit:
            threshold = run(fit_threshold(name, judge, _pairs(options, "fit")))
        measured = run(measure(judge, pairs))
        results[name] = {"threshold": threshold if threshold is not None else _threshold(judge)} | asdict(measured)
        if not options.json:
            _print(f"{name}, threshold {results[name]['threshold']:g}", measured)
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


def _judge(name: str, options: argparse.Namespace) -> Judge:
    given = {} if options.threshold is None else {"margin" if name == "model" else "threshold": options.threshold}
    if name == "deterministic":
        return DeterministicJudge(**given)
    if name == "embedding":
        return EmbeddingJudge(options.embedding_model, **given)
    engine = Engines(deadline=None).open("judge 'model'", options.engine)
    return ModelJudge(engine, deadline=None, store=options.store, **given)


def _threshold(judge: Judge) -> float:
    return judge.margin if isinstance(judge, ModelJudge) else judge.threshold  # type: ignore[attr-defined]


def _pairs(options: argparse.Namespace, split: Split) -> list[LabelledPair]:
    pairs = load_pairs(options.pairs, split)
    if options.sample is not None and options.sample < len(pairs):
        pairs = random.Random(0).sample(pairs, options.sample)
    return meta_only(pairs) if options.meta_only else pairs


def _print(title: str, measured: Measured) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("field", "accuracy", "false yes", "false no", title=title, title_justify="left")
    for field, errors in measured.fields.items():
        if errors.accuracy is None:
            continue
        table.add_row(field, _cell(errors.accuracy), _cell(errors.false_yes), _cell(errors.false_no))
    console.print(table)
    kinds = Table("kind", "pairs", "meta wrong", "question wrong", "answer wrong")
    for kind, fields in measured.kinds.items():
        count = fields["meta"].accuracy
        wrong = [
            round((1 - each.accuracy.value) * each.accuracy.n) if each.accuracy else 0 for each in fields.values()
        ]
        kinds.add_row(kind, str(count.n if count else 0), *map(str, wrong))
    console.print(kinds)
    console.print(f"{measured.pairs} pairs, {measured.failed} without a verdict\n")


def _cell(rate: Interval | None) -> str:
    return "-" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, n = {rate.n})"
