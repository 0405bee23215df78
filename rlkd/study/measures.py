"""What a run has measured, read from its files: answers to held-out rows, curves, and how it trained."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.files import read_records
from rlkd.report.held_out import GREEDY, SAMPLED

Rows = Mapping[str, float | None]
"""Of each held-out row the share of right answers; None where it could not be judged."""


@dataclass(frozen=True)
class HeldOut:
    """Answers to the held-out rows at the first and the last evaluation, and (rollouts, accuracy) at each."""

    before: Rows
    after: Rows
    curve: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StudyRun:
    """The measurements of one arm with one seed; None where the run does not have them.

    `rollouts`: completions generated, dropped ones included; optimizer steps where none were saved (`counts_steps`).
    `calculations` and `tokens`: of the last held-out answers, sampled ones if there are any.
    `zero_std`: mean share of groups without spread. `seconds`: duration, those of interrupted starts included.
    """

    arm: str
    seed: int
    greedy: HeldOut
    sampled: HeldOut | None
    rollouts: float
    counts_steps: bool
    calculations: float | None
    tokens: float | None
    zero_std: float | None
    seconds: float | None


def read_run(folder: Path, arm: str, seed: int) -> StudyRun:
    """The measurements of a finished run; raises `UsageError` where it evaluated nothing, or rows share an id."""
    path = folder / "eval.jsonl"
    evaluations = list(read_records(path)) if path.exists() else []
    if not evaluations:
        raise UsageError(
            f"{path} has no evaluation: a run of a study needs held-out rows (dataset_test_split, eval_rows)"
        )
    for record in evaluations:
        twice = [id_ for id_, count in Counter(row["id"] for row in record["rows"]).items() if count > 1]
        if twice:
            raise UsageError(
                f"{path}, step {record['step']}: several rows have the id {twice[0]!r}; give each its own"
            )
    rollouts = count_rollouts(folder)
    metrics = folder / "metrics.jsonl"
    records = list(read_records(metrics)) if metrics.exists() else []
    # With resampling, of what was trained on.
    shares = [r.get("resampling/frac_zero_std", r.get("frac_reward_zero_std")) for r in records]
    zero_std = [share for share in shares if share is not None]
    sampled = [record for record in evaluations if "sampled" in record]
    last = evaluations[-1].get("sampled", evaluations[-1])
    # Those of earlier stages, which lie in folders of their own, too.
    times = [r["seconds"] for file in folder.rglob("times.jsonl") for r in read_records(file)]
    return StudyRun(
        arm,
        seed,
        greedy=held_out(evaluations, rollouts, GREEDY),
        sampled=held_out(sampled, rollouts, SAMPLED) if sampled else None,
        rollouts=_trained_on(evaluations[-1]["step"], rollouts),
        counts_steps=not rollouts,
        calculations=last.get("calculations"),
        tokens=last.get("tokens"),
        zero_std=sum(zero_std) / len(zero_std) if zero_std else None,
        seconds=sum(times) if times else None,
    )


def held_out(evaluations: Sequence[Mapping[str, Any]], rollouts: Mapping[int, int], key: str) -> HeldOut:
    """The answers under a key of the rows of evaluations. `rollouts`: as of `count_rollouts`."""
    answers = [{row["id"]: row.get(key) for row in record["rows"]} for record in evaluations]
    curve = []
    for record, rows in zip(evaluations, answers, strict=True):
        judged = [value for value in rows.values() if value is not None]
        if judged:
            curve.append((_trained_on(record["step"], rollouts), sum(judged) / len(judged)))
    return HeldOut(answers[0], answers[-1], curve)


def count_rollouts(folder: Path) -> dict[int, int]:
    """Steps -> completions of all steps up to each, of all processes; empty where none are saved."""
    counts: Counter[int] = Counter()
    for path in (folder / "rollouts").glob("rank*.jsonl"):
        counts.update(record["step"] for record in read_records(path))
    total, found = 0, {}
    for step in sorted(counts):
        total += counts[step]
        found[step] = total
    return found


def _trained_on(step: int, rollouts: Mapping[int, int]) -> float:
    """Completions up to a step, dropped ones included; the step itself where none are saved."""
    steps = list(rollouts)
    at = bisect_right(steps, step)
    return float(rollouts[steps[at - 1]] if at else 0) if rollouts else float(step)
