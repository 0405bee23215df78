"""The selector `clean`: drops malformed texts, whatever their answer.

`docs/selection.md` lists the rules. All but the near copies take time linear in the text; these compare the candidates
of one question with those kept before.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from rlkd.answers import extract_answer, number, numbers, squeezed
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import SelectorVerdict
from rlkd.rationales.select.ngrams import jaccard, ngrams

EMPTY = "empty"
TOO_LONG = "too long"
CONTROL = "control characters"
SCRIPT = "another script"
ANSWER_FIRST = "answer first"
NEAR_COPY = "near copy"

_LABEL = re.compile(r"\s*(?:final )?(?:answer|result|solution)\s*(?:is|=|:)?\s*", re.IGNORECASE)


class Clean:
    """Drops a candidate for the first rule that applies.

    Args:
        max_characters: maximum length of a rationale. A GSM8K solution has about 300, a long one 1,500.
        max_foreign: maximum share of foreign letters, 0 to 1.
        near_copy: share of common 3-grams from which two are copies of each other, above 0 and at most 1.
    """

    __name__ = "clean"

    def __init__(self, *, max_characters: int = 8000, max_foreign: float = 0.2, near_copy: float = 0.9) -> None:
        if max_characters < 1:
            raise ValueError(f"max_characters={max_characters}: expected at least 1")
        if not 0 <= max_foreign <= 1:
            raise ValueError(f"max_foreign={max_foreign}: expected a share from 0 to 1")
        if not 0 < near_copy <= 1:
            raise ValueError(f"near_copy={near_copy}: expected a share above 0 and at most 1")
        self.max_characters = max_characters
        self.max_foreign = max_foreign
        self.near_copy = near_copy

    def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        return [list(map(SelectorVerdict, self._reasons(question))) for question in questions]

    def _reasons(self, question: Question) -> list[str | None]:
        reasons = [self._fault(question, each.text) for each in question.candidates]
        sound = [(len(each.text), each.id, n) for n, each in enumerate(question.candidates) if reasons[n] is None]
        kept: list[frozenset[tuple[str, ...]]] = []
        for _, _, index in sorted(sound):
            grams = ngrams(question.candidates[index].text)
            if any(jaccard(grams, other) >= self.near_copy for other in kept):
                reasons[index] = NEAR_COPY
            else:
                kept.append(grams)
        return reasons

    def _fault(self, question: Question, text: str) -> str | None:
        if len(text) > self.max_characters:
            return TOO_LONG if any(map(str.isalnum, text)) else EMPTY
        if not any(map(str.isalnum, text)):
            return EMPTY
        if any(map(_is_control, text)):
            return CONTROL
        if foreign_share(text, question.question) > self.max_foreign:
            return SCRIPT
        return ANSWER_FIRST if answers_first(question, text) else None


def answers_first(question: Question, text: str) -> bool:
    """Whether the first line of a rationale gives the answer away before any calculation.

    It does if other lines follow and the first, after a label such as `Answer:`,

    - announces an answer (`rlkd.answers`) without a calculation on that line,
    - or is the right answer and nothing else,
    - or contains one number only, the right answer, which is not in the question, and no equals sign.

    A text that only announces an answer does not: it has no other line.
    """
    lines = [line for line in text.split("\n") if any(map(str.isalnum, line))]
    if len(lines) < 2 or (lines[1:] == [lines[-1]] and lines[-1].lstrip().startswith("####")):
        return False
    first = lines[0].strip().strip("*_#` ")
    if "=" in first:
        return False
    if extract_answer(lines[0]) is not None:
        return True
    if question.answer is None:
        return False
    gold = extract_answer(question.answer) or question.answer.strip()
    bare = _LABEL.sub("", first, count=1) if _LABEL.match(first) else first
    if squeezed(bare) == squeezed(gold):
        return True
    value = number(gold)
    if value is None:
        return False
    return number(bare) == value or (numbers(first) == [abs(value)] and abs(value) not in numbers(question.question))


def foreign_share(text: str, question: str) -> float:
    """The share of a text's letters in scripts without a letter in the question; 0 if either has no letters."""
    home = {_script(character) for character in question if character.isalpha()}
    counts = Counter(_script(character) for character in text if character.isalpha())
    if not home or not counts:
        return 0.0
    return sum(times for script, times in counts.items() if script not in home) / counts.total()


@lru_cache(maxsize=2**16)
def _script(character: str) -> str:
    """The script of a letter: the first word of its name (LATIN, CYRILLIC, CJK, HIRAGANA)."""
    return unicodedata.name(character, "unnamed").partition(" ")[0]


@lru_cache(maxsize=2**16)
def _is_control(character: str) -> bool:
    unusable = unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") and character not in "\n\r\t"
    return unusable or character == "\ufffd"
