"""A rollout in the terminal: what was written, what each reward said of it, and why the structure reward said so.

Takes the records of a run's `rollouts/rank0.jsonl`, so any rollout of the past can be shown as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlkd.data import question_of


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
    parts.append(Text(f"advantage within its group: {record['advantage']:+.3f}"))
    return Group(*parts)


def _outcome(outcome: Mapping[str, Any]) -> str:
    if outcome["status"] == "score":
        return f"{outcome['value']:.3f}"
    cause = f" ({outcome['cause']})" if outcome.get("cause") else ""
    return outcome["status"].replace("_", " ") + cause


def _alignment(detail: Mapping[str, Any]) -> Table:
    student, teacher, verdicts = detail["student"], detail["teacher"], detail["verdicts"]
    table = Table(title=f"steps in order (norm {detail['norm']}, teacher branch {detail['branch']})", show_lines=True)
    for column in ("", "student", "teacher", "same meta / question / answer", "score"):
        table.add_column(column, overflow="fold")
    for i in range(max(len(student), len(teacher))):
        verdict = verdicts[i] if i < len(verdicts) else None
        score = f"{detail['steps'][i]:g}" if i < len(detail["steps"]) else "-"
        if verdict is not None:
            said = " / ".join(_YES_NO[verdict[field]] for field in ("meta", "question", "answer"))
        elif i < min(len(student), len(teacher)):
            said = "after the break"
        else:
            said = "no counterpart"
        table.add_row(str(i + 1), _step(student, i), _step(teacher, i), said, score)
    return table


_YES_NO = {True: "yes", False: "no", None: "missing"}


def _step(steps: Sequence[Mapping[str, Any]], i: int) -> Text:
    if i >= len(steps):
        return Text("")
    step = steps[i]
    computed = " = ".join(value for value in (step.get("question"), step.get("answer")) if value)
    return Text("\n".join(value for value in (step.get("meta"), f"[{computed}]" if computed else None) if value))
