"""Read numbers from text, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_ANY_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")
_MULTIPLIERS = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "quarter"])


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, with or without unit ("$1,200.50", "24 clips", "75%"), or None.

    Units and currency are ignored, since answers to word problems may omit them: "75%" reads as 75. A single letter is
    a variable, not a unit, and "5 million" is not read.
    """
    cleaned = text.strip().rstrip(".").replace("\\$", "").replace("$", "").replace("{,}", "").replace("\\%", "%")
    cleaned = re.sub(r"(?<=\d)[,\s](?=\d{3}\b)", "", cleaned)
    match = re.fullmatch(
        rf"({_PLAIN_NUMBER.pattern})(?>(?:\s*+%)?)(?:\s++([A-Za-z]{{2,}}+[A-Za-z ]*+))?", cleaned.strip()
    )
    if not match or len(match[1]) > 100 or (match[2] and _MULTIPLIERS & set(match[2].lower().split())):
        return None
    numerator, _, denominator = match[1].partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / (int(denominator) if denominator else 1)


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text in order, without sign, with thousands commas; those over 100 characters are left out.

    >>> [str(value) for value in numbers("1,200 clips at $.50: 600, then 3.")]
    ['1200', '1/2', '600', '3']
    """
    return [Fraction(found.replace(",", "")) for found in _ANY_NUMBER.findall(text) if len(found) <= 100]


def squeezed(text: str) -> str:
    """A text in lower case without dollar signs, spaces and a closing full stop, for comparison as text."""
    # A space between two digits stays: "1 1/2" is not "11/2".
    return re.sub(r"(?<!\d)\s++|\s++(?!\d)|\$", "", text.strip()).rstrip(".").casefold()
