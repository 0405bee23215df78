"""Arithmetic problems with solutions: MAWPS equations, variants with other numbers, and generated chains.

>>> work_out("- + number0 number1 number2", "24 39 4")
(['24 + 39 = 63', '63 - 4 = 59'], '59')
>>> print(chain_rows("test", 1)[0]["question"])
Take the number 51. Multiply by 2. Share it into 6 equal parts and keep one. Take away 14. What number do you get?
"""

from __future__ import annotations

import hashlib
import operator
import random
import re
from fractions import Fraction
from typing import Any, Literal

from rlkd.data.rows import Row, split_half
from rlkd.errors import UsageError

CHAIN_SPLITS = ("gsrm", "rl", "test")
# The largest number in a chain: a small model can learn two-digit sums and the small multiplication table.
_LARGEST = 200
_CHAIN_WORDS = {
    "+": ("Add {}.", "Put {} more to it."),
    "-": ("Take away {}.", "Subtract {}."),
    "*": ("Multiply by {}.", "Take it {} times."),
    "/": ("Divide by {}.", "Share it into {} equal parts and keep one."),
}
_CHAIN_QUESTIONS = ("What number do you get?", "What is the result?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
# A result with more decimals would have to be rounded, and its line would be wrong.
_DECIMALS = 4


def mawps_row(record: dict[str, Any]) -> Row:
    """A MAWPS record (`id`, `question`, `equation`, `numbers`) as a row, its solution one calculation per line."""
    lines, answer = work_out(record["equation"], record["numbers"])
    return {
        "id": record["id"],
        "question": record["question"],
        "answer": answer,
        "rationales": ["\n".join(lines)],
    }


def work_out(equation: str, numbers: str) -> tuple[list[str], str]:
    """Solve a prefix equation over `number0`, `number1`, ...: the calculations, one per line, and the result.

    `numbers`: their values, separated by spaces. Raises ValueError for a malformed equation, and for a value without a
    short decimal form, which would make the line `a / b = c` untrue.
    """
    values = [Fraction(text) for text in numbers.split()]
    lines: list[str] = []
    tokens = equation.split()

    def term(index: int) -> tuple[Fraction, int]:
        """The value of the term that begins at a token, and the index of the next term."""
        if index >= len(tokens):
            raise ValueError(f"equation {equation!r}: an operand is missing at the end")
        token = tokens[index]
        if token in _OPERATIONS:
            left, index = term(index + 1)
            right, index = term(index)
            if token == "/" and not right:
                raise ValueError(f"equation {equation!r} divides by zero")
            result = _OPERATIONS[token](left, right)
            lines.append(f"{_decimal(left)} {token} {_decimal(right)} = {_decimal(result)}")
            return result, index
        if token.startswith("number") and token[6:].isdigit() and int(token[6:]) < len(values):
            return values[int(token[6:])], index + 1
        try:
            return Fraction(token), index + 1
        except ValueError:
            raise ValueError(f"equation {equation!r}: {token!r} is neither a number nor an operation") from None

    result, end = term(0)
    if end != len(tokens):
        raise ValueError(f"equation {equation!r}: {' '.join(tokens[end:])!r} is left over")
    return lines, _decimal(result)


def with_other_numbers(record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A MAWPS record with other numbers and the id `name`, which is also the seed; None if there is no such variant.

    Each number of the question becomes one of half to twice its size (small ones up to 9) with as many decimals. Equal
    numbers stay equal and different ones different; 1 stays 1, since it is mostly part of a phrase. All intermediate
    values stay positive and get no more decimals than before: a problem about whole apples remains one. There is no
    variant if the numbers of the text are not those of the record, or 400 draws fail.
    """
    written, before = _NUMBER.findall(record["question"]), record["numbers"].split()
    if [Fraction(text) for text in written] != [Fraction(text) for text in before]:
        return None
    lines, _ = work_out(record["equation"], record["numbers"])
    most_decimals = max(map(_decimals, [*before, *_NUMBER.findall(" ".join(lines))]))
    draw = random.Random(name)
    for _ in range(400):
        other = {Fraction(text): _other(text, draw) for text in written}
        if len(set(other.values())) < len(other) or all(Fraction(new) == value for value, new in other.items()):
            continue
        numbers = " ".join(other[Fraction(text)] for text in before)
        try:
            lines, _ = work_out(record["equation"], numbers)
        except ValueError:
            continue
        # The values of the lines; a minus directly before one is its sign.
        values = [text for line in lines for text in line.split() if text[-1].isdigit()]
        if all(Fraction(text) > 0 and _decimals(text) <= most_decimals for text in values):
            return {**record, "id": name, "question": _rewritten(record["question"], other), "numbers": numbers}
    return None


def _rewritten(question: str, other: dict[Fraction, str]) -> str:
    return _NUMBER.sub(lambda match: other[Fraction(match[0])], question)


def _other(text: str, draw: random.Random) -> str:
    """A number of half to twice the size of `text` with as many decimals; 1 stays 1."""
    if Fraction(text) <= 1 and not _decimals(text):
        return text
    unit = 10 ** _decimals(text)
    size = int(Fraction(text) * unit)
    return _decimal(Fraction(draw.randint(max(2, size // 2), max(9, 2 * size)), unit))


def _decimals(text: str) -> int:
    """The number of decimals of a written number, without trailing zeros."""
    return len(text.partition(".")[2].rstrip("0"))


def _decimal(value: Fraction) -> str:
    scaled = value * 10**_DECIMALS
    if scaled.denominator != 1:
        raise ValueError(f"{value} has more than {_DECIMALS} decimals")
    whole, part = divmod(abs(scaled.numerator), 10**_DECIMALS)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}" + (f".{part:0{_DECIMALS}d}".rstrip("0") if part else "")


def chain_rows(split: Literal["gsrm", "rl", "test"], count: int = 150) -> list[Row]:
    """The first `count` arithmetic chains of a split: `Start with 7. Add 5. ...`, two to four operations, solved.

    A generator with a fixed seed makes them, and a hash of the question assigns the split: one eighth to tests, the
    rest by `rlkd.data.rows.split_half`. So no chain is in two splits. All values are whole numbers from 0 to 200.
    Raises `UsageError` for another split.
    """
    if split not in CHAIN_SPLITS:
        raise UsageError(f"split {split!r} of the arithmetic chains: expected one of {', '.join(CHAIN_SPLITS)}")
    draw = random.Random(f"arithmetic chains {split}")  # a text as seed gives the same numbers in all versions
    rows: dict[str, Row] = {}
    while len(rows) < count:
        question, lines, answer = _chain(draw)
        if _chain_split(question) == split and question not in rows:
            rows[question] = {
                "id": f"chain-{split}-{len(rows)}",
                "question": question,
                "answer": answer,
                "rationales": ["\n".join(lines)],
            }
    return list(rows.values())


def _chain(draw: random.Random) -> tuple[str, list[str], str]:
    """A chain: its question, the lines of its solution, and the result."""
    value = draw.randint(2, 60)
    sentences, lines = [draw.choice(("Start with {}.", "Take the number {}.")).format(value)], []
    for _ in range(draw.randint(2, 4)):
        choices = {  # numbers that keep the value whole and in bounds
            "+": range(2, min(60, _LARGEST - value) + 1),
            "-": range(2, min(60, value) + 1),
            "*": [n for n in range(2, 10) if 0 < value * n <= _LARGEST],
            "/": [n for n in range(2, 10) if value and value % n == 0],
        }
        sign = draw.choice([sign for sign, numbers in choices.items() if numbers])
        number = draw.choice(list(choices[sign]))
        result = int(_OPERATIONS[sign](Fraction(value), number))
        sentences.append(draw.choice(_CHAIN_WORDS[sign]).format(number))
        lines.append(f"{value} {sign} {number} = {result}")
        value = result
    return " ".join([*sentences, draw.choice(_CHAIN_QUESTIONS)]), lines, str(value)


def _chain_split(question: str) -> str:
    is_test = hashlib.sha256(f"test {question}".encode()).digest()[0] < 32
    return "test" if is_test else split_half(question)
