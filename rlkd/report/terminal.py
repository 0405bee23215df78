"""In the terminal: a rollout, what each reward said of it, and why the structure reward said so.

Takes plain records (those of a run's `rollouts/rank0.jsonl`, `Judgement.to_dict()`, `Evaluation.to_dict()`), so
whatever was written in the past can be shown as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlkd.data.rows import question_of


def show_rollout(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one rollout record."""
    (console or Console()).print(render_rollout(record))


def best_rollout(records: Sequence[Mapping[str, Any]], reward: str = "structure") -> Mapping[str, Any] | None:
    """The rollout with the highest score of a reward, the latest of equals; without that reward the last rollout."""
    if not records:
        return None
    return max(
        enumerate(records),
        key=lambda numbered: (numbered[1]["rewards"].get(reward, {}).get("value", float("-inf")), numbered[0]),
    )[1]


def render_rollout(record: Mapping[str, Any]) -> RenderableType:
    """A rollout as a rich renderable."""
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
            parts.append(_alignment(detail))
    if record["advantage"] is not None:  # a failed reward may have ended the run before there was one
        parts.append(Text(f"advantage within its group: {record['advantage']:+.3f}"))
    return Group(*parts)


def _outcome(outcome: Mapping[str, Any]) -> str:
    if outcome["status"] == "score":
        return f"{outcome['value']:.3f}"
    cause = f" ({outcome['cause']})" if outcome.get("cause") else ""
    return outcome["status"].replace("_", " ") + cause


def render_judgement(detail: Mapping[str, Any]) -> RenderableType:
    """Why a structure scores what it scores: steps side by side, verdicts, and the arithmetic down to the value.

    `detail`: a `Judgement.to_dict()`, or what a rollout keeps of one.
    """
    return Group(_alignment(detail), *(Text(line) for line in arithmetic(detail)))


def arithmetic(detail: Mapping[str, Any]) -> list[str]:
    """The sum that gives a structure's value, line by line, and where the chain broke."""
    lines = []
    steps, norm = detail["steps"], detail["norm"]
    matches = detail.get("matches")
    broken_at = None
    for place, score in enumerate(steps):
        verdict = detail["verdicts"][place] if place < len(detail["verdicts"]) else None
        label = str(place + 1) if matches is None else "{} ~ {}".format(*(i + 1 for i in matches[place]))
        if norm == "answers":
            lines.append(f"step {label}: the same answer -> 1")
        elif broken_at is not None:
            lines.append(f"step {label}: g = 0, after the break -> 0")
        elif verdict is not None and not verdict["meta"]:
            broken_at = place
            lines.append(f"step {label}: the meta parts differ, g = 0 from here on -> 0")
        else:
            halved = [said for field in ("question", "answer") if (said := _halving(verdict, field, norm))]
            g = "" if norm == "ordered" else "g = 1, "
            halvings = f"{' and '.join(halved)}: 1{' x 1/2' * len(halved)} = " if halved else "nothing halved -> "
            lines.append(f"step {label}: {g}{halvings}{score:g}")
    n_student, n_teacher = len(detail["student"]), len(detail["teacher"])
    total = sum(steps)
    summed = f"{' + '.join(f'{score:g}' for score in steps)} = {total:g}" if steps else "nothing to sum = 0"
    lines.append(f"sum R: {summed}")
    divisor = detail.get("divisor")
    if divisor is None:  # written before divisors were
        lines.append(f"norm {norm}: {n_student} student steps, {n_teacher} teacher steps")
    else:
        why = {
            "sum": "the paper's sum is not divided",
            "teacher": "steps of the longest branch",
            "f1": f"mean of {n_student} student and {n_teacher} teacher steps",
            "ordered": f"mean of {n_student} student and {n_teacher} teacher steps",
            "answers": "mean number of answers of {} and {}".format(
                *(sum(step.get("answer") is not None for step in detail[side]) for side in ("student", "teacher"))
            ),
        }[norm]
        lines.append(f"norm {norm}: {total:g} / {divisor:g} = {total / divisor:.4g} ({why})")
    if broken_at is not None:
        mine, theirs = (_purpose(detail[side][broken_at]) for side in ("student", "teacher"))
        lines.append(
            f"The chain breaks at step {broken_at + 1}: the student turns to {mine!r}, the teacher to {theirs!r}; the "
            f"judge takes these for two sub-problems."
        )
        if lost := min(n_student, n_teacher) - broken_at - 1:
            lines.append(f"{lost} later {'pair' if lost == 1 else 'pairs'} of steps can therefore earn nothing.")
    return lines


