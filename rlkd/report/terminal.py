"""Terminal reports: a rollout with its rewards, the arithmetic of a structure score, the tables of an evaluation.

Takes plain records (of a run's `rollouts/rank0.jsonl`, `BranchScore.to_dict()`, `Evaluation.to_dict()`), so recorded
runs can be shown as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlkd.data.rows import question_of
from rlkd.gsrm.alignment import BUILT_IN, Alignment, BranchScore, Explanation
from rlkd.gsrm.alignment.contract import explain_plainly
from rlkd.gsrm.factory import make
from rlkd.structure import Step

if TYPE_CHECKING:
    from rlkd.gsrm.judge_eval import JudgeErrors
    from rlkd.statistics import Interval


def show_rollout(
    record: Mapping[str, Any], console: Console | None = None, *, alignment: Alignment | None = None
) -> None:
    """Print one rollout record; `alignment` is the rule that scored it, where that is not a built-in one."""
    parts: list[RenderableType] = [
        Text(f"Rollout of step {record['step']}, row {record.get('id')}", style="bold"),
        Text(f"Question: {question_of(record['prompt'])}"),
        Text(f"Student:  {record['completion'].strip()}"),
        Text(f"Gold:     {record.get('answer')}"),
    ]
    for name, outcome in record["rewards"].items():
        parts.append(Text(f"{name}: {_outcome(outcome)}"))
        detail = outcome.get("detail") or {}
        if "verdicts" in detail:
            parts.append(_steps_table(BranchScore.from_dict(detail), alignment))
    if record["advantage"] is not None:  # a failed reward may have ended the run before there was one
        parts.append(Text(f"advantage within its group: {record['advantage']:+.3f}"))
    (console or Console()).print(Group(*parts))


def best_rollout(records: Sequence[Mapping[str, Any]], reward: str = "structure") -> Mapping[str, Any] | None:
    """The rollout with the highest score of a reward, the latest of equals; without that reward the last rollout."""

    def value(record: Mapping[str, Any]) -> float:
        return record["rewards"].get(reward, {}).get("value", float("-inf"))

    return max(reversed(records), key=value, default=None)  # the first maximum of those in reverse


def _outcome(outcome: Mapping[str, Any]) -> str:
    if outcome["status"] == "score":
        return f"{outcome['value']:.3f}"
    cause = f" ({outcome['cause']})" if outcome.get("cause") else ""
    return outcome["status"].replace("_", " ") + cause


def show_scores(record: Mapping[str, Any], console: Console, *, alignment: Alignment | None = None) -> None:
    """Print one rollout record, and the arithmetic of its structure scores."""
    show_rollout(record, console, alignment=alignment)
    details = {n: o["detail"] for n, o in record["rewards"].items() if "verdicts" in (o.get("detail") or {})}
    for name, detail in details.items():
        lines = arithmetic(BranchScore.from_dict(detail), alignment)
        console.print(Text(f"\n{name}:", style="bold"), *map(Text, lines), sep="\n")
    if not details:
        console.print("No reward of this rollout compared structures (not applicable, failed, or not in the run).")


def render_score(score: BranchScore, alignment: Alignment | None = None) -> RenderableType:
    """Why a structure has its score: steps side by side, verdicts, and the arithmetic down to the value."""
    return Group(_steps_table(score, alignment), *map(Text, arithmetic(score, alignment)))


def arithmetic(score: BranchScore, alignment: Alignment | None = None) -> list[str]:
    """The arithmetic of a structure score, line by line."""
    why = _explanation(score, alignment)
    labels = [str(i) for i in range(1, len(score.steps) + 1)]
    if score.matches is not None:
        labels = [f"{student + 1} ~ {teacher + 1}" for student, teacher in score.matches]
    lines = [f"step {label}: {step}" for label, step in zip(labels, why.steps, strict=True)]
    total = sum(score.steps)
    terms = " + ".join(f"{points:g}" for points in score.steps)
    lines.append(f"sum R: {terms} = {total:g}" if terms else "sum R: nothing to sum = 0")
    meaning = f" ({why.divisor})" if why.divisor else ""
    lines.append(f"alignment {score.alignment}: {total:g} / {score.divisor:g} = {score.value:.4g}{meaning}")
    return [*lines, *why.notes]


def _explanation(score: BranchScore, alignment: Alignment | None) -> Explanation:
    if alignment is not None and alignment.name == score.alignment:
        return alignment.explain(score)
    # The name of a user's rule is not enough to load it.
    return _built_in(score.alignment).explain(score) if score.alignment in BUILT_IN else explain_plainly(score)


@cache
def _built_in(alignment: str) -> Alignment:
    made: Alignment = make("alignment", alignment)
    return made


def render_evaluation(evaluation: Mapping[str, Any]) -> RenderableType:
    """The tables of an `Evaluation.to_dict()`."""
    setup = {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in evaluation["setup"].items()}
    parts: list[RenderableType] = [Text(", ".join(f"{name} {value}" for name, value in setup.items()))]
    titles = {
        "joined": "solutions joined into one paragraph, against their gold steps",
        "stability": "the same solution in another layout",
        "faithfulness": "each question with the trace of another one",
    }
    parts += [_figures(title, evaluation[section]) for section, title in titles.items() if evaluation[section]]
    for rule, reached in evaluation["at_shuffled_level"].items():
        verb = "fall" if reached else "do NOT fall"
        parts.append(Text(f"alignment {rule}: swapped traces {verb} to the shuffled level"))
    if evaluation["auroc"]:
        table = Table(title="AUROC of right against wrong solutions [95 % interval]", title_justify="left")
        table.add_column("score", overflow="fold", min_width=20)
        for column in ("all together", "within questions", "minus length", "within, minus length"):
            table.add_column(column, overflow="fold")
        for row in evaluation["auroc"]:
            figures = (row[key] for key in ("pooled", "within", "over_length", "within_over_length"))
            table.add_row(row["name"], *map(_figure, figures))
        parts.append(table)
        parts.append(Text("A length counts in whichever sign tells better; ties count one half."))
    if evaluation.get("spread"):
        rules = list(evaluation["spread"])
        table = Table(title="scores within questions, as in a group of GRPO [95 % interval]", title_justify="left")
        for column in ("share of", *rules):
            table.add_column(column, overflow="fold")
        for label in evaluation["spread"][rules[0]]:
            table.add_row(label, *(_figure(evaluation["spread"][rule][label]) for rule in rules))
        parts.append(table)
    if evaluation["over_rules"]:
        title = "AUROC gained over rules + deterministic, paired"
        parts.append(_figures(title, evaluation["over_rules"], "alignment", "gain"))
    for cause, count in list(evaluation["failures"].items())[:_CAUSES]:
        parts.append(Text(f"failed {count} x {cause}"))
    if (hidden := len(evaluation["failures"]) - _CAUSES) > 0:
        parts.append(Text(f"and {hidden} more causes of failure"))
    return Group(*parts)


_CAUSES = 5


def _figures(title: str, figures: Mapping[str, Any], name: str = "", value: str = "value") -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(name, overflow="fold")
    table.add_column(f"{value} [95 % interval]", no_wrap=True)
    for label, figure in figures.items():
        table.add_row(label, _figure(figure))
    return table


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "n/a"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def render_judge_errors(title: str, errors: JudgeErrors) -> RenderableType:
    """The tables of a judge's errors."""

    def cell(rate: Interval | None) -> str:
        return "-" if rate is None else f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}, n = {rate.n})"

    table = Table("field", "accuracy", "false yes", "false no", title=title, title_justify="left")
    for field, rates in errors.fields.items():
        if rates.accuracy is not None:
            table.add_row(field, cell(rates.accuracy), cell(rates.false_yes), cell(rates.false_no))
    kinds = Table("kind", "pairs", "meta wrong", "question wrong", "answer wrong")
    for kind, fields in errors.kinds.items():
        count = fields["meta"].accuracy
        accuracies = [rates.accuracy for rates in fields.values()]
        wrong = [round((1 - accuracy.value) * accuracy.n) if accuracy else 0 for accuracy in accuracies]
        kinds.add_row(kind, str(count.n if count else 0), *map(str, wrong))
    return Group(table, kinds, Text(f"{errors.pairs} pairs, {errors.failed} without a verdict\n"))


