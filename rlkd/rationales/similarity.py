"""How alike two rationales are: by their words, or by their structure. In [0, 1], 1 for the same.

>>> share_of_ngrams(ngrams("3 + 4 = 7 apples"), ngrams("3 + 4 = 8 apples"))
0.2
"""

from __future__ import annotations

import re

from rlkd.gsrm.alignment import Ordered
from rlkd.gsrm.judges import DeterministicJudge
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Structure

# The most pieces of a text that ROUGE-L looks at.
_PIECES = 4096
_PIECE = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")


def pieces(text: str) -> list[str]:
    """The words, numbers and signs of a text in small letters, in order; calculator marks are left out."""
    return _PIECE.findall(strip_calculator_marks(text).lower())


def ngrams(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    """The runs of `size` pieces of a text; a shorter text is one run by itself, and an empty one has none."""
    found = pieces(text)
    if len(found) < size:
        return frozenset([tuple(found)]) if found else frozenset()
    return frozenset(zip(*(found[start:] for start in range(size)), strict=False))


def share_of_ngrams(mine: frozenset[tuple[str, ...]], theirs: frozenset[tuple[str, ...]]) -> float:
    """The Jaccard index of two sets; 1 for two empty ones."""
    if not mine and not theirs:
        return 1.0
    return len(mine & theirs) / len(mine | theirs)


def structure_similarity(mine: Structure, theirs: Structure, judge: DeterministicJudge) -> float:
    """How much of the steps of two structures corresponds, in order: the rule `ordered` of `rlkd.gsrm.alignment`.

    Symmetric, since F1 is and so are the judge's verdicts. Two structures without steps are alike (1), one with and
    one without are not (0). Our choice: n-grams call two ways of writing the same calculations different paths, and
    embeddings call two different ways through the same problem alike; this looks at what is computed.
    """
    if not len(mine) and not len(theirs):
        return 1.0
    verdicts = [[judge.compare(step, other)] for step in mine for other in theirs]
    return Ordered().score(mine, theirs, verdicts, len(theirs)).value


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L of two texts: F1 of the longest common subsequence of their pieces; 0 where either has none.

    Of a text with more than 4,096 pieces the rest is not looked at.

    >>> rouge_l("3 + 4 = 7", "so 3 + 4 = 8")
    0.7272727272727273
    """
    mine, theirs = pieces(answer)[:_PIECES], pieces(reference)[:_PIECES]
    if not mine or not theirs:
        return 0.0
    return 2 * _longest_common(mine, theirs) / (len(mine) + len(theirs))


def _longest_common(mine: list[str], theirs: list[str]) -> int:
    """The length of the longest common subsequence; a row of its table is one number, a bit an entry (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, piece in enumerate(mine):
        places[piece] = places.get(piece, 0) | 1 << place
    everywhere = (1 << len(mine)) - 1
    row = everywhere
    for piece in theirs:
        found = row & places.get(piece, 0)
        row = ((row + found) | (row - found)) & everywhere
    return len(mine) - row.bit_count()
