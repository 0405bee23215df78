"""Vocabularies: whether student and teacher mean the same token by the same id."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlkd.errors import UsageError

# A text on which different tokenizers differ: scripts, spaces, digits, code, rare words.
PROBE = (
    "Natalia sold 48/2 = 24 clips in May.\n\n    total = clips[0] + 1_000.50  # naïve façade, 3 µm, 漢字かな 한국어 "
    "🙂 Straße Привет العربية unquestionably antidisestablishmentarianism \\frac{3}{4} $12,345.67\tif (x >= 10) {}; "
)


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Sixteen characters that differ between tokenizers whose ids mean different tokens."""
    listed = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(listed, ensure_ascii=True).encode()).hexdigest()[:16]


def common_vocabulary(student: Any, teacher: Any) -> int:
    """The number of ids, from 0 on, that two tokenizers share; raises `UsageError` where an id has two meanings.

    A token that only one of them has (an added padding token) must come after all of the other's.
    """
    difference = _difference(student, teacher)
    if difference is not None:
        raise UsageError(
            f"student and teacher have different tokenizers: {difference}. Distillation on log-probabilities needs "
            f"one vocabulary. Use a teacher of the student's family, or train on the teacher's texts: recipes/sft.py"
        )
    return 1 + min(max(student.get_vocab().values()), max(teacher.get_vocab().values()))


def _difference(a: Any, b: Any) -> str | None:
    first, second = ({index: token for token, index in each.get_vocab().items()} for each in (a, b))
    if not first or not second:
        return f"one of them has no tokens ({len(first)} and {len(second)})"
    for index in sorted(first.keys() | second.keys()):
        pair = first.get(index), second.get(index)
        if pair[0] == pair[1] or (None in pair and index > min(max(first), max(second))):
            continue
        one, other = ("no token" if token is None else repr(token) for token in pair)
        return f"id {index} is {one} in the one and {other} in the other ({len(first)} and {len(second)} tokens)"
    return None
