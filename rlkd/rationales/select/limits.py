"""The limits at the end of a selection: a number per question, a share of all rationales, a token budget.

The cuts compare (score, id) only, so neither the order of the candidates nor their division into shards changes the
result: shards give their `LimitItem`s, `SelectionLimits.cut` returns the ids that stay, and each shard keeps its own.

    >>> items = [LimitItem("q1", "a", 0.3, 10), LimitItem("q1", "b", 0.1, 10), LimitItem("q2", "c", 0.2, 10)]
    >>> sorted(SelectionLimits(by="log_rd", per_question=1).cut(items))
    [('q1', 'b'), ('q2', 'c')]
    >>> sorted(SelectionLimits(by="log_rd", token_budget=20).cut(items))
    [('q1', 'b'), ('q2', 'c')]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlkd.rationales.records import Candidate, DroppedCandidate, Question
from rlkd.rationales.select.contract import SelectorError, SelectorVerdict, divide
from rlkd.rationales.select.controls import draw
from rlkd.rationales.select.ngrams import pieces
from rlkd.registry import suggestion

PER_QUESTION = "over the number a question"
KEEP_RATIO = "over the share of all"
TOKEN_BUDGET = "over the token budget"


@dataclass(frozen=True, slots=True)
class LimitItem:
    """A candidate in a cut. `score`: the lowest are kept; `tokens`: of its text, 0 without a token budget."""

    question_id: str
    id: str
    score: float
    tokens: int


@dataclass(frozen=True)
class SelectionLimits:
    """Cuts in this order, each on the result of the one before.

    Args:
        by: name of the score, lowest first; `-judge`: highest first. None: drawn by `seed`.
        per_question: maximum number of candidates per question.
        keep_ratio: share of all candidates to keep, above 0 and at most 1, rounded to the nearest number.
        token_budget: tokens of all kept candidates together. They are taken in order until one does not fit, so a
            smaller budget keeps a part of the candidates that a larger one keeps.
        seed: of the draw.

    Raises ValueError for numbers outside their ranges.
    """

    by: str | None = None
    per_question: int | None = None
    keep_ratio: float | None = None
    token_budget: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by is not None and not self.by.lstrip("-"):
            raise ValueError(f"by={self.by!r}: expected the name of a score, perhaps with a minus before it, or None")
        for name in ("per_question", "token_budget"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1, or None")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio={self.keep_ratio!r}: expected a share above 0 and at most 1, or None")

    def items(self, question: Question, count: Callable[[str], int] | None = None) -> list[LimitItem]:
        """The items of a question's candidates.

        `count`: counts the student's tokens of a text; None: words, numbers and signs. Texts are counted only for a
        `token_budget`. Raises `SelectorError` for a candidate without the score `by`.
        """
        measure = (count or count_pieces) if self.token_budget is not None else lambda text: 0
        return [
            LimitItem(question.id, each.id, self._key(question, each), measure(each.text))
            for each in question.candidates
        ]

    def cut(self, items: Iterable[LimitItem]) -> set[tuple[str, str]]:
        """The kept ones of all items, as (question id, candidate id)."""
        return {name for name, reason in self.reasons(items).items() if reason is None}

    def reasons(self, items: Iterable[LimitItem]) -> dict[tuple[str, str], str | None]:
        """For each item None if it is kept, else the cut that dropped it."""
        order = sorted(items, key=lambda item: (item.score, item.id, item.question_id))
        reasons: dict[tuple[str, str], str | None] = {(item.question_id, item.id): None for item in order}
        if self.per_question is not None:
            seen: Counter[str] = Counter()
            for item in order:
                seen[item.question_id] += 1
                if seen[item.question_id] > self.per_question:
                    reasons[item.question_id, item.id] = PER_QUESTION
            order = [item for item in order if reasons[item.question_id, item.id] is None]
        if self.keep_ratio is not None:
            # Halves are rounded up, so that one of one stays.
            first = math.floor(self.keep_ratio * len(order) + 0.5)
            for item in order[first:]:
                reasons[item.question_id, item.id] = KEEP_RATIO
            order = order[:first]
        if self.token_budget is not None:
            used = 0
            for item in order:
                used += item.tokens
                if used > self.token_budget:
                    reasons[item.question_id, item.id] = TOKEN_BUDGET
        return reasons

    def apply(
        self, questions: Sequence[Question], count: Callable[[str], int] | None = None
    ) -> tuple[list[Question], list[DroppedCandidate]]:
        """The questions with the candidates that all cuts keep, and the dropped ones; as a selector's `apply`."""
        reasons = self.reasons(item for question in questions for item in self.items(question, count))
        verdicts = [[SelectorVerdict(reasons[each.id, own.id]) for own in each.candidates] for each in questions]
        return divide(questions, verdicts, "limits")

    def _key(self, question: Question, each: Candidate) -> float:
        if self.by is None:
            return draw(self.seed, f"{question.id}\x1f{each.id}")
        name = self.by.removeprefix("-")
        if name not in each.scores:
            raise SelectorError(
                f"limits are by the score {name!r}, which candidate {each.id} of question {question.id!r} does not "
                f"have; the selector that gives it must come before.{suggestion(name, each.scores)}"
            )
        return -each.scores[name] if self.by.startswith("-") else each.scores[name]


def count_pieces(text: str) -> int:
    """The words, numbers and signs of a text: about four fifths of its tokens under most vocabularies."""
    return len(pieces(text))
