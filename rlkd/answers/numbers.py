r"""Read numbers from text, exactly: the value, the unit, and whether it is a percentage.

>>> number("$1,200.50"), number(r"2\tfrac{1}{2} km"), number("5 squared")
(Fraction(2401, 2), Fraction(5, 2), None)

What is read (after `notation.plain`, which unifies LaTeX and Unicode), all of the text or nothing:

    answer   = [name "="] [hedge] [sign] [currency] amount [percent] [unit or counted things]
    amount   = (decimal | fraction | mixed number | power of ten) [multiplier], or a small number in words
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from rlkd.answers.calculations import calculated
from rlkd.answers.directions import opposed
from rlkd.answers.notation import plain
from rlkd.answers.number_words import DENOMINATORS, MULTIPLIERS, leading_number, singular
from rlkd.answers.unit_table import CURRENCY_SIGNS
from rlkd.answers.units import NO_UNIT, Unit, read_unit

LONGEST = 300
"""Longer texts are not read as one number."""
ROUNDED_DIGITS = 6
"""With so many digits behind its point, a decimal stands for the fraction or root that it rounds."""
_MOST_DIGITS = 100

_ANY_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+")
_SIMPLE = re.compile(r"[-+]?[0-9]{1,100}(?:\.[0-9]{1,100})?")

_GROUPED = (
    r"[1-9]\d{0,2}(?:[. ]\d{3})+,\d{1,2}(?!\d)"  # 1.234,56
    r"|[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?"  # 1,234,567.8
    r"|[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,])(?:\.\d+)?"  # 12,34,567: lakh
    r"|[1-9]\d{0,2}(?:[ '_]\d{3})+(?![\d,])(?:[.]\d+)?"  # 1 234 567.8
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])"  # 1.234.567
)
_DECIMAL = rf"(?:{_GROUPED}|\d+(?:\.\d+)?|\.\d+)"
_AMOUNT = re.compile(
    r"(?P<whole>\d+)(?: and | ?)\\frac\s*\{(?P<n1>\d+)\}\s*\{(?P<d1>\d+)\}"
    r"|(?P<whole2>\d+)(?: and | )(?P<n2>\d+)/(?P<d2>\d+)(?![\d/])"
    rf"|\\frac\s*\{{\s*(?P<n3>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<d3>-?{_DECIMAL})\s*\}}"
    rf"|(?P<n4>{_DECIMAL})\s*/\s*(?P<d4>{_DECIMAL})(?!\s*/\s*\d)"
    r"|(?P<before>\d*)\.(?P<fixed>\d*)(?:\\overline\s*\{(?P<repeat>\d+)\}|(?P<dots>(?:\d*\\dot\s*\{?\d\}?){1,2}))"
    rf"|(?P<decimal>{_DECIMAL})"
)
_POWER = re.compile(
    r"[eE]\s*(?P<e>[-+]?\d{1,3})(?!\d)"
    r"|\s*(?:\*|\\times|\\cdot|[xX]|times)\s*10\s*\^\s*(?:\{\s*(?P<p1>[-+]?\d{1,3})\s*\}|\(\s*(?P<p2>[-+]?\d{1,3})\s*\)"
    r"|(?P<p3>[-+]?\d{1,3})(?!\d))"
)
_BARE_POWER = re.compile(r"10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|\(\s*([-+]?\d{1,3})\s*\)|([-+]?\d{1,3})(?!\d))")
_HEDGE = re.compile(
    r"(?:(?:about|approximately|approx\.?|roughly|around|circa|ca\.|nearly|almost|more or less|"
    r"exactly|precisely|just|only|a total of)\s+|(?:=|~|≈|≃|≅|≒|\\(?:thick)?approx(?:eq)?|\\simeq|\\cong|"
    r"\\sim)(?![A-Za-z])\s*)+",
    re.IGNORECASE,
)
_SIGN = re.compile(r"([-+])\s*(?![-+])|(?:(minus|negative)|(?:plus|positive))\s+", re.IGNORECASE)
_CURRENCY = re.compile(
    "(?:" + "|".join(re.escape(c) for c in sorted(CURRENCY_SIGNS, key=len, reverse=True)) + r")(?![A-Za-z])\s*",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\s*(?:%|\b(?:percent|per cent|pct|percentage)\b\.?)", re.IGNORECASE)
_MULTIPLIER = re.compile(r"\s*-?\b([A-Za-z]+)\b")
_LETTERS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_CENTS = re.compile(r",(\d\d)(?!\d)")
_CENTS_OF_MONEY = re.compile(r",(\d\d)\s?[€$£]")
_BASE = re.compile(r"\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_AND_A_HALF = {" and a half": Fraction(1, 2), " and a quarter": Fraction(1, 4), " and three quarters": Fraction(3, 4)}
_RESTATED = re.compile(r"(.*\S)\s+\(([^()]*)\)")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+)(?![\d,.])(.*)")
_NAME = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z])(?:_(?:\{\w+\}|\w))?(?:\(\w\))?")
_CALCULATION = re.compile(
    r"(?:[\d\s.+\-*/()$%^{}]|(?<=\d),(?=\d)|(?<=\d )x(?= ?\d)|\\times\b|\\cdot\b|\\div\b|\\frac\b|[A-Za-z]{3,}+)+"
)
_BRACKETS = {"(": ")", "[": "]"}


@dataclass(frozen=True)
class Quantity:
    """A number with what was written around it."""

    value: Fraction
    unit: Unit = NO_UNIT
    percent: bool = False
    name: str | None = None
    """The variable in "x = 5"."""
    decimals: int = 0
    """The digits behind the point of a plain decimal."""
    calculated: bool = False
    """Whether it is the result of a calculation that was written with it: "48 + 24 = 72"."""

    def equals(self, other: Quantity) -> bool:
        """Whether both are the same amount. Units, percent signs and names may be omitted, but must not differ."""
        if self.name and other.name and self.name != other.name:
            return False
        if self.percent != other.percent:
            bare = other if self.percent else self
            return bare.unit == NO_UNIT and any(value == again for value, again in self.values(other))
        if opposed(self.unit.directions, other.unit.directions):
            return False
        if self.unit.kinds and other.unit.kinds:
            return any(
                self.value * factor == other.value * other.unit.kinds[kind]
                for kind, factor in self.unit.kinds.items()
                if kind in other.unit.kinds
            )
        if not self.unit.may_be(other.unit):
            return False
        return self.value == other.value or self.rounds(other.value) or other.rounds(self.value)

    def values(self, other: Quantity) -> list[tuple[Fraction, Fraction]]:
        """The values to compare: "75%" is 75, or 0.75 where the other side is no percentage."""
        values = [(self.value, other.value)]
        if self.percent and not other.percent and other.unit == NO_UNIT:
            values.append((self.value / 100, other.value))
        if other.percent and not self.percent and self.unit == NO_UNIT:
            values.append((self.value, other.value / 100))
        return values

    def rounds(self, value: Fraction) -> bool:
        """Whether this is a decimal of six or more digits that rounds a value without a finite decimal form."""
        rest = value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        return self.decimals >= ROUNDED_DIGITS and rest > 1 and abs(self.value - value) * 2 * 10**self.decimals <= 1


def number(text: str) -> Fraction | None:
    """The exact value of a number, with or without unit ("$1,200.50", "24 clips", "75%", "x = 5"), or None.

    Units and currency are ignored, since answers to word problems may omit them: "75%" reads as 75. A single letter
    directly behind a number is a variable, not a unit. A calculation with its result is read by `read_quantity` only.
    """
    quantity = read_quantity(text)
    return None if quantity is None or quantity.calculated else quantity.value


def read_quantity(text: str) -> Quantity | None:
    """The number with unit that a text consists of, or None."""
    if _SIMPLE.fullmatch(text):
        return Quantity(Fraction(text), decimals=len(text.partition(".")[2]))
    if len(text) > LONGEST:
        text = text.strip()
        if len(text) > LONGEST:
            return None
    return _read(text)


@lru_cache(maxsize=16384)
def _read(text: str) -> Quantity | None:
    return _equation(plain(text))


def _equation(text: str) -> Quantity | None:
    """A number, behind a name ("x = 5") or a calculation ("48 + 24 = 72")."""
    restated = _RESTATED.fullmatch(text)
    if "=" not in (restated[1] if restated else text).removeprefix("="):
        return _number(text)
    *before, last = (part.strip() for part in text.split("="))
    quantity = _number(last)
    if len(before) == 1 and quantity is None and _NAME.fullmatch(last):
        before, quantity = [last], _number(before[0])
    elif len(before) == 1 and quantity is None and (value := calculated(last)) is not None:
        # "72 = 48 + 24"
        quantity = _number(before[0])
        return replace(quantity, calculated=True) if quantity is not None and quantity.value == value else None
    if quantity is None:
        return None
    name = None
    for place, part in enumerate(before):
        if place == 0 and _NAME.fullmatch(part):
            name = part
        elif (other := _number(part)) is not None:
            # "71 = 72" is no answer.
            if other.value != quantity.value:
                return None
        elif not (part and _CALCULATION.fullmatch(part)) or (place and not re.search(r"\d", part)):
            return None
    return replace(quantity, name=name, calculated=len(before) > 1 or name is None)


def _number(text: str) -> Quantity | None:
    text = text.strip()
    if _BRACKETS.get(text[:1]) == text[-1:] and text.count(text[0]) == 1:
        inner = text[1:-1].strip()
        # "(4,500)" is a point.
        return None if "," in inner else _number(inner.strip("'\""))
    found = _unit(text)
    if found is None and (match := _RESTATED.fullmatch(text)):
        found, again = _unit(match[1]), _equation(match[2])
        value = calculated(match[2].removeprefix("=")) if again is None else again.value
        if found is None or found.value != value:
            return None
    return found


def _unit(text: str) -> Quantity | None:
    """hedge, sign, currency, amount, unit."""
    text = text[_end(_HEDGE.match(text)) :]
    sign, money = 1, ""
    for pattern in (_SIGN, _CURRENCY, _SIGN):
        if not (match := pattern.match(text)):
            continue
        if pattern is _CURRENCY:
            money = match[0].strip()
        elif sign == 1 and (match[1] == "-" or match[2]):
            sign = -1
        elif (match[1] or match[2]) and (sign == -1 or match[1] == "-"):
            return None
        text = text[match.end() :]
    if _BRACKETS.get(text[:1]) == text[-1:] and text[:1] == "(" and text.count("(") == 1 and sign == -1:
        text = text[1:-1]
    amount = _amount(text, bool(money))
    if amount is None:
        return None
    value, tail = amount
    percent = _PERCENT.match(tail)
    if percent:
        tail = tail[percent.end() :]
    if money and tail.strip() in ("/-", ".-", ",-", "/="):
        tail = ""
    attached = not percent and not money and tail[:1] not in ("", " ", ",", ";")
    if tail.startswith(" base_"):
        unit: Unit | None = Unit({tail: Fraction(1)})
    else:
        unit = read_unit(f"{money}{tail}" if money else tail, attached)
    if unit is None:
        return None
    plain_decimal = re.match(r"\d*\.(\d+)(?!\d)", text)
    decimals = len(plain_decimal[1]) if plain_decimal and value == Fraction(plain_decimal[0]) else 0
    return Quantity(sign * value, unit, bool(percent), decimals=decimals)


def _amount(text: str, is_money: bool) -> tuple[Fraction, str] | None:
    """The value at the start of a text, and the rest."""
    if match := _BARE_POWER.match(text):
        return Fraction(10) ** int(match[1] or match[2] or match[3]), text[match.end() :]
    match = _AMOUNT.match(text)
    if not match:
        words = leading_number(text) if text[:1].isalpha() else None
        return _multiplied(*words, is_money) if words else None
    if len(match[0]) > _MOST_DIGITS:
        return None
    value = _value(match)
    rest = text[match.end() :]
    if value is None:
        return None
    if (match["decimal"] or match["n4"]) and (power := _POWER.match(rest)):
        value *= Fraction(10) ** int(power["e"] or power["p1"] or power["p2"] or power["p3"])
        rest = rest[power.end() :]
    if match["decimal"] and match[0].isdigit() and (base := _BASE.fullmatch(rest)):
        # Like a unit: the base may be omitted, but must not differ.
        return value, f" base_{base[1]}"
    cents = (_CENTS if is_money else _CENTS_OF_MONEY).match(rest) if match[0].isdigit() else None
    if cents:
        # "€72,50" is no list of two numbers.
        return value + Fraction(int(cents[1]), 100), rest[3:]
    # A digit, or a sign of grouping or decimals, behind a number was not read: "1,23", "12 34", "1.2.3".
    if re.match(r"\s?[\d_^]|[.,:'!]\s*\d", rest):
        return None
    return _multiplied(value, rest, is_money)


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if whole := part["whole"] or part["whole2"]:
        above, below = int(part["n1"] or part["n2"]), int(part["d1"] or part["d2"])
        return int(whole) + Fraction(above, below) if above < below else None
    if numerator := part["n3"] or part["n4"]:
        denominator = _decimal(part["d3"] or part["d4"])
        return _decimal(numerator) / denominator if denominator else None
    if part["repeat"] or part["dots"]:
        repeated = part["repeat"] or re.sub(r"\D", "", part["dots"])
        fixed = part["fixed"]
        if part["dots"] and (leading := re.match(r"\d+", part["dots"])):
            fixed, repeated = fixed + leading[0], repeated[len(leading[0]) :]
        value = Fraction(int((part["before"] or "0") + fixed or "0"))
        return (value + Fraction(int(repeated), 10 ** len(repeated) - 1)) / 10 ** len(fixed)
    return _decimal(part["decimal"])


def _decimal(text: str) -> Fraction:
    if re.fullmatch(r"-?\d{1,3}(?:[. ]\d{3})+,\d{1,2}", text):
        text = text.replace(".", "").replace(",", ".")
    elif text.count(".") > 1:
        text = text.replace(".", "")
    return Fraction(re.sub(r"[ ,'_]", "", text))


def _multiplied(value: Fraction, rest: str, is_money: bool) -> tuple[Fraction, str] | None:
    """A value times the multipliers behind it: "5 million", "5k", "$5M", "3 tenths"."""
    if (letter := re.match(r"([kKMB])(?![A-Za-z\d])", rest)) and (is_money or letter[1] == "k"):
        return value * _LETTERS[letter[1]], rest[1:]
    while match := _MULTIPLIER.match(rest):
        word = singular(match[1])
        # "5mn" is a product.
        if word not in MULTIPLIERS or (len(word) < 4 and match[0][0].isalpha() and not is_money):
            break
        value, rest = value * MULTIPLIERS[word], rest[match.end() :]
    if (match := _MULTIPLIER.match(rest)) and (rest[:1] == " ") and singular(match[1]) in DENOMINATORS:
        return value / DENOMINATORS[singular(match[1])], rest[match.end() :]
    for words, more in _AND_A_HALF.items():
        if rest.startswith(words) and value.denominator == 1:
            return value + more, rest[len(words) :]
    return value, rest


def decimal_comma(text: str, other: Fraction) -> Quantity | None:
    """The number in "1,5", "1,5 kg" or "1,5e3", read for the comparison with another number.

    Without a power of ten, "1,5" is a list of 1 and 5 where the other number is whole.
    """
    match = _DECIMAL_COMMA.fullmatch(plain(text))
    if not match or (other.denominator == 1 and not _POWER.match(match[3])):
        return None
    return read_quantity(f"{match[1]}.{match[2]}{match[3]}")


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


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
