"""N-grams of the words, numbers and signs of a text, and their overlap.

>>> jaccard(ngrams("3 + 4 = 7 apples"), ngrams("3 + 4 = 8 apples"))
0.2
"""

from __future__ import annotations

import re

from rlkd.steps import strip_calculator_marks

_PIECE = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")


def pieces(text: str) -> list[str]:
    """The words, numbers and signs of a text in lower case, in order, without calculator marks."""
    return _PIECE.findall(strip_calculator_marks(text).lower())


def ngrams(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    """The runs of `size` pieces of a text; a shorter text is one run, and an empty one has none."""
    parts = pieces(text)
    if len(parts) < size:
        return frozenset([tuple(parts)]) if parts else frozenset()
    return frozenset(zip(*(parts[start:] for start in range(size)), strict=False))


def jaccard(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    """The Jaccard index of two sets; 1 for two empty ones."""
    return len(left & right) / len(left | right) if left or right else 1.0
