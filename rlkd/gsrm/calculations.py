r"""Reads the calculations of steps, so that two notations of the same calculation are equal.

Two calculations are the same if they take the same numbers through the same operations:

>>> calculation("20/2") == calculation("0.5 × $20") == calculation("half of 20 apples")
True
>>> calculation("48 - 24") == calculation("24 - 48")
False
>>> calculation("16 - 3 - 4") == calculation("16-(4+3)")
True
>>> calculation("12*2") == calculation("20+4"), calculation("12*2").value
(False, Fraction(24, 1))

Our choice of what counts as the same: the order of summands and of factors does not matter, a division is a product
with the reciprocal, a percentage a fraction, `24+24` is `2*24`, and units are ignored. Variables, equations and roots
are not supported: None.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Calculation:
    """A calculation: its exact value, its operations in a canonical form, and the numbers it starts from.

    Two are equal if value and form are, whatever their `operands`.
    """

    value: Fraction
    form: Hashable
    operands: frozenset[Fraction]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calculation) and (self.value, self.form) == (other.value, other.form)

    def __hash__(self) -> int:
        return hash((self.value, self.form))


@lru_cache(maxsize=16384)
def calculation(text: str) -> Calculation | None:
    """Read a text that is one calculation with at least one operator; None for anything else.

    Takes time linear in the length of the text, which may be at most 300 characters of at most 60 numbers and signs.
    """
    if len(text) > _LONGEST:
        return None
    try:
        reader = _Reader(_tokens(text))
        found = reader.sum()
        if reader.ahead is not None or not reader.operators:
            return None
        return Calculation(found.value, found.key(), frozenset(reader.operands))
    except (_Unreadable, ZeroDivisionError):
        return None


def canonical_calculation(text: str | None) -> str | None:
    """A calculation without spaces, currency, units and thousands commas: `14 pieces/house * 60 houses` is `14*60`.

    A text that is no plain arithmetic after that stays as it was.
    """
    if text is None:
        return None
    text = _LATEX_FRACTION.sub(r"\1/\2", text)
    if _VARIABLE.search(text):
        return text.strip()
    plain = text.translate(_PLAIN_OPERATORS).replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    plain = re.sub(r"(?<![A-Za-z])(?:[xX](?=\s*[\d($.])|of\b|times\b)", "*", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?<=\d)-(?=[A-Za-z])", " ", plain)  # 8-hour
    # A unit goes together with a slash inside it ("pieces/house"), but not with the slash of a division.
    plain = re.sub(r"[A-Za-z][\w'’-]*(?:\s*/\s*[A-Za-z][\w'’-]*)*|/[A-Za-z][\w'’-]*|[$€£\\]", " ", plain)
    if re.search(r"[\d).]\s+[\d(.]", plain):
        return text.strip()
    plain = re.sub(r"\s", "", plain)
    # A bracket of the sentence around it.
    while plain.count("(") > plain.count(")") and plain.startswith("("):
        plain = plain[1:]
    while plain.count(")") > plain.count("(") and plain.endswith(")"):
        plain = plain[:-1]
    if _DANGLING.search(plain):
        return text.strip()
    is_arithmetic = re.fullmatch(r"[-+]?[(\d.][-+*/^().%\d]*", plain) and re.search(r"\d.*[-+*/^].*\d", plain)
    return plain if is_arithmetic else text.strip()


# A letter of its own or behind a number (6x), but not an `x` that multiplies what follows.
_VARIABLE = re.compile(r"(?<![A-Za-z\\])(?!a\b|[xX]\s*[\d($.])[A-Za-z](?![A-Za-z'’])")
# An operator without an operand.
_DANGLING = re.compile(r"[-+*/^][+*/^]|[-+*/^]$|^[*/^]|\([*/^]|[-+*/^]\)|--")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_PLAIN_OPERATORS = str.maketrans("×·÷−–", "**/--")


class _Unreadable(Exception):
    """The text is no plain arithmetic."""


_HUNDRED = Fraction(100)
_LONGEST = 300
_MOST_TOKENS = 60
_TOKEN = re.compile(r"(?P<number>\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+)|(?P<word>[^\W\d_]+)|(?P<sign>\S)")
_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?=[%$])|\\(?:left|right)(?![a-zA-Z])|\\[,;!()\[\]]"), ""),
)
_SIGNS = dict(zip("×·÷−–[]{}", "**/--()()", strict=True))
_OPERATOR_WORDS = {"x": "*", "times": "*", "of": "*", "plus": "+", "minus": "-"}
_NUMBER_WORDS = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
_FACTOR_WORDS = {"twice": 2, "double": 2, "triple": 3}
_CURRENCY = "$€£"
_SILENT = frozenset(_CURRENCY + ".,;:'’\"“”?!")


def _tokens(text: str) -> list[Fraction | str]:
    """Numbers, operators, brackets and percent signs; units and words of a sentence are left out."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    raw = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(text) if match[0] not in _CURRENCY]
    found: list[Fraction | str] = []
    for index, (kind, piece) in enumerate(raw):
        next_kind, after = raw[index + 1] if index + 1 < len(raw) else (None, "")
        operand_before = bool(found) and (isinstance(found[-1], Fraction) or found[-1] in ")%")
        operand_after = next_kind == "number" or after in ("(", "[", "{", "-", "−")
        word = piece.lower()
        if kind == "number":
            found.append(Fraction(piece.replace(",", "")))
        elif kind == "word":
            if word in _OPERATOR_WORDS and operand_before and (operand_after or after.lower() in _NUMBER_WORDS):
                found.append(_OPERATOR_WORDS[word])
            elif word in _NUMBER_WORDS and after.lower() == "of":
                found.append(_NUMBER_WORDS[word])
            elif word in _FACTOR_WORDS and next_kind == "number":
                found += [Fraction(_FACTOR_WORDS[word]), "*"]
            elif len(piece) == 1 and word != "a":
                raise _Unreadable  # a variable
        elif (sign := _SIGNS.get(piece, piece)) in "+-*/^()%":
            # The sign of `miles/hour` and `half-full` belongs to a unit, unless a number follows.
            if sign in "+-*/^" and next_kind == "word" and after.lower() not in _NUMBER_WORDS | _FACTOR_WORDS:
                continue
            found.append(sign)
        elif piece not in _SILENT:
            raise _Unreadable
        if len(found) > _MOST_TOKENS:
            raise _Unreadable
    return found