def _steps_table(score: BranchScore, alignment: Alignment | None) -> Table:
    pairing = "steps in order" if score.matches is None else "steps that correspond"
    table = Table(title=f"{pairing} (alignment {score.alignment}, teacher branch {score.branch})", show_lines=True)
    for column in ("", "student", "teacher", "same meta / question / answer", "score"):
        table.add_column(column, overflow="fold")
    for pair in step_pairs(score, alignment):
        points = "-" if pair.points is None else f"{pair.points:g}"
        table.add_row(pair.label, _step(pair.student), _step(pair.teacher), pair.verdict or "no counterpart", points)
    return table


@dataclass(frozen=True)
class StepPair:
    """A row of the comparison of two structures: steps side by side; None for what a row lacks.

    `label`: the number of the step, or of both; `verdict`: in words; `points`: what the pair earns.
    """

    label: str
    student: Step | None
    teacher: Step | None
    verdict: str | None
    points: float | None


def step_pairs(score: BranchScore, alignment: Alignment | None = None) -> list[StepPair]:
    """The steps of a scored student next to those of the teacher, in the student's order."""
    verdicts = _explanation(score, alignment).verdicts
    rows = []
    for student, teacher, pair in _rows(score):
        numbers = [i + 1 for i in (student, teacher) if i is not None]
        rows.append(
            StepPair(
                f"{numbers[0]} ~ {numbers[-1]}" if len(set(numbers)) > 1 else str(numbers[0]),
                None if student is None else score.student[student],
                None if teacher is None else score.teacher[teacher],
                None if pair is None else verdicts[pair],
                None if pair is None else score.steps[pair],
            )
        )
    return rows


def _rows(score: BranchScore) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Rows of (student's step, teacher's step, index of the scored pair), None for what a row lacks.

    The student's steps are in order; a teacher's step without a counterpart is as early as the others allow.
    """
    n_student, n_teacher = len(score.student), len(score.teacher)
    matches = score.matches
    if matches is None:
        for i in range(max(n_student, n_teacher)):
            paired = i < len(score.steps)
            yield i if i < n_student else None, i if i < n_teacher else None, i if paired else None
        return
    partner = {student: (teacher, pair) for pair, (student, teacher) in enumerate(matches)}
    left = [j for j in range(n_teacher) if j not in {teacher for _, teacher in matches}]
    for i in range(n_student):
        if i in partner:
            while left and left[0] < partner[i][0]:
                yield None, left.pop(0), None
            yield i, *partner[i]
        else:
            yield i, None, None
    for j in left:
        yield None, j, None


def _step(step: Step | None) -> Text:
    if step is None:
        return Text("")
    computed = " = ".join(filter(None, (step.question, step.answer)))
    return Text("\n".join(filter(None, (step.meta, f"[{computed}]" if computed else None))))
