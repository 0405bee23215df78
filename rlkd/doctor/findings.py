"""What a check of `rlkd doctor` finds, and how it is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

GIB = 2**30
# Characters of a line of text.
WIDTH = 105


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
            parts = [*_wrapped(finding.text), *_wrapped(finding.way_out)]
            lines += [f"  {'' if number else finding.level:<8} {part}" for number, part in enumerate(parts)]
    counts = {level: sum(finding.level == level for finding in findings) for level in ("warning", "problem")}
    return "\n".join(
        [*lines, "", ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())]
    )


def _wrapped(text: str) -> list[str]:
    lines = text.splitlines()
    return [
        part for line in lines for part in textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)
    ]


def size(count: float) -> str:
    """Bytes in GiB.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / GIB:.1f} GiB"


def listed(words: Iterable[str]) -> str:
    """Words with commas between."""
    return ", ".join(words)