class _Reader:
    """Recursive descent: a sum of products of powers."""

    def __init__(self, tokens: list[Fraction | str]):
        self.tokens = tokens
        self.position = 0
        self.operators = 0
        self.operands: list[Fraction] = []

    @property
    def ahead(self) -> Fraction | str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> Fraction | str | None:
        token = self.ahead
        self.position += 1
        return token

    def sum(self) -> _Term:
        sign = -1 if self.ahead == "-" else 1
        if sign < 0:
            self.take()
        terms = [(sign, self.product())]
        while self.ahead == "+" or self.ahead == "-":
            self.operators += 1
            terms.append((1 if self.take() == "+" else -1, self.product()))
        return _sum(terms)

    def product(self) -> _Term:
        factors = [(1, self.share())]
        while self.ahead == "*" or self.ahead == "/":
            self.operators += 1
            factors.append((1, self.share()) if self.take() == "*" else (-1, self.power()))
        return _product(factors)

    def share(self) -> _Term:
        """A power; `20/100` and `20*.01` are read as 20 %, one number, as `50*20/100` is not half of 20."""
        found = self.power()
        following = self.tokens[self.position : self.position + 2]
        if found.is_number and following in (["/", _HUNDRED], ["*", 1 / _HUNDRED]):
            self.position += 2
            self.operators += 1
            return _Term(found.value / 100)
        return found

    def power(self) -> _Term:
        base = self.number()
        if self.ahead != "^":
            return base
        self.take()
        self.operators += 1
        exponent = self.number().value
        # Exact numbers: a tower of powers would never end.
        if exponent not in (1, 2, 3, 4, 5, 6) or len(str(base.value)) > 40:
            raise _Unreadable
        return _product([(1, base)] * int(exponent))

    def number(self) -> _Term:
        token = self.take()
        if token == "(":
            found = self.sum()
            if self.take() != ")":
                raise _Unreadable
        elif isinstance(token, Fraction):
            found = _Term(token)
            self.operands.append(token)
        else:
            raise _Unreadable
        while self.ahead == "%":
            self.take()
            found = _Term(found.value / 100) if found.is_number else _product([(1, found), (-1, _Term(_HUNDRED))])
        return found


@dataclass(frozen=True, slots=True)
class _Term:
    """A number; or a sum, its terms with how often each is added; or a product, its factors with exponents 1 or -1."""

    value: Fraction
    summands: tuple[tuple[int, _Term], ...] = ()
    factors: tuple[tuple[int, _Term], ...] = ()

    @property
    def is_number(self) -> bool:
        return not self.summands and not self.factors

    def key(self) -> Hashable:
        if self.summands:
            counts: Counter[Hashable] = Counter()
            for sign, term in self.summands:
                counts[term.key()] += sign
            return "sum", frozenset(counts.items())
        if self.factors:
            # A divisor is a factor with its reciprocal: `/2` is `*0.5`.
            counts = Counter(
                term.value**exponent if term.is_number and term.value else (exponent, term.key())
                for exponent, term in self.factors
                if not term.is_number or term.value != 1
            )
            return "product", frozenset(counts.items())
        return self.value


def _sum(terms: Iterable[tuple[int, _Term]]) -> _Term:
    flat: list[tuple[int, _Term]] = []
    for sign, term in terms:
        flat += [(sign * inner, each) for inner, each in term.summands] or [(sign, term)]
    if len(flat) == 1 and flat[0][0] > 0:
        return flat[0][1]
    if len({(sign, term.key()) for sign, term in flat}) == 1 and flat[0][0] > 0:
        return _product([(1, _Term(Fraction(len(flat)))), (1, flat[0][1])])
    return _Term(sum((sign * term.value for sign, term in flat), Fraction(0)), summands=tuple(flat))


def _product(factors: Iterable[tuple[int, _Term]]) -> _Term:
    flat: list[tuple[int, _Term]] = []
    value = Fraction(1)
    for exponent, term in factors:
        flat += [(exponent * inner, each) for inner, each in term.factors] or [(exponent, term)]
        value *= term.value**exponent
    return flat[0][1] if len(flat) == 1 else _Term(value, factors=tuple(flat))
