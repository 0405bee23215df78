"""Figures of several completions to one question, as pure functions of what is right and what was answered.

>>> pass_at_k(n=4, right=1, k=2)
0.5
>>> majority_at_k(["7", "8", "8", None], [0.0, 1.0, 1.0, 0.0], k=4)
1.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkd.answers import equal_pairs


def powers(n: int) -> list[int]:
    """1, 2, 4 and so on below n, and n: the values of k that are reported.

    >>> powers(6)
    [1, 2, 4, 6]
    """
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n] if n else []


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that one of k completions is right, estimated from n of which `right` are.

    Chen et al. 2021 (arXiv 2107.03374), equation 1: 1 - C(n - right, k) / C(n, k), unbiased for every k up to n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k(n={n}, right={right}, k={k}): expected 0 <= right <= n and 1 <= k <= n")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[str | None], right: Sequence[float], k: int) -> float:
    """How often the most frequent of k answers is right: the mean over the blocks of k in order, n // k of them.

    `answers` are those of `same_answers`. None is no vote; a block without any is wrong. Of equally frequent answers
    the one that came first is taken, whatever is right (our choice). Blocks do not overlap, so no completion counts
    twice.
    """
    blocks = len(answers) // k
    total = 0.0
    for start in range(0, blocks * k, k):
        votes: dict[str, list[float]] = {}
        for answer, value in zip(answers[start : start + k], right[start : start + k], strict=True):
            if answer is not None:
                votes.setdefault(answer, []).append(value)
        if votes:
            total += max(votes.values(), key=len)[0]  # the first of equals
    return total / blocks


def same_answers(groups: Sequence[Sequence[str | None]]) -> list[list[str | None]]:
    """The answers to each question, equal ones (as `rlkd.answers` compares them) in the words of the first of them.

    >>> same_answers([["1/2", "0.5", None, "3"]])
    [['1/2', '1/2', None, '3']]
    """
    distinct = [list(dict.fromkeys(answer for answer in group if answer)) for group in groups]
    pairs = [(later, earlier) for words in distinct for i, later in enumerate(words) for earlier in words[:i]]
    equal = {pair for pair, verdict in zip(pairs, equal_pairs(pairs), strict=True) if verdict is True}
    named = []
    for group, words in zip(groups, distinct, strict=True):
        first: dict[str, str] = {}
        for word in words:
            first[word] = next((kept for kept in first.values() if (word, kept) in equal), word)
        named.append([first[answer] if answer else None for answer in group])
    return named
