"""Numbers in words: "seventy-two", "two dozen", "three tenths"."""

from __future__ import annotations

import re
from fractions import Fraction

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
CARDINALS = {word: value for value, word in enumerate(_ONES.split())}
CARDINALS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
MULTIPLIERS = {
    "dozen": 12,
    "score": 20,
    "hundred": 100,
    "hund": 100,
    "thousand": 1000,
    "thou": 1000,
    "grand": 1000,
    "lakh": 10**5,
    "million": 10**6,
    "mil": 10**6,
    "mill": 10**6,
    "mio": 10**6,
    "mln": 10**6,
    "mn": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "bn": 10**9,
    "bil": 10**9,
    "milliard": 10**9,
    "mrd": 10**9,
    "trillion": 10**12,
    "tn": 10**12,
    "quadrillion": 10**15,
}
_ORDINALS = """third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth twentieth"""
# "3 quarters" may be coins, and a second is a time: these are not read.
DENOMINATORS = {"half": 2, "halve": 2} | {word: value for value, word in enumerate(_ORDINALS.split(), start=3)}
DENOMINATORS |= {"hundredth": 100, "thousandth": 1000, "millionth": 10**6, "billionth": 10**9}
DENOMINATORS |= {f"{word[:-1]}ieth": value for word, value in CARDINALS.items() if word.endswith("ty")}
_PARTS = DENOMINATORS | {"quarter": 4}
# "hundred" alone is a hundred.
_ALONE = frozenset(["dozen", "hundred", "thousand", "million", "billion"])
_HALF_A = re.compile(r"half a ([A-Za-z]+)", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]+")


def singular(word: str) -> str:
    """A word in lower case without the s of its plural."""
    word = word.lower()
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def leading_number(text: str) -> tuple[Fraction, str] | None:
    """The number in words at the start of a text, and the rest; None without one.

    >>> leading_number("seventy-two clips")
    (Fraction(72, 1), ' clips')
    """
    total = current = 0
    end = position = 0
    seen = False
    while match := _WORD.match(text, position):
        word = match[0].lower()
        if word in CARDINALS:
            value = CARDINALS[word]
            # "twenty-two" and "hundred two" are numbers, "two two" and "ten two" are not.
            room = 10 if value < 10 else 100
            if seen and (current % room or (value == 0) or (value < 10 and current % 100 == 10)):
                return None
            current += value
        elif word in ("a", "an") and not seen and _is_multiplier(_WORD.match(text, match.end() + 1)):
            current = 1
        elif singular(word) in MULTIPLIERS and seen:
            factor = MULTIPLIERS[singular(word)]
            if factor <= 100:
                current *= factor
            else:
                total, current = total + current * factor, 0
        elif word in _ALONE and not seen:
            current = MULTIPLIERS[word]
        elif (
            word == "half"
            and (many := _HALF_A.match(text, position))
            and singular(many[1]) in MULTIPLIERS
            and not seen
        ):
            return Fraction(MULTIPLIERS[singular(many[1])], 2), text[many.end() :]
        elif word == "half" and not seen:
            return Fraction(1, 2), text[match.end() :]
        elif singular(word) in _PARTS and seen and total + current > 0:
            if current >= 20 and current % 10 == 0 and word == singular(word):
                return None  # "twenty-third" is a place
            return Fraction(total + current, _PARTS[singular(word)]), text[match.end() :]
        elif word == "and" and seen and (total or current >= 100) and _is_cardinal(_WORD.match(text, match.end() + 1)):
            position = match.end() + 1
            continue
        else:
            break
        seen, end = True, match.end()
        position = end + 1 if text[end : end + 1] in (" ", "-") else len(text)
    return (Fraction(total + current), text[end:]) if seen else None


def _is_multiplier(match: re.Match[str] | None) -> bool:
    return match is not None and (singular(match[0]) in MULTIPLIERS or singular(match[0]) in _PARTS)


def _is_cardinal(match: re.Match[str] | None) -> bool:
    return match is not None and match[0].lower() in CARDINALS
