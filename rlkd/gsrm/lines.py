r"""The short text form of a structure, which a fine-tuned structure model writes: one step per line.

    How many clips did Natalia sell in May? | 48/2 | 24
    How many clips did she sell in both months? | 48+24 | 72

On GSM8K this takes half the tokens of the tagged form (80 against 166 per solution, SmolLM2's tokenizer), and so half
the time of every decomposition. `rlkd.structure` has the tagged form for everything else: a prompted model writes tags
more reliably than bars, and tagged fields may hold line breaks.

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
    return "\n".join(render_line(step) for step in structure)


def render_line(step: Step) -> str:
    """One step as one line."""
    return " | ".join(_written(field) for field in (step.meta, step.question, step.answer))


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
