"""Tables of an evaluation, of two that are compared, and of training rows that overlap with test questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlkd.evaluation.comparison import EvaluationComparison
from rlkd.evaluation.contamination import Contamination
from rlkd.evaluation.summary import ACCURACY, interval

PAIRS_SHOWN = 10


def wide_console() -> Console:
    """The terminal, or 120 characters where the output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def render_results(results: Mapping[str, Any]) -> RenderableType:
    """The figures of an evaluation (`rlkd.evaluation.summary.summarise`) as one table."""
    greedy, sampled, n = results.get("greedy"), results.get("sampled"), results["samples"]
    columns = [part for part in (greedy, sampled) if part]
    table = Table(title=f"{results['rows']} rows [95 % interval over rows]", title_justify="left")
    table.add_column("")
    for name, part in (("greedy", greedy), (f"sampled, {n} per row", sampled)):
        if part:
            table.add_column(name, no_wrap=True)

    def add(label: str, key: str, spec: str) -> None:
        if any(part.get(key) for part in columns):
            table.add_row(label, *(_cell(part.get(key), spec) for part in columns))

    add(f"accuracy (sampled: avg@{n})" if sampled else "accuracy", ACCURACY, ".1%")
    for key in ("pass", "maj"):
        for k, found in (sampled or {}).get(key, {}).items():
            table.add_row(f"{key}@{k}", *[""] * bool(greedy), _cell(found, ".1%"))
    for name in results["metrics"]:
        if name != ACCURACY:
            add(name, name, ".3f")
    add("ended by themselves", "ended", ".1%")
    add("answer announced", "announced", ".1%")
    add("tokens", "tokens", ".1f")
    add("calculations", "calculations", ".2f")
    return Group(table, *map(Text, _unscored(results["metrics"])))


def _cell(found: Mapping[str, Any] | None, spec: str) -> str:
    return "-" if found is None else interval(found).short(spec)


def _unscored(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, counts in metrics.items():
        total = counts["scored"] + counts["not_applicable"] + counts["failed"]
        if counts["not_applicable"]:
            lines.append(f"{name}: not applicable to {counts['not_applicable']} of {total} completions")
        lines += [f"{name}: failed {count} x {cause}" for cause, count in counts["causes"].items()]
    return lines


def render_comparison(found: EvaluationComparison, *, flips: int = 5) -> RenderableType:
    """The paired differences of two evaluations, the settings that differ, and the first rows that flipped."""
    parts: list[RenderableType] = [Text(f"A: {found.first}\nB: {found.second}")]
    table = Table(title="B against A, paired by row [95 % interval]", title_justify="left")
    for column in ("", "rows", "A", "B", "B - A", "p", "test"):
        table.add_column(column, no_wrap=True)
    for each in found.figures:
        spec = ".1%" if each.name.endswith(ACCURACY) else ".3f"
        p = "-" if each.p is None else f"{each.p:.2g}"
        change = each.change.short(f"+{spec}")
        table.add_row(
            each.name, str(each.change.n), f"{each.first:{spec}}", f"{each.second:{spec}}", change, p, each.test
        )
    parts.append(table)
    parts += [Text(f"{name} differs: {one} in A, {other} in B") for name, (one, other) in found.settings.items()]
    gained = sum(flip.gained for flip in found.flips)
    if any(each.name == f"greedy {ACCURACY}" for each in found.figures):
        parts.append(Text(f"{gained} rows are right in B only, {len(found.flips) - gained} in A only"))
    if found.flips[:flips]:
        shown = Table(show_lines=True)
        for column in ("row", "question", "gold", "A", "B"):
            shown.add_column(column, overflow="fold")
        for flip in found.flips[:flips]:
            question = flip.question if len(flip.question) <= 240 else f"{flip.question[:237]}..."
            cells = (flip.id, question, str(flip.gold), flip.first or "no answer", flip.second or "no answer")
            shown.add_row(*map(Text, cells))
        parts.append(shown)
    return Group(*parts)


def render_contamination(found: Contamination) -> RenderableType:
    """The share of test rows that the training rows contain, and the first pairs."""
    count = len(found.test_ids)
    share = f" ({found.share:.1%})" if count else ""
    line = f"contamination: {count} of {found.test_rows} test questions{share} overlap with {found.train_source}"
    parts: list[RenderableType] = [Text(f"{line} ({found.train_rows} rows)")]
    if found.pairs:
        table = Table()
        for column in ("test row", "training row", "share of its runs", "in common"):
            table.add_column(column, overflow="fold")
        for pair in found.pairs[:PAIRS_SHOWN]:
            table.add_row(*map(Text, (pair.test, pair.train, f"{pair.share:.0%}", pair.text)))
        parts.append(table)
        if (hidden := len(found.pairs) - PAIRS_SHOWN) > 0:
            parts.append(Text(f"and {hidden} more pairs"))
    return Group(*parts)
