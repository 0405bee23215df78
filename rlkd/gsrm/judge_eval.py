"""Evaluates judges: their accuracy and error rates on labelled pairs of steps.

The shipped pairs, their making and their limits: `docs/judges.md`. A file of your own has one JSON object per line:
`student` and `teacher` (steps), `label` (`meta`, `question`, `answer`: true or false), and, optionally, `kind` (any
word), `split` (`fit` or `check`) and `source` (the problem, or a list that begins with it: pairs of one problem hang
together, which widens the intervals; without it each pair counts by itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from rlkd.data.rows import json_records
from rlkd.errors import UsageError
from rlkd.gsrm.judges import Judge, JudgeError
from rlkd.gsrm.prompts import Field
from rlkd.statistics import Interval, clustered_share
from rlkd.structure import FIELDS, Step, Structure

Split = Literal["fit", "check", "all"]


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two steps, and whether their fields agree."""

    student: Step
    teacher: Step
    label: dict[Field, bool]
    kind: str = "pair"
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class FieldErrors:
    """The errors of a judge on one field, with intervals over problems (`clustered_share`); None without a pair.

    `accuracy`: share of right verdicts; `false_yes`: share of yes among pairs that differ; `false_no`: share of no
    among pairs that agree.
    """

    accuracy: Interval | None
    false_yes: Interval | None
    false_no: Interval | None


@dataclass(frozen=True, slots=True)
class JudgeErrors:
    """A judge's errors by field, for each kind too; `failed`: pairs without a verdict, which count nowhere else."""

    pairs: int
    failed: int
    fields: dict[Field, FieldErrors]
    kinds: dict[str, dict[Field, FieldErrors]]


def load_pairs(path: Path | None = None, split: Split = "check") -> list[LabelledPair]:
    """Labelled pairs from a file (None: the shipped one). Raises `UsageError` with the line that does not fit."""
    path = path or Path(str(files("rlkd.assets").joinpath("step_pairs.jsonl")))
    if not path.is_file():
        raise UsageError(f"there is no file {path.absolute()}")
    pairs = []
    for location, record in json_records(path):
        try:
            label = record["label"]
            if set(label) != set(FIELDS) or not all(isinstance(value, bool) for value in label.values()):
                raise ValueError(f"label {label!r}: expected true or false for each of {', '.join(FIELDS)}")
            source = record.get("source")
            problem = str(source[0] if isinstance(source, list) and source else source or location)
            pair = LabelledPair(
                Step(**record["student"]), Step(**record["teacher"]), label, record.get("kind", "pair"), problem
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{location}: {error!r}") from None
        if split in ("all", record.get("split", split)):
            pairs.append(pair)
    if not pairs:
        raise UsageError(f"{path}: no pairs in the split {split!r}")
    return pairs


def meta_only(pairs: Sequence[LabelledPair]) -> list[LabelledPair]:
    """The pairs without question and answer, to evaluate a judge without arithmetic to rely on."""
    return [
        LabelledPair(Step(p.student.meta), Step(p.teacher.meta), {"meta": p.label["meta"]}, p.kind, p.problem)
        for p in pairs
        if p.student.meta and p.teacher.meta
    ]


async def evaluate_judge(judge: Judge, pairs: Sequence[LabelledPair]) -> JudgeErrors:
    """Judge all pairs in one call, and count the errors.

    The fields are evaluated separately: question and answer on steps that both get the teacher's meta part, so that a
    wrong verdict on meta hides none on the others.
    """
    unchanged = [(Structure([pair.student]), Structure([pair.teacher])) for pair in pairs]
    aligned = [
        (Structure([Step(pair.teacher.meta, pair.student.question, pair.student.answer)]), Structure([pair.teacher]))
        for pair in pairs
    ]
    judged = await judge.judge(unchanged + aligned)
    verdicts: list[tuple[LabelledPair, dict[Field, bool]]] = []
    failed = 0
    for pair, whole, parts in zip(pairs, judged[: len(pairs)], judged[len(pairs) :], strict=True):
        if isinstance(whole, JudgeError) or isinstance(parts, JudgeError):
            failed += 1
            continue
        [first], [second] = whole, parts
        verdicts.append(
            (pair, {"meta": first.meta, "question": second.question is True, "answer": second.answer is True})
        )
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    return JudgeErrors(
        len(pairs),
        failed,
        _errors(verdicts),
        {kind: _errors([(pair, verdict) for pair, verdict in verdicts if pair.kind == kind]) for kind in kinds},
    )


def _errors(verdicts: Sequence[tuple[LabelledPair, dict[Field, bool]]]) -> dict[Field, FieldErrors]:
    errors = {}
    fields: tuple[Field, ...] = get_args(Field)
    for field in fields:
        labelled = [
            (verdict[field], pair.label[field], pair.problem or f"pair {index}")
            for index, (pair, verdict) in enumerate(verdicts)
            if field in pair.label
        ]
        errors[field] = FieldErrors(
            accuracy=_share((yes == label, problem) for yes, label, problem in labelled),
            false_yes=_share((yes, problem) for yes, label, problem in labelled if not label),
            false_no=_share((not yes, problem) for yes, label, problem in labelled if label),
        )
    return errors


def _share(events: Iterable[tuple[bool, str]]) -> Interval | None:
    counted = list(events)
    return (
        clustered_share([float(event) for event, _ in counted], [problem for _, problem in counted])
        if counted
        else None
    )


async def fit_threshold(judge: Any, pairs: Sequence[LabelledPair]) -> float:
    """Set the one of the judge's `thresholds` with the least sum of both error rates on meta, and return it.

    The middle one of equally good thresholds (our choice: it is farthest from both mistakes).
    """
    costs: dict[float, float] = {}
    for threshold in judge.thresholds:
        judge.threshold = threshold
        errors = (await evaluate_judge(judge, pairs)).fields["meta"]
        costs[threshold] = sum(rate.value for rate in (errors.false_yes, errors.false_no) if rate is not None)
    best = [threshold for threshold, cost in costs.items() if cost == min(costs.values())]
    judge.threshold = best[len(best) // 2]
    return judge.threshold
