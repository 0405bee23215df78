"""Rewards for answers other than exact mathematics: multiple choice, yes or no, numbers within a tolerance.

The answer is the one that the completion announces (`rlkd.answers.announcement`), or the completion itself if it is
short. An answer that is not announced or unreadable is wrong; with an unreadable gold answer the reward is not
applicable. `docs/answers.md` has the rules.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.contract import CHEAP
from rlkd.answers import after_thought, announcement, extract_answer, squeezed
from rlkd.answers.calculations import calculated
from rlkd.answers.notation import plain
from rlkd.answers.numbers import Quantity, decimal_comma, read_quantity
from rlkd.answers.options import letters, truth, undressed
from rlkd.answers.remarks import without_reason, without_remark
from rlkd.answers.sentences import LONGEST, first_sentence
from rlkd.data.rows import completion_text

# A completion up to this length may be just the answer.
_BARE = 200
_BEHIND_LETTER = re.compile(r"[)\].:,\-–—]+\s*|\s\((?![A-Za-z]\))")
_LETTER_BEHIND = re.compile(r"(?P<text>.*\S)\s*[(\[](?P<letter>\w)[)\]]\.?")
# A list of one value, as a text: "['A']".
_LIST_OF_ONE = re.compile(r"[\[(]\s*(['\"])([^'\"]*)\1\s*,?\s*[\])]")


class MultipleChoice:
    """1 for the right letter, or the right option's text; else 0.

    Columns: `answer`, the right letter, the option's text, or its index in a list of options (from 0); optionally
    `choices` or `options`: {letter: text}, {"label": letters, "text": texts}, or a list of texts for A, B, C. Without
    options, an answer in words counts only if the gold answer has the same words. Where the gold answer has several
    letters ("A, C"), exactly these are right; else two letters are no answer.

    Args:
        prefilled: the chat template opens the thought, so that a completion without a closing tag has no answer.
    """

    __name__ = "multiple_choice"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __init__(self, prefilled: bool = False):
        self.prefilled = prefilled

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
            self._score(completion_text(completion), gold, _by_letter(row))
            for completion, gold, row in zip(completions, answer, rows, strict=True)
        ]

    def _score(self, completion: str, gold: Any, texts: dict[str, str]) -> float | None:
        if gold is None:
            return None
        if listed := _LIST_OF_ONE.fullmatch(str(gold).strip()):
            gold = listed[2]
        if isinstance(gold, int) and not isinstance(gold, bool):
            right = _by_place(gold, texts)
        else:
            right = _chosen(*announced(str(gold)), texts) or _by_place(str(gold).strip(), texts)
        said, found = announced(completion, self.prefilled)
        if right:
            return float(not right.isdisjoint(_chosen(said, found, texts)))
        words = squeezed(undressed(announced(str(gold))[1]))
        return None if texts or not words else float(squeezed(undressed(found)) == words)


class Boolean:
    """1 for the right one of yes (or true) and no (or false); else 0.

    Column: `answer`, a boolean, one of these words, or 1 and 0. An answer may continue ("Yes, because ..."), but not
    with the other word.

    Args:
        prefilled: the chat template opens the thought, so that a completion without a closing tag has no answer.
    """

    __name__ = "boolean"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __init__(self, prefilled: bool = False):
        self.prefilled = prefilled

    def __call__(self, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score a batch."""
        scores: list[float | None] = []
        for completion, gold in zip(completions, answer, strict=True):
            right = _gold_truth(gold)
            said, _ = announced(completion_text(completion), self.prefilled)
            scores.append(None if right is None else float(truth(said) == right))
        return scores


