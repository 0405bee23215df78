"""Statistics of a run's rewards, from its rollouts: `rlkd rewards report RUN`."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlkd.data.rows import json_records
from rlkd.errors import UsageError
from rlkd.statistics import percentile

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUSES = 3
SLOWEST = 5
# Differences up to this do not count: the tolerance with which TRL counts zero-std groups.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class SlowCall:
    """A slow call: row id and step of its first sample, and its number of samples."""

    seconds: float
    id: str
    step: int
    samples: int


@dataclass(frozen=True)
class RewardFigures:
    """The figures of one reward; None for an undefined one. Shares are of `samples`.

    `mean`, `std` (n - 1): of the scores as the reward returned them. `seconds_p50`, `seconds_p95`: of a sample's call,
    over samples that were not reused. `groups`: number of groups (step and row id) with two scores or more;
    `zero_std_groups`: the share of them whose scores are all equal.
    """

    samples: int
    scored: int
    mean: float | None
    std: float | None
    not_applicable: float
    failed: float
    causes: list[tuple[str, int]]
    seconds_p50: float | None
    seconds_p95: float | None
    reused_batch: float | None
    reused_cache: float | None
    slowest: list[SlowCall]
    groups: int
    zero_std_groups: float | None


@dataclass(frozen=True)
class RewardReport:
    """The rewards of a run, with Pearson's correlations over rollouts that both rewards scored (None: undefined)."""

    run: str
    rollouts: int
    steps: int
    rewards: dict[str, RewardFigures]
    correlations: list[tuple[str, str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def read_report(run: Path) -> RewardReport:
    """Read the rollouts of a run's output folder.

    Raises `UsageError` if there are none, or a line is not a rollout.
    """
    folder = run / "rollouts"
    files = sorted([*folder.glob("rank*.jsonl"), *folder.glob("async.jsonl")])
    if not files:
        raise UsageError(f"{run} has no rollouts/rank*.jsonl or async.jsonl; give the output_dir of a run")
    tallies: dict[str, _Tally] = {}
    rollouts, steps = 0, set()
    for path in files:
        # A run may still be writing the last line.
        for where, record in json_records(path, skip_unfinished=True):
            try:
                # An asynchronous run counts groups; it does not know which step used one.
                step = record["group"] if "group" in record else record["step"]
                row = str(record["id"]) if record.get("id") is not None else json.dumps(record.get("prompt"))
                for name, outcome in record["rewards"].items():
                    tallies.setdefault(name, _Tally()).add(outcome, rollouts, path.stem, step, row)
            except (AttributeError, KeyError, TypeError) as error:
                raise UsageError(f"{where}: not a rollout of a run ({type(error).__name__}: {error})") from error
            rollouts += 1
            steps.add(step)
    if not rollouts:
        raise UsageError(f"{run}: its rollouts are empty; the run has not finished a step")
    return RewardReport(
        run=str(run),
        rollouts=rollouts,
        steps=len(steps),
        rewards={name: tally.figures() for name, tally in tallies.items()},
        correlations=[
            (one, other, _correlation(tallies[one], tallies[other])) for one, other in combinations(sorted(tallies), 2)
        ],
    )


@dataclass
class _Tally:
    """Counts and scores of one reward."""

    statuses: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    scores: array[float] = field(default_factory=lambda: array("d"))
    scored_rollouts: array[int] = field(default_factory=lambda: array("q"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    records_times: bool = False
    # (file, step, seconds) identifies a call, since no two calls take equally long to the last digit.
    slowest: dict[tuple[str, int, float], SlowCall] = field(default_factory=dict)
    # (step, row) -> number of scores, minimum, maximum
    groups: dict[tuple[int, str], tuple[int, float, float]] = field(default_factory=dict)

    def add(self, outcome: Mapping[str, Any], rollout: int, file: str, step: int, row: str) -> None:
        status, seconds, reused = outcome["status"], outcome.get("seconds"), outcome.get("reused")
        self.statuses[status] += 1
        if status == "failed":
            self.causes[outcome.get("cause") or "no cause given"] += 1
        if reused is not None:
            self.reused[reused] += 1
        self.records_times |= reused is not None or seconds is not None
        if status == "score":
            value = outcome["value"]
            self.scores.append(value)
            self.scored_rollouts.append(rollout)
            count, low, high = self.groups.get((step, row), (0, value, value))
            self.groups[step, row] = count + 1, min(low, value), max(high, value)
        if seconds is not None and reused is None:
            self.seconds.append(seconds)
            call = self.slowest.get((file, step, seconds), SlowCall(seconds, row, step, 0))
            self.slowest[file, step, seconds] = SlowCall(seconds, call.id, step, call.samples + 1)
            if len(self.slowest) > SLOWEST:
                del self.slowest[min(self.slowest, key=lambda key: key[2])]

    def figures(self) -> RewardFigures:
        samples, n = self.statuses.total(), len(self.scores)
        constant = [high - low <= TOLERANCE for count, low, high in self.groups.values() if count > 1]
        seconds = sorted(self.seconds)
        return RewardFigures(
            samples=samples,
            scored=n,
            mean=float(np.mean(self.scores)) if n else None,
            std=float(np.std(self.scores, ddof=1)) if n > 1 else None,
            not_applicable=self.statuses["not_applicable"] / samples,
            failed=self.statuses["failed"] / samples,
            causes=self.causes.most_common(CAUSES),
            seconds_p50=percentile(seconds, 50),
            seconds_p95=percentile(seconds, 95),
            reused_batch=self.reused["batch"] / samples if self.records_times else None,
            reused_cache=self.reused["cache"] / samples if self.records_times else None,
            slowest=sorted(self.slowest.values(), key=lambda call: -call.seconds),
            groups=len(constant),
            zero_std_groups=sum(constant) / len(constant) if constant else None,
        )


def _correlation(one: _Tally, other: _Tally) -> float | None:
    """Pearson's r over rollouts that both rewards scored; None for fewer than two, or where one does not vary."""
    _, one_index, other_index = np.intersect1d(one.scored_rollouts, other.scored_rollouts, return_indices=True)
    x, y = np.asarray(one.scores)[one_index], np.asarray(other.scores)[other_index]
    if len(x) < 2 or min(x.std(), y.std()) <= TOLERANCE:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def render_report(report: RewardReport) -> RenderableType:
    """The report as tables, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, header: tuple[str, ...], rows: list[list[str]]) -> Table:
        made = Table(title=title, title_justify="left")
        for column in header:
            made.add_column(column, justify="left" if column in ("", "reward", "row") else "right")
        for row in rows:
            made.add_row(*map(Text, row))
        return made

    figures = report.rewards.items()
    scores = [
        [
            *(name, str(f.samples), _number(f.mean), _number(f.std), _share(f.not_applicable), _share(f.failed)),
            _share(f.zero_std_groups) + f" of {f.groups}" * (f.zero_std_groups is not None),
        ]
        for name, f in figures
    ]
    times = [
        [name, _number(f.seconds_p50), _number(f.seconds_p95), _share(f.reused_batch), _share(f.reused_cache)]
        for name, f in figures
    ]
    slow = [
        [name, _number(call.seconds), call.id, str(call.step), str(call.samples)]
        for name, f in figures
        for call in f.slowest
    ]
    between = {frozenset((one, other)): _number(value) for one, other, value in report.correlations}
    matrix = [[one, *(between.get(frozenset((one, other)), "") for other in report.rewards)] for one in report.rewards]
    header = ("reward", "samples", "mean", "std", "not applicable", "failed", "zero-std groups")
    columns = ("reward", "seconds p50", "p95", "reused in the batch", "from the cache")
    parts: list[Any] = [
        Text(f"{report.run}: {report.rollouts} rollouts of {report.steps} steps"),
        table("scores, as the rewards returned them", header, scores),
        table("time and reuse", columns, times),
    ]
    parts += [Text(f"{name}: failed {count} x {cause}") for name, f in figures for cause, count in f.causes]
    if slow:
        parts.append(table("slowest calls", ("reward", "seconds", "row", "step", "samples"), slow))
    if report.correlations:
        parts.append(table("correlation between rewards", ("", *report.rewards), matrix))
    return Group(*parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
