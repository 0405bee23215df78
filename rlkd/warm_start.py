"""The warm start: rows that teach a small student how an answer looks and where it ends.

SmolLM2-135M-Instruct answers a GSM8K question in prose, rambles past any limit and is nearly never right, so that
reinforcement learning finds nothing to reward. The mix here (our choice) is easy enough for it to learn from:

* `mawps`: one- and two-step word problems; their equations are worked out here, a calculation a line;
* `sample`: those of the embedded GSM8K rows for structure models whose solution is short;
* `short`: further GSM8K training rows of the same half with at most three steps.

    >>> work_out("- + number0 number1 number2", "24 39 4")
    (['24 + 39 = 63', '63 - 4 = 59'], '59')

No question of the half that reinforcement learning trains on is among them (`rlkd.data.split_half`), and no test
question. Where the rows come from: `assets/PROVENANCE.md`.
"""

from __future__ import annotations

import json
import operator
from fractions import Fraction
from importlib.resources import files
from typing import Any, Literal

from rlkd.data import Row, sample_rows
from rlkd.errors import UsageError
from rlkd.steps import strip_calculator_marks

# The longest solution taken from the embedded sample, in characters: about 96 tokens of the embedded model.
LONGEST_SOLUTION = 290

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
# A result with more decimals is not written out in full, and a line that rounds would be wrong.
_DECIMALS = 4


def warm_start_rows() -> list[Row]:
    """All rows of the mix: `id`, `question`, `answer` and one rationale each, without calculator marks."""
    sample = [row for row in sample_rows("gsrm") if len(_plain(row)["rationales"][0]) <= LONGEST_SOLUTION]
    return [*mawps_rows("train"), *map(_plain, sample), *short_rows()]


def mawps_rows(split: Literal["train", "test"]) -> list[Row]:
    """MAWPS word problems with their equations worked out, a calculation a line.

    Raises `UsageError` for another split.
    """
    if split not in ("train", "test"):
        raise UsageError(f"MAWPS split {split!r}: expected 'train' or 'test'")
    rows = []
    for record in _records(f"mawps_{split}.jsonl"):
        lines, answer = work_out(record["equation"], record["numbers"])
        rows.append(
            {
                "id": record["id"],
                "question": record["question"],
                "answer": answer,
                "rationales": ["\n".join(lines)],
            }
        )
    return rows


def short_rows() -> list[Row]:
    """GSM8K training rows beyond the embedded sample: one to three steps, each with a calculation."""
    rows = []
    for record in _records("gsm8k_short.jsonl"):
        solution, _, answer = record["answer"].rpartition("\n#### ")
        rows.append(
            _plain(
                {
                    "id": record["id"],
                    "question": record["question"],
                    "answer": answer.strip(),
                    "rationales": [solution],
                }
            )
        )
    return rows


def work_out(equation: str, numbers: str) -> tuple[list[str], str]:
    """Work out a prefix equation over `number0`, `number1` ...: a line a calculation, and the result.

    `numbers` holds their values, separated by spaces. Raises ValueError for an equation that is none, and where a
    value has no short decimal form, for then a line `a / b = c` would not be true.
    """
    values = [Fraction(text) for text in numbers.split()]
    lines: list[str] = []
    tokens = equation.split()

    def value(place: int) -> tuple[Fraction, int]:
        """The value of the term that begins at a token, and where the next one begins."""
        if place >= len(tokens):
            raise ValueError(f"equation {equation!r}: an operand is missing at the end")
        token = tokens[place]
        if token in _OPERATIONS:
            left, place = value(place + 1)
            right, place = value(place)
            if token == "/" and not right:
                raise ValueError(f"equation {equation!r} divides by zero")
            result = _OPERATIONS[token](left, right)
            lines.append(f"{_decimal(left)} {token} {_decimal(right)} = {_decimal(result)}")
            return result, place
        if token.startswith("number") and token[6:].isdigit() and int(token[6:]) < len(values):
            return values[int(token[6:])], place + 1
        try:
            return Fraction(token), place + 1
        except ValueError:
            raise ValueError(f"equation {equation!r}: {token!r} is no number and no operation") from None

    result, end = value(0)
    if end != len(tokens):
        raise ValueError(f"equation {equation!r}: {' '.join(tokens[end:])!r} is left over")
    return lines, _decimal(result)


def _decimal(value: Fraction) -> str:
    scaled = value * 10**_DECIMALS
    if scaled.denominator != 1:
        raise ValueError(f"{value} has more than {_DECIMALS} decimals")
    whole, part = divmod(abs(scaled.numerator), 10**_DECIMALS)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}" + (f".{part:0{_DECIMALS}d}".rstrip("0") if part else "")


def _plain(row: Row) -> Row:
    """A row as the student should write it, and without what training on text does not need."""
    kept = {key: row[key] for key in ("id", "question", "answer")}
    return {**kept, "rationales": [strip_calculator_marks(text) for text in row["rationales"]]}


def _records(name: str) -> list[dict[str, Any]]:
    text = files("rlkd.assets").joinpath(name).read_text(encoding="utf-8")
    # Not str.splitlines: some texts hold characters that it takes for line ends.
    return [json.loads(line) for line in text.split("\n") if line]
