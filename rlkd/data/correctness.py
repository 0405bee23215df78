"""Compare teacher traces with gold answers: which are right, which are wrong, and which have no readable answer.

A trace says what it found by an announcement (`rlkd.answers`), or else in its last line: the result of the last
calculation there, or the only number (our choice). Wrong is what can be nothing else: where other numbers follow the
result, or where it is a hundredth of the gold answer (dollars and cents), the trace counts as unreadable.

>>> trace_verdicts(
...     [
...         ("48/2 = 24 in May.\n48+24 = 72 clips in both months.", "72"),
...         ("So she sold 80.\nA: 80", "72"),
...         ("24 in May and 48 in April.", "72"),
...     ]
... )
[True, False, None]
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlkd.answers import after_thought, equal_pairs, extract_answer, number
from rlkd.steps import split_calculation, strip_calculator_marks, undecorated

# With a sign only where nothing stands before it to subtract from.
_NUMBER = re.compile(r"(?:(?<![\w)\]])(?<![\d)\]] )[-−])?[$€£]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ]*")
# Answers in words that exclude each other.
_YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}

Verdict = bool | None


def trace_verdicts(pairs: Sequence[tuple[str, str | None]], *, options: Sequence[bool] | None = None) -> list[Verdict]:
    """Whether each (trace, gold answer) agrees; None where either answer is missing or unreadable.

    Only answers that are neither plain numbers nor words are compared in worker processes. A gold answer in words is
    compared as text, and a different text is wrong only if both are letters of options, or yes and no. `options`:
    which traces choose among options, so that a value may stand for a letter.
    """
    verdicts: list[Verdict] = [None] * len(pairs)
    compared: dict[int, tuple[str, str]] = {}
    unsure = set()
    for i, (text, gold) in enumerate(pairs):
        right = gold.strip() if gold else ""
        if number(right) is None:
            right = extract_answer(right) or right
        if not right:
            continue
        found, sure = extract_answer(strip_calculator_marks(text)), True
        if found is None and number(right) is not None:
            found, sure = last_line_answer(text)
        if found is None:
            continue
        if _WORDS.fullmatch(right) or (options is not None and options[i]):
            verdicts[i] = _same_words(found, right)
        else:
            compared[i] = found, right
            unsure |= set() if sure else {i}
    for i, verdict in zip(compared, equal_pairs(list(compared.values())), strict=True):
        found, right = compared[i]
        if verdict is True or (verdict is False and i not in unsure and not _is_a_hundredth(found, right)):
            verdicts[i] = verdict
    return verdicts


def last_line_answer(text: str) -> tuple[str | None, bool]:
    """The value that the last line of a text comes to: of its last calculation, or its only number; else None.

    The flag says whether nothing else can be meant: no number follows a calculation (`= 14.28, rounded to 14`).
    """
    line = after_thought(text).rstrip().rpartition("\n")[2]
    _, result = split_calculation(line)
    line = undecorated(line)
    if result is None:
        numbers = _numbers(line)
        return (numbers.pop(), True) if len(numbers) == 1 else (None, False)
    value = number(result)
    if value is None:
        return None, False
    return result, set(map(number, _numbers(line.rpartition("=")[2]))) <= {value}


def _numbers(text: str) -> set[str]:
    return {found.lstrip("$€£").replace("−", "-") for found in _NUMBER.findall(text)}


def _is_a_hundredth(found: str, gold: str) -> bool:
    """Whether a value may be the gold one in dollars and not cents, or as a share and not in percent."""
    value, right = number(found), number(gold)
    return value is not None and right is not None and value * 100 == right


def _same_words(found: str, gold: str) -> Verdict:
    left, right = (" ".join(text.split()).strip("()[].*_` ").casefold() for text in (found, gold))
    left_says, right_says = _YES_OR_NO.get(left), _YES_OR_NO.get(right)
    if left == right:
        return True
    if left_says is not None and right_says is not None:
        return left_says == right_says
    return False if len(left) == len(right) == 1 and (left + right).isalpha() else None
