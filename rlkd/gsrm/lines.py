r"""The short text form of a structure, which a fine-tuned structure model writes: one step per line.

    How many clips did Natalia sell in May? | 48/2 | 24
    How many clips did she sell in both months? | 48+24 | 72

It takes half the tokens of the tagged form of `rlkd.structure` (GSM8K, SmolLM2's tokenizer: 80 against 166 per
solution), and so half the time of every decomposition.

A field that is missing is empty. A bar inside a field is written `\|`; white space inside one becomes a single space.
"""

from __future__ import annotations

import re

from rlkd.structure import Step, Structure

_BAR = re.compile(r"(?<!\\)\|")


def render_lines(structure: Structure) -> str:
    r"""The structure as lines; empty for no steps.

    >>> print(render_lines(Structure([Step("How far?", "2*3", "6"), Step("Which is it?", None, "a|b")])))
    How far? | 2*3 | 6
    Which is it? |  | a\|b
    """
    return "\n".join(" | ".join(map(_written, (step.meta, step.question, step.answer))) for step in structure)


def parse_lines(text: str, *, complete: bool = True) -> Structure:
    """Read lines back; a line that is no step (not three fields, or all of them empty) is left out. Never raises.

    `complete`: whether the author finished. If not, the last line may be truncated ("72" to "7"), and is left out.
    """
    lines = text.split("\n")
    if not complete:
        lines = lines[:-1]
    steps = []
    for line in lines:
        fields = [field.strip().replace("\\|", "|") for field in _BAR.split(line)]
        if len(fields) == 3 and any(fields):
            steps.append(Step(*fields))
    return Structure(steps)


def _written(field: str | None) -> str:
    return " ".join((field or "").split()).replace("|", "\\|")
