"""Times of a day: "9:30 pm", "21:30", "3 o'clock"."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARTS = {
    "in the morning": "a",
    "in the afternoon": "p",
    "in the evening": "p",
    "at night": "p",
    "noon": "p",
    "midnight": "a",
}
_TIME = re.compile(
    r"(?P<hours>\d{1,2})(?:(?P<point>[:.])(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?)?"
    r"(?:\s*(?:(?P<half>[ap])\.?\s?m\b\.?|(?P<sharp>o'? ?clock)))?(?:\s+(?P<part>in the \w+|at night|noon|midnight))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Clock:
    """A time as written; `half` is `a`, `p`, or "" where morning or evening is not told."""

    hours: int
    minutes: int
    seconds: int
    half: str
    exact: bool
    """Whether minutes are written: "3:00", unlike "3 pm"."""

    def equals(self, other: Clock) -> bool:
        """Whether both are one time: "9:30 pm" is "21:30", and "9:30" too, as units may be omitted."""
        if (self.minutes, self.seconds) != (other.minutes, other.seconds):
            return False
        if bool(self.half) == bool(other.half):
            return (self.hours, self.half) == (other.hours, other.half)
        told, bare = (self, other) if self.half else (other, self)
        return bare.hours in (told.hours, told.hours % 12 + (12 if told.half == "p" else 0))


def read_clock(text: str) -> Clock | None:
    """The time of a day that a text (`notation.plain`) consists of, or None."""
    text = text.strip().lower().removeprefix("at ")
    match = _TIME.fullmatch(f"12:00 {text}" if text in ("noon", "midnight") else text)
    if not match or not (match["minutes"] or match["half"] or match["sharp"] or match["part"]):
        return None
    if match["point"] == "." and not (match["half"] or match["part"]):
        return None
    hours, half = int(match["hours"]), match["half"] or _PARTS.get(match["part"] or "", "")
    if match["part"] and (not half or (match["half"] or half) != half):
        return None
    if half and not 1 <= hours <= 12:
        return None
    minutes = match["minutes"]
    return Clock(hours, int(minutes or 0), int(match["seconds"] or 0), half, minutes is not None)
