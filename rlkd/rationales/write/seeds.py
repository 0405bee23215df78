"""The questions from which a bank is made.

>>> questions = [Question(f"q{i}", "?", columns={"topic": "ab"[i % 2]}) for i in range(40)]
>>> len(seed_set(questions, 0.1, "topic"))
4
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rlkd.errors import UsageError
from rlkd.rationales.records import Question
from rlkd.registry import suggestion


def seed_set(
    questions: Sequence[Question], share: float, category: str | None = None, seed: int = 42
) -> frozenset[str]:
    """Ids of the questions from which a bank is made: `share` of them, at least one, each category in proportion.

    Parts are rounded by largest remainder. A hash of seed and id draws the questions of a category, so neither the
    order nor other categories matter (our choice; the released code draws with a generator). Raises `UsageError` if no
    question has a column `category`.
    """
    if category and questions and not any(category in question.columns for question in questions):
        names = sorted({name for question in questions for name in question.columns})
        raise UsageError(f"category={category!r}: no question has a column of that name.{suggestion(category, names)}")
    groups: dict[str, list[str]] = {}
    for question in questions:
        groups.setdefault(str(question.columns.get(category)) if category else "", []).append(question.id)
    total = max(1, round(share * len(questions))) if questions else 0
    exact = {name: total * len(ids) / len(questions) for name, ids in groups.items()}
    quota = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(groups, key=lambda name: (quota[name] - exact[name], name))
    for name in by_remainder[: total - sum(quota.values())]:
        quota[name] += 1

    def drawn(question_id: str) -> str:
        return hashlib.sha256(json.dumps([seed, "seed set", question_id]).encode()).hexdigest()

    return frozenset(each for name, ids in groups.items() for each in sorted(ids, key=drawn)[: quota[name]])
