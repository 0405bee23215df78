"""What the rewards of a run said, from its rollouts: `rlkd rewards report RUN`.

The files are read line by line, so a long run takes no more memory than a number or two a rollout.

    >>> from pathlib import Path
    >>> from rlkd.report.rewards import read_report, render_report
    >>> report = read_report(Path("runs/rlkd"))  # doctest: +SKIP
    >>> report.rewards["accuracy"].mean  # doctest: +SKIP
    0.34375
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

CAUSES = 3
SLOWEST = 5
# Scores of a group that differ by less teach nothing: the tolerance with which TRL counts groups without spread.
FLAT = 1e-8


@dataclass(frozen=True)
class Slow:
    """A slow call: the first of its samples, by row id and step, and how many samples it had."""

    seconds: float
    id: str
    step: int
    samples: int


@dataclass(frozen=True)
class RewardFigures:
    """One reward. Shares are of `samples`; what cannot be told is None.

    `mean`, `spread`: of the scores as the reward gave them, the latter their standard deviation (n - 1). `causes`: the
    most frequent ones of failures, with their counts. `seconds_p50`, `seconds_p95`: over samples that were not reused,
    of the call that a sample was part of. `flat_groups`: the share of groups (step and row id) with two or more scores
    that are all the same.
    """

    samples: int
    scored: int
    mean: float | None
    spread: float | None
    not_applicable: float
    failed: float
    causes: list[tuple[str, int]]
    seconds_p50: float | None
    seconds_p95: float | None
    reused_batch: float | None
    reused_cache: float | None
    slowest: list[Slow]
    groups: int
    flat_groups: float | None


@dataclass(frozen=True)
class RewardReport:
    """A run's rewards.

    `correlations`: Pearson's, over rollouts that both rewards have scored; None where undefined.
    """

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

    Raises `UsageError` where there are none, or a line is no rollout.
    """
    folder = run / "rollouts"
    files = sorted([*folder.glob("rank*.jsonl"), *folder.glob("async.jsonl")])
    if not files:
        raise UsageError(f"{run} has no rollouts/rank*.jsonl or async.jsonl; give the output_dir of a run")
    tallies: dict[str, _Tally] = {}
    pairs: dict[tuple[str, str], _Pair] = {}
    rollouts, steps = 0, set()
    for path in files:
        for place, record in _records(path):
            scores = {}
            try:
                for name, outcome in record["rewards"].items():
                    tallies.setdefault(name, _Tally()).add(record, outcome, path.stem)
                    if outcome["status"] == "score":
                        scores[name] = outcome["value"]
                rollouts += 1
                steps.add(record["step"])
            except (AttributeError, KeyError, TypeError) as error:
                raise UsageError(f"{place}: no rollout of a run ({type(error).__name__}: {error})") from error
            for pair in combinations(sorted(scores), 2):
                pairs.setdefault(pair, _Pair()).add(scores[pair[0]], scores[pair[1]])
    if not rollouts:
        raise UsageError(f"{run}: its rollouts are empty; the run has not finished a step")
    return RewardReport(
        run=str(run),
        rollouts=rollouts,
        steps=len(steps),
        rewards={name: tally.figures() for name, tally in tallies.items()},
        correlations=[
            (one, other, pairs[one, other].correlation() if (one, other) in pairs else None)
            for one, other in combinations(sorted(tallies), 2)
        ],
    )


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return  # the run is at it, or was killed while it wrote
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{place}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise UsageError(f"{place}: no rollout of a run, but {line[:60]!r}")
            if "group" in record:  # an asynchronous run counts groups; it does not know which step took one
                record["step"] = record["group"]
            yield place, record


@dataclass
class _Pair:
    """Running sums of two series (Welford's updates, so that a large mean takes no precision)."""

    n: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.n += 1
        off_x, off_y = x - self.mean_x, y - self.mean_y
        self.mean_x += off_x / self.n
        self.mean_y += off_y / self.n
        self.xx += off_x * (x - self.mean_x)
        self.yy += off_y * (y - self.mean_y)
        self.xy += off_x * (y - self.mean_y)

    def correlation(self) -> float | None:
        """Pearson's r in [-1, 1]; None for fewer than two values, or where one series is constant."""
        if self.n < 2 or min(self.xx, self.yy) <= FLAT**2 * self.n:
            return None
        return max(-1.0, min(1.0, self.xy / math.sqrt(self.xx * self.yy)))


