"""What a run wrote, read for its report: metrics, evaluations, and rollouts.

A run may still be going on: a last line without its end is skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.data.rows import json_records
from rlkd.errors import UsageError

Record = dict[str, Any]
STATUSES = ("score", "not_applicable", "failed")
"""What an outcome of a reward can be, as `rewards.contract.Outcome` records it."""


@dataclass(frozen=True)
class RunRecords:
    """The records of one run.

    Args:
        name: what the report calls the run.
        path: its output folder.
        metrics: a record per log line, in order; each has a `step`.
        evaluations: the records of `eval.jsonl`, each with a `step`.
        rollouts: those that are shown, in the order of their steps.
        rollouts_written: number of all rollouts in the files.
        failures: over all rollouts, how often each reward failed for which cause.
        evaluated_with: the settings of the evaluations, from `evaluation.json`; empty where the run recorded none.
        stride: of the steps with rollouts, every `stride`-th is shown.
    """

    name: str
    path: Path
    metrics: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    rollouts: list[Record] = field(default_factory=list)
    rollouts_written: int = 0
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    evaluated_with: Mapping[str, Any] = field(default_factory=dict)
    stride: int = 1


def read_run(path: Path, *, most_rollouts: int, name: str | None = None) -> RunRecords:
    """Read an output folder; of more than `most_rollouts` rollouts, only those of every n-th step are kept.

    Raises `UsageError` if the folder has none of the files of a run, or a line is not a record of one.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; give the output_dir of a run")
    metrics, evaluations = (_lines(path / file) for file in ("metrics.jsonl", "eval.jsonl"))
    counts: Counter[int] = Counter()
    failures: dict[str, Counter[str]] = {}
    for step, rollout in _rollouts(path):
        counts[step] += 1
        for reward, outcome in rollout.get("rewards", {}).items():
            if outcome["status"] == "failed":
                failures.setdefault(reward, Counter())[outcome.get("cause") or "no cause given"] += 1
    if not (metrics or evaluations or counts):
        raise UsageError(
            f"{path} has no records in metrics.jsonl, eval.jsonl or rollouts/; give the output_dir of a run that has "
            f"finished a step"
        )
    stride = max(1, -(-counts.total() // most_rollouts))
    shown = set(sorted(counts, reverse=True)[::stride])  # the last step among them
    rollouts = [(step, rollout) for step, rollout in _rollouts(path) if step in shown]
    return RunRecords(
        name or path.resolve().name,
        path,
        metrics,
        evaluations,
        [{**rollout, "step": step} for step, rollout in sorted(rollouts, key=lambda pair: pair[0])],
        counts.total(),
        failures,
        _settings(path / "evaluation.json"),
        stride,
    )


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an older run, or still being written
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[Record]:
    if not path.exists():
        return []
    records = []
    for where, record in json_records(path, skip_unfinished=True):
        if not isinstance(record.get("step"), int):
            raise UsageError(f"{where}: no step; expected a record of a run")
        records.append(record)
    return records


def _rollouts(run: Path) -> Iterator[tuple[int, Record]]:
    """Each rollout with its step; an asynchronous run does not know which step used one, and counts groups."""
    for path in sorted([*run.glob("rollouts/rank*.jsonl"), *run.glob("rollouts/async.jsonl")]):
        for where, record in json_records(path, skip_unfinished=True):
            step = record.get("step", record.get("group"))
            outcomes = record.get("rewards", {})
            if (
                not isinstance(step, int)
                or not isinstance(record.get("completion"), str)
                or not isinstance(outcomes, dict)
                or not all(isinstance(one, dict) and one.get("status") in STATUSES for one in outcomes.values())
            ):
                raise UsageError(f"{where}: not a rollout of a run (expected step, completion, and rewards by name)")
            yield step, record
