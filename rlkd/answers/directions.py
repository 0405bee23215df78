"""Words behind a number that give its direction: 5 km north are not 5 km south, $5 of profit are no loss.

>>> opposed(directions("to the north"), directions("southwards"))
True
"""

from __future__ import annotations

import re

Directions = frozenset[tuple[str, str]]

# One line for each axis, whose sides exclude each other; an indented line continues it.
_AXES = """
place: north northern northward | south southern southward | east eastern eastward | west western westward
    | left leftward | right rightward | forward | backward back
    | up upward upstairs uphill above higher | down downward downstairs downhill below beneath underneath lower
sense: clockwise | counterclockwise anticlockwise
course: upstream | downstream
side: inside | outside
age: older elder | younger
time: early earlier before ago | late later after afterward
lead: ahead lead | behind
money: profit gain gained earned won saved credit surplus deposited received
    | loss lost lose spent debt owed owing deficit debit withdrawn paid
change: increase increased rise risen growth | decrease decreased drop dropped fall fallen reduction
size: taller longer bigger larger greater | shorter smaller
weight: heavier | lighter
speed: faster quicker sooner | slower
heat: warmer hotter | colder cooler
count: more over extra additional expensive dearer | less fewer under short cheaper
depth: deeper | shallower
width: wider | narrower
wealth: richer | poorer
"""
_COMPOUND = re.compile(r"^(north|south)(east|west)")
_WORD = re.compile(r"[^\W\d_]+")


def _read() -> dict[str, tuple[str, str]]:
    sides: dict[str, tuple[str, str]] = {}
    for line in _AXES.replace("\n    ", " ").strip().split("\n"):
        axis, _, words = line.partition(":")
        for side in words.split("|"):
            first, *more = side.split()
            sides |= dict.fromkeys([first, *more], (axis, first))
    return sides


_SIDES = _read()


def directions(text: str) -> Directions:
    """The axes and sides that the words of a text name."""
    found = set()
    for word in _WORD.findall(text.lower()):
        for part in _COMPOUND.sub(r"\1 \2", word).split():
            if side := _SIDES.get(part) or _SIDES.get(re.sub(r"s$", "", part)):
                found.add(side)
    return frozenset(found)


def opposed(first: Directions, second: Directions) -> bool:
    """Whether two answers name different sides of an axis; one that names none may have left it out."""
    return any(
        {side for side in first if side[0] == axis} != {side for side in second if side[0] == axis}
        for axis in {axis for axis, _ in first} & {axis for axis, _ in second}
    )