@dataclass
class _Tally:
    """What is counted of one reward."""

    statuses: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    scores: _Pair = field(default_factory=_Pair)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    knows_reuse: bool = False
    # (file, step, seconds) is a call: two calls do not take the same time to the last digit. -> first id, samples
    slowest: dict[tuple[str, int, float], list[Any]] = field(default_factory=dict)
    # (step, row) -> scores, least, greatest
    groups: dict[tuple[int, str], tuple[int, float, float]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any], outcome: Mapping[str, Any], file: str) -> None:
        status, seconds, reused = outcome["status"], outcome.get("seconds"), outcome.get("reused")
        self.statuses[status] += 1
        if status == "failed":
            self.causes[outcome.get("cause") or "no cause given"] += 1
        if reused is not None:
            self.reused[reused] += 1
        self.knows_reuse |= reused is not None or seconds is not None
        row = str(record["id"]) if record.get("id") is not None else json.dumps(record.get("prompt"))
        if status == "score":
            value = outcome["value"]
            self.scores.add(value, value)
            count, low, high = self.groups.get((record["step"], row), (0, value, value))
            self.groups[record["step"], row] = count + 1, min(low, value), max(high, value)
        if seconds is not None and reused is None:
            self.seconds.append(seconds)
            self._time(file, record["step"], seconds, row)

    def _time(self, file: str, step: int, seconds: float, row: str) -> None:
        call = file, step, seconds
        if call in self.slowest:
            self.slowest[call][1] += 1
            return
        self.slowest[call] = [row, 1]
        if len(self.slowest) > SLOWEST:
            del self.slowest[min(self.slowest, key=lambda call: call[2])]

    def figures(self) -> RewardFigures:
        samples, n = self.statuses.total(), self.scores.n
        groups = [high - low <= FLAT for count, low, high in self.groups.values() if count > 1]
        ordered = sorted(self.seconds)
        slowest = sorted(self.slowest.items(), key=lambda item: -item[0][2])
        return RewardFigures(
            samples=samples,
            scored=n,
            mean=self.scores.mean_x if n else None,
            spread=math.sqrt(self.scores.xx / (n - 1)) if n > 1 else None,
            not_applicable=self.statuses["not_applicable"] / samples,
            failed=self.statuses["failed"] / samples,
            causes=self.causes.most_common(CAUSES),
            seconds_p50=_percentile(ordered, 50),
            seconds_p95=_percentile(ordered, 95),
            reused_batch=self.reused["batch"] / samples if self.knows_reuse else None,
            reused_cache=self.reused["cache"] / samples if self.knows_reuse else None,
            slowest=[Slow(seconds, row, step, count) for (_, step, seconds), (row, count) in slowest],
            groups=len(groups),
            flat_groups=sum(groups) / len(groups) if groups else None,
        )


def _percentile(ordered: list[float], share: int) -> float | None:
    """The least value that `share` per cent do not exceed (the nearest rank, as in the metrics of a run)."""
    return ordered[-(-len(ordered) * share // 100) - 1] if ordered else None


def render_report(report: RewardReport) -> RenderableType:
    """The report as tables, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(f"{report.run}: {report.rollouts} rollouts of {report.steps} steps")]
    table = Table(title="scores, as the rewards gave them", title_justify="left")
    for column in ("reward", "samples", "mean", "spread", "not applicable", "failed", "groups without spread"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, figures in report.rewards.items():
        flat = "-" if figures.flat_groups is None else f"{figures.flat_groups:.1%} of {figures.groups}"
        shares = f"{figures.not_applicable:.1%}", f"{figures.failed:.1%}"
        table.add_row(name, str(figures.samples), _number(figures.mean), _number(figures.spread), *shares, flat)
    parts.append(table)
    table = Table(title="time and reuse", title_justify="left")
    for column in ("reward", "seconds p50", "p95", "reused in the batch", "from the cache"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for name, figures in report.rewards.items():
        times = _number(figures.seconds_p50), _number(figures.seconds_p95)
        table.add_row(name, *times, _share(figures.reused_batch), _share(figures.reused_cache))
    parts.append(table)
    for name, figures in report.rewards.items():
        parts += [Text(f"{name}: failed {count} x {cause}") for cause, count in figures.causes]
    table = Table(title="slowest calls", title_justify="left")
    for column in ("reward", "seconds", "row", "step", "samples"):
        table.add_column(column, justify="left" if column in ("reward", "row") else "right")
    for name, figures in report.rewards.items():
        for slow in figures.slowest:
            table.add_row(name, _number(slow.seconds), Text(slow.id), str(slow.step), str(slow.samples))
    if table.rows:
        parts.append(table)
    if report.correlations:
        parts.append(_matrix(report))
    return Group(*parts)


def _matrix(report: RewardReport) -> RenderableType:
    from rich.table import Table

    known = {frozenset((one, other)): value for one, other, value in report.correlations}
    table = Table(title="correlation between rewards", title_justify="left")
    table.add_column("")
    for name in report.rewards:
        table.add_column(name, justify="right")
    for one in report.rewards:
        cells = ("" if one == other else _number(known[frozenset((one, other))]) for other in report.rewards)
        table.add_row(one, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
