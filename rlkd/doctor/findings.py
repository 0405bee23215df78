"""What a check of `rlkd doctor` finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """A line of `rlkd doctor`: what was found, and for a warning or a problem the way out.

    A problem keeps rlkd, or what the command line asked for, from working; a warning limits what can be run.
    """

    topic: str
    level: Literal["ok", "warning", "problem"]
    text: str
    way_out: str = ""


def rendered(findings: Sequence[Finding]) -> str:
    """The findings as text, by topic, with a line that counts them."""
    lines = []
    for topic, group in groupby(findings, key=lambda finding: finding.topic):
        lines.append(topic)
        for finding in group:
            lines.append(f"  {finding.level:<8} {finding.text}")
            lines += [f"  {'':<8} {line}" for line in finding.way_out.splitlines()]
    counts = {level: sum(finding.level == level for finding in findings) for level in ("warning", "problem")}
    return "\n".join(
        [*lines, "", ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())]
    )


def size(count: float) -> str:
    """Bytes in GiB.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / GIB:.1f} GiB"


def listed(words: Iterable[str]) -> str:
    """Words with commas between."""
    return ", ".join(words)
