"""Compare what a program printed or returned with what a test expects, as judges of contests do.

>>> same_output(" 0.6666666666666666\\n", "0.666667\\n"), same_output("1.0", "1"), same_output("YES", "Yes")
(True, True, False)
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

TOLERANCE = 1e-9  # relative, for floats summed in another order: our choice
# Digits of an expected number from which it counts as rounded: our choice.
ROUNDED_DIGITS = 6
# Not 007: zeros in front belong to texts, such as binary numbers.
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d*)?(?:(?<=\d)\.\d*|\.\d+)?(?:(?<=[\d.])[eE][-+]?\d{1,3})?", re.ASCII)
_LONGEST = 100


def same_output(printed: str, expected: str) -> bool:
    """Whether two texts have the same lines of the same words; blank lines at the start and the end do not count.

    Words are separated by any blanks. Two numbers are equal by value: 1.0 is 1. An expected number with a point or an
    exponent allows a relative 1e-9, and less than one unit of its last digit if it has six digits or more, as it is
    rounded then.
    """
    found, wanted = _lines(printed), _lines(expected)
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def same_value(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal: floats to a relative 1e-9; `1`, `1.0` and `true` as in Python.

    A float equals an expected integer only if it rounds to it: 1e10 is not 10000000001. An expected 0.0 allows 1e-9.
    """
    if isinstance(found, list) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        expected = {str(key): value for key, value in expected.items()}
        return found.keys() == expected.keys() and all(same_value(found[key], expected[key]) for key in found)
    if isinstance(found, float) and isinstance(expected, int):
        return math.isclose(found, expected, rel_tol=TOLERANCE) and round(found) == expected
    if isinstance(expected, float) and isinstance(found, float | int):
        return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=0.0 if expected else TOLERANCE)
    return bool(found == expected)


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    first = next((i for i, words in enumerate(lines) if words), 0)
    return lines[first:]


def _same_line(found: list[str], wanted: list[str]) -> bool:
    return len(found) == len(wanted) and all(map(_same_word, found, wanted))


def _same_word(found: str, wanted: str) -> bool:
    if found == wanted:
        return True
    if not (_is_number(found) and _is_number(wanted)):
        return False
    value, right = Decimal(found), Decimal(wanted)
    if value == right:
        return True
    if _is_integer(wanted):
        return not _is_integer(found) and same_value(float(value), int(right))
    if _is_integer(found) and right == right.to_integral_value():
        return False
    if same_value(float(value), float(right)):
        return True
    digits, exponent = right.as_tuple().digits, right.as_tuple().exponent
    rounded = len(digits) >= ROUNDED_DIGITS or (not right and -int(exponent) >= ROUNDED_DIGITS)
    return rounded and abs(value - right) < Decimal(1).scaleb(int(exponent))


def _is_number(word: str) -> bool:
    return len(word) <= _LONGEST and any(map(str.isdigit, word)) and _NUMBER.fullmatch(word) is not None


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdigit()