class Numeric:
    """1 for a number within a tolerance of the right one, else 0: |x - gold| <= max(absolute, relative x |gold|).

    Numbers are read as in `accuracy` (`rlkd.answers.numbers`). The comparison is exact: a tolerance of 0 requires the
    same value. Column: `answer`.

    Args:
        relative: share of the right number. Our choice of 0.001 allows rounding to three or four digits.
        absolute: tolerance in the number's own unit, for right numbers near 0.
        prefilled: the chat template opens the thought, so that a completion without a closing tag has no answer.
    """

    __name__ = "numeric"
    gold_columns = ("answer",)
    reward_options = CHEAP

    def __init__(self, relative: float = 1e-3, absolute: float = 0.0, prefilled: bool = False):
        if not (0 <= relative < float("inf") and 0 <= absolute < float("inf")):
            raise ValueError(f"relative {relative!r} and absolute {absolute!r}: expected 0 or above, and finite")
        # From the decimal text: 0.1 is a tenth, not the nearest binary number.
        self.relative = Fraction(str(relative))
        self.absolute = Fraction(str(absolute))
        self.prefilled = prefilled

    def __call__(self, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score a batch."""
        return [
            self._score(completion_text(completion), gold)
            for completion, gold in zip(completions, answer, strict=True)
        ]

    def _score(self, completion: str, gold: Any) -> float | None:
        right = None if gold is None else _quantity(announced(str(gold))[1], whole=False)
        if right is None:
            return None
        near = _quantity(announced(completion, self.prefilled)[1], whole=right.value.denominator == 1)
        return float(near is not None and any(self._near(*values) for values in near.values(right)))

    def _near(self, value: Fraction, right: Fraction) -> bool:
        return abs(value - right) <= max(self.absolute, self.relative * abs(right))


def _quantity(text: str, whole: bool) -> Quantity | None:
    """The number in a text, or the result of a calculation; `whole`: "1,5" is a list of two numbers."""
    text = without_reason(text)
    quantity = read_quantity(text) or decimal_comma(text, Fraction(1, 1 if whole else 2))
    if quantity is None and (value := calculated(plain(text))) is not None:
        return Quantity(value, calculated=True)
    return quantity


def announced(completion: str, prefilled: bool = False) -> tuple[str, str]:
    """What a completion announces with the rest of its line, and the answer alone; the completion itself if short."""
    said = announcement(completion, prefilled=prefilled)
    if said is not None:
        return (
            (said.text, extract_answer(completion, prefilled=prefilled) or "")
            if len(said.text) <= LONGEST
            else ("", "")
        )
    bare = after_thought(completion, prefilled).strip()
    return (bare, without_remark(bare)) if len(bare) <= _BARE else ("", "")


def chosen_option(completion: str, options: Any, prefilled: bool = False) -> str | None:
    """The letter of the option that a completion announces, letters where it names several; None for no option.

    `options` as in `MultipleChoice`; without any, the words of the announced answer.
    """
    said, answer = announced(completion, prefilled)
    texts = _by_letter(options)
    found = _chosen(said, answer, texts)
    if len(found) == 1:
        return ", ".join(sorted(next(iter(found))))
    return None if texts or found else squeezed(undressed(answer)) or None


def announced_truth(completion: str, prefilled: bool = False) -> str | None:
    """`yes` or `no` as a completion announces it; None for neither."""
    found = truth(announced(completion, prefilled)[0])
    return None if found is None else ("no", "yes")[found]


def _by_letter(row: Any) -> dict[str, str]:
    """The options as {capital letter: text}, empty without options."""
    if not row:
        return {}
    if isinstance(row, Mapping):
        if set(row) == {"label", "text"}:
            return {str(k).upper(): str(v) for k, v in zip(row["label"], row["text"], strict=True)}
        return {str(letter).upper(): str(text) for letter, text in row.items() if text is not None}
    return {chr(ord("A") + index): str(text) for index, text in enumerate(row)}


def _by_place(gold: int | str, texts: Mapping[str, str]) -> set[frozenset[str]]:
    """The option at an index from 0, also as a text: rows of a file hold texts."""
    index = int(gold) if isinstance(gold, int) or (gold.isdecimal() and len(gold) <= 3) else -1
    return {frozenset(list(texts)[index : index + 1])} if 0 <= index < len(texts) else set()


def _chosen(said: str, answer: str, texts: Mapping[str, str]) -> set[frozenset[str]]:
    """What an answer may mean: the letters that it names, or the letter of any option with its text."""
    named = letters(said, texts)
    if named:
        # "A. Rome" where Rome is B: the letter and the text disagree.
        behind = squeezed(first_sentence(without_remark(_BEHIND_LETTER.split(undressed(said), maxsplit=1)[-1])))
        others = {squeezed(text) for letter, text in texts.items() if letter not in named}
        same = {squeezed(texts[letter]) for letter in named if letter in texts}
        return set() if {behind, behind.rstrip(")")} & (others - same) else {named}
    both = _LETTER_BEHIND.fullmatch(undressed(said))
    if both and squeezed(texts.get(both["letter"].upper(), "")) == squeezed(both["text"]):
        return {frozenset([both["letter"].upper()])}
    forms = {squeezed(undressed(answer)), squeezed(undressed(said))}
    return {
        frozenset([letter])
        for letter, text in texts.items()
        if squeezed(text) in forms or squeezed(f"{letter} {text}") in forms
    }


def _gold_truth(gold: Any) -> bool | None:
    if isinstance(gold, int | float):  # also a boolean
        return bool(gold) if gold in (0, 1) else None
    text = str(gold).strip().casefold()
    if text in ("1", "1.0", "y", "t", "0", "0.0", "n", "f"):
        return text in ("1", "1.0", "y", "t")
    return truth(announced(text)[0])