def _halving(verdict: Mapping[str, Any] | None, field: str, norm: str) -> str | None:
    same = None if verdict is None else verdict[field]
    if same is None:
        return None if norm == "sum" else f"{field} missing on one side"
    return None if same else f"{field} differs"


def _purpose(step: Mapping[str, Any]) -> str:
    return step.get("meta") or step.get("question") or step.get("answer") or ""


def render_evaluation(evaluation: Mapping[str, Any]) -> RenderableType:
    """The tables of an `Evaluation.to_dict()`."""
    parts: list[RenderableType] = [
        Text(", ".join(f"{name} {_value(value)}" for name, value in evaluation["setup"].items()))
    ]
    titles = {
        "joined": "solutions joined into one paragraph, against their gold steps",
        "stability": "the same solution in another layout",
        "faithfulness": "each question with the trace of another one",
    }
    for section, title in titles.items():
        if evaluation[section]:
            table = Table(title=title, title_justify="left")
            table.add_column("", overflow="fold")
            table.add_column("value [95 % interval]", no_wrap=True)
            for name, figure in evaluation[section].items():
                table.add_row(name, _figure(figure))
            parts.append(table)
    for norm, reached in evaluation["at_shuffled_level"].items():
        parts.append(Text(f"norm {norm}: swapped traces {'fall' if reached else 'do NOT fall'} to the shuffled level"))
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
    if evaluation["over_rules"]:
        table = Table(title="AUROC gained over rules + deterministic, paired", title_justify="left")
        table.add_column("norm", overflow="fold")
        table.add_column("gain [95 % interval]", no_wrap=True)
        for name, figure in evaluation["over_rules"].items():
            table.add_row(name, _figure(figure))
        parts.append(table)
    for cause, count in list(evaluation["failures"].items())[:_CAUSES]:
        parts.append(Text(f"failed {count} x {cause}"))
    if (hidden := len(evaluation["failures"]) - _CAUSES) > 0:
        parts.append(Text(f"and {hidden} more causes of failure"))
    return Group(*parts)


_CAUSES = 5


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figure(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "n/a"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _alignment(detail: Mapping[str, Any]) -> Table:
    student, teacher, verdicts = detail["student"], detail["teacher"], detail["verdicts"]
    matches = detail.get("matches")
    how = "steps in order" if matches is None else "steps that correspond"
    table = Table(title=f"{how} (norm {detail['norm']}, teacher branch {detail['branch']})", show_lines=True)
    for column in ("", "student", "teacher", "same meta / question / answer", "score"):
        table.add_column(column, overflow="fold")
    for mine, theirs, place in _aligned(len(student), len(teacher), matches):
        score = "-" if place is None or place >= len(detail["steps"]) else f"{detail['steps'][place]:g}"
        if place is None:
            said = "no counterpart"
        elif detail["norm"] == "answers":
            said = "the same answer"
        elif place < len(verdicts):
            said = " / ".join(_YES_NO[verdicts[place][field]] for field in ("meta", "question", "answer"))
        else:
            said = "after the break"
        numbers = [i + 1 for i in (mine, theirs) if i is not None]
        label = f"{numbers[0]} ~ {numbers[-1]}" if len(set(numbers)) > 1 else str(numbers[0])
        table.add_row(label, _step(student, mine), _step(teacher, theirs), said, score)
    return table


def _aligned(
    n_student: int, n_teacher: int, matches: Sequence[Sequence[int]] | None
) -> Iterator[tuple[int | None, int | None, int | None]]:
    """Rows of (student's step, teacher's step, place among the scores), None for what a row lacks.

    The student's steps stand in order; a teacher's step without a counterpart, as early as the others allow.
    """
    if matches is None:
        for i in range(max(n_student, n_teacher)):
            paired = i < min(n_student, n_teacher)
            yield i if i < n_student else None, i if i < n_teacher else None, i if paired else None
        return
    partner = {mine: (theirs, place) for place, (mine, theirs) in enumerate(matches)}
    left = [j for j in range(n_teacher) if j not in {theirs for _, theirs in matches}]
    for i in range(n_student):
        if i in partner:
            while left and left[0] < partner[i][0]:
                yield None, left.pop(0), None
            yield i, *partner[i]
        else:
            yield i, None, None
    for j in left:
        yield None, j, None


_YES_NO = {True: "yes", False: "no", None: "missing"}


def _step(steps: Sequence[Mapping[str, Any]], i: int | None) -> Text:
    if i is None:
        return Text("")
    step = steps[i]
    computed = " = ".join(value for value in (step.get("question"), step.get("answer")) if value)
    return Text("\n".join(value for value in (step.get("meta"), f"[{computed}]" if computed else None) if value))
