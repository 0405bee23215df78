"""Rewards for answers other than exact mathematics: multiple choice, yes or no, numbers within a tolerance.

The answer is the one that the completion announces (`rlkd.answers.extract_answer`), or the completion itself if it is
short. An answer that is not announced or unreadable is wrong; with an unreadable gold answer the reward is not
applicable.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.contract import CHEAP
from rlkd.answers import extract_answer, number, squeezed
from rlkd.data.rows import completion_text

# Characters at the end of a completion that are searched for an answer, which bounds the time.
READ = 20_000
# A completion up to this length may be just the answer.
_BARE = 200

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm)\{([^{}]*)\}")
_LETTER = re.compile(r"(?:(?i:option|choice)\s+)?[(\[]?([A-Za-z])(?:[)\]]?$|[)\].:,])")
_WORD = re.compile(r"(yes|no|true|false)(?:[\s.!)\]]*$|[.,;:!)])", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"([-+]?[\d.,]+)(?:[eE]|(?:\*|×|\\times|\\cdot)10\^)\{?([-+]?\d{1,3})\}?")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")


class MultipleChoice:
    """1 for the right letter, or the right option's text; else 0.

    Columns: `answer`, the right letter, the option's text, or its index in a list of options (from 0); optionally
    `choices` or `options`: {letter: text}, {"label": letters, "text": texts}, or a list of texts for A, B, C. Without
    options, an answer in words counts only if the gold answer has the same words.
    """

    __name__ = "multiple_choice"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[Any],
        choices: Sequence[Any] | None = None,
        options: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score a batch."""
        column = choices if choices is not None else options
        rows = [None] * len(completions) if column is None else column
        return [
            self._score(announced(completion_text(completion)), gold, _by_letter(row))
            for completion, gold, row in zip(completions, answer, rows, strict=True)
        ]

    def _score(self, found: str, gold: Any, texts: dict[str, str]) -> float | None:
        if gold is None:
            return None
        if isinstance(gold, int) and not isinstance(gold, bool):
            right = set(list(texts)[gold : gold + 1] if gold >= 0 else ())
        else:
            right = _chosen(str(gold), texts)
        if right:
            return float(not right.isdisjoint(_chosen(found, texts)))
        if texts or not squeezed(str(gold)):
            return None
        return float(squeezed(found) == squeezed(str(gold)))


class Boolean:
    """1 for the right one of yes (or true) and no (or false); else 0.

    Column: `answer`, a boolean or one of these words. An answer may continue after punctuation: "Yes, because ...".
    """

    __name__ = "boolean"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __call__(self, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score a batch."""
        scores: list[float | None] = []
        for completion, gold in zip(completions, answer, strict=True):
            right = gold if isinstance(gold, bool) else _yes(str(gold))
            scores.append(None if right is None else float(_yes(announced(completion_text(completion))) == right))
        return scores


class Numeric:
    """1 for a number within a tolerance of the right one, else 0: |x - gold| <= max(absolute, relative x |gold|).

    Numbers may have units, currency signs, thousands commas or powers of ten, or be fractions. The comparison is
    exact: a tolerance of 0 requires the same value. Column: `answer`.

    Args:
        relative: share of the right number. Our choice of 0.001 allows rounding to three or four digits.
        absolute: tolerance in the number's own unit, for right numbers near 0.
    """

    __name__ = "numeric"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __init__(self, relative: float = 1e-3, absolute: float = 0.0):
        if not (0 <= relative < float("inf") and 0 <= absolute < float("inf")):
            raise ValueError(f"relative {relative!r} and absolute {absolute!r}: expected 0 or above, and finite")
        # From the decimal text: 0.1 is a tenth, not the nearest binary number.
        self.relative = Fraction(str(relative))
        self.absolute = Fraction(str(absolute))

    def __call__(self, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score a batch."""
        return [
            self._score(announced(completion_text(completion)), gold)
            for completion, gold in zip(completions, answer, strict=True)
        ]

    def _score(self, found: str, gold: Any) -> float | None:
        right = None if gold is None else value(announced(str(gold)))
        if right is None:
            return None
        near = value(found)
        return float(near is not None and abs(near - right) <= max(self.absolute, self.relative * abs(right)))


def announced(text: str) -> str:
    """The announced answer, or the text itself if short, or ""; reads the last `READ` characters only."""
    answer = text.rpartition("</think>")[2][-READ:].strip()
    found = extract_answer(answer)
    if found is None:
        found = answer if len(answer) <= _BARE else ""
    return _WRAPPED.sub(r"\1", found).strip().strip("*_`$\"' ").strip()


def value(text: str) -> Fraction | None:
    """The exact value of a number or None; reads powers of ten and LaTeX fractions besides what `number` reads."""
    text = text[:_BARE].replace("−", "-").replace("$", "").strip().rstrip(".")
    if (match := _FRACTION.fullmatch(text)) is not None:
        numerator, denominator = number(match[2]), number(match[3])
        if numerator is None or not denominator:
            return None
        return numerator / denominator * (-1 if match[1] == "-" else 1)
    if (match := _SCIENTIFIC.fullmatch(text.replace(" ", ""))) is not None:
        factor = number(match[1])
        return None if factor is None else factor * Fraction(10) ** int(match[2])
    return number(text)


def _by_letter(row: Any) -> dict[str, str]:
    """The options as {capital letter: text}, empty without options."""
    if not row:
        return {}
    if isinstance(row, Mapping):
        if set(row) == {"label", "text"}:
            return {str(k).upper(): str(v) for k, v in zip(row["label"], row["text"], strict=True)}
        return {str(letter).upper(): str(text) for letter, text in row.items() if text is not None}
    return {chr(ord("A") + index): str(text) for index, text in enumerate(row)}


def _chosen(found: str, texts: Mapping[str, str]) -> set[str]:
    """The letter that an answer names, or the letters of all options with its text."""
    match = _LETTER.match(found)
    if match is not None and (not texts or match[1].upper() in texts):
        return {match[1].upper()}
    alike = {letter for letter, text in texts.items() if squeezed(text) == squeezed(found)}
    # Labels may be numbers, as in some rows of ARC.
    return alike or {found.strip("()[]. ").upper()} & set(texts)


def _yes(text: str) -> bool | None:
    match = _WORD.match(text.strip("([ "))
    return None if match is None else match[1].casefold() in ("yes", "true")
