"""Gold answers of data as text: numbers with their digits, booleans, lists, and positions in a list of options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


class WrittenFloat(float):
    """A number of a JSON file that remembers its digits as they are written there."""

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        """From the text of the number."""
        made = super().__new__(cls, written)
        made.written = written
        return made

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        return WrittenFloat, (self.written,)


def answer_text(answer: Any, options: Any = None) -> str | None:
    """The gold answer as text: the digits of a number, `true` or `false`, the values of a list behind each other.

    Numbers have no exponent (1e-05 is "0.00001"), so that each reward reads them. Null, NaN and an empty list are no
    answer. A list of several is "4, 5", which `rlkd.answers` compares as a set: all of its values are needed. An
    integer beside a list of `options` is a position (from 0) and becomes the letter. Raises `ValueError` for any other
    type.

    >>> answer_text([4, 5]), answer_text(["72"]), answer_text([0, 2], ["Paris", "Rome", "Bern"]), answer_text(True)
    ('4, 5', '72', 'A, C', 'true')
    """
    if isinstance(answer, list):
        if any(isinstance(value, list) for value in answer):
            raise ValueError("expected text, a number, a boolean, or a list of these")
        texts = [text for text in (answer_text(value, options) for value in answer) if text and text.strip()]
        return ", ".join(dict.fromkeys(texts)) or None
    if isinstance(answer, bool):
        return str(answer).lower()
    if isinstance(answer, str | None):
        return answer
    if isinstance(answer, int):
        return _letter_at(answer, options) or str(answer)
    if isinstance(answer, float | Decimal):
        if math.isnan(answer):
            return None
        written = getattr(answer, "written", str(answer))
        if isinstance(answer, WrittenFloat) or math.isfinite(answer):
            return _without_exponent(written)
    raise ValueError("expected text, a number, a boolean, or a list of these")


def _without_exponent(written: str) -> str:
    if "e" not in written.lower():
        return written
    value = Decimal(written)
    # Beyond that it would be a text of mostly zeros, of any length.
    return f"{value:f}" if abs(value.adjusted()) <= 100 else written


def _letter_at(position: int, options: Any) -> str | None:
    """The letter of an option; None without options and for a position that none has."""
    if isinstance(options, Mapping):
        # {"label": letters, "text": texts}, or {letter: text}.
        labels = options.get("label") if set(options) == {"label", "text"} else list(options)
        if not isinstance(labels, list) or str(position) in map(str, labels):
            return None
    elif isinstance(options, list):
        labels = [chr(ord("A") + index) for index in range(min(len(options), 26))]
    else:
        return None
    return str(labels[position]) if 0 <= position < len(labels) else None
