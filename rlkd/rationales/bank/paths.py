"""Paths: the step names of a rationale, their words, and which of several paths are near-duplicates.

>>> distinct_paths([("AddPrices",), ("FindRate",), ("PricesAdd",)])
{('AddPrices',): ('AddPrices',), ('FindRate',): ('FindRate',), ('PricesAdd',): ('AddPrices',)}
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

from rlkd.embedders import Embedder, unit_rows

StepNames = tuple[str, ...]
"""A path: the names of the steps of a rationale, in order."""

_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]|\d+")


def split_name(name: str) -> list[str]:
    """The words of a step name.

    >>> split_name("ComputeTotalCost"), split_name("FindGCD"), split_name("add_up")
    (['Compute', 'Total', 'Cost'], ['Find', 'GCD'], ['add', 'up'])
    """
    return _NAME_PART.findall(name)


def path_words(path: StepNames) -> str:
    """The words of all step names of a path, as one text."""
    return " ".join(" ".join(split_name(name)) for name in path)


def distinct_paths(
    paths: Iterable[StepNames], threshold: float = 0.9, embedder: Embedder | None = None
) -> dict[StepNames, StepNames]:
    """Map each path to the one that represents it: itself if it is kept, else an earlier kept path.

    Greedy in the given order (D-RPC): a path is dropped if its similarity to a kept path reaches `threshold`; its most
    similar kept path, the first of several, represents it. Similarity is the Jaccard index of the words of the names,
    or with an embedder the cosine of these words (the released code takes means of word2vec vectors).
    """
    distinct = list(dict.fromkeys(paths))
    words = [frozenset(path_words(path).lower().split()) for path in distinct]
    rows = None if embedder is None else unit_rows(embedder, [path_words(path) for path in distinct])
    kept: list[int] = []
    kept_with: dict[str, list[int]] = {}
    represented_by: dict[StepNames, StepNames] = {}
    for index, path in enumerate(distinct):
        near: dict[int, float] = {}
        if rows is None:
            # Only kept paths with a word in common are looked at.
            for other, shared in Counter(
                chain.from_iterable(kept_with.get(word, ()) for word in words[index])
            ).items():
                near[other] = shared / (len(words[index]) + len(words[other]) - shared)
        elif kept:
            near = dict(zip(kept, (rows[kept] @ rows[[index]].T).toarray().ravel().tolist(), strict=True))
        nearest = max(near, key=lambda other: (near[other], -other), default=index)
        if near.get(nearest, -math.inf) < threshold:
            nearest = index
            kept.append(index)
            for word in words[index]:
                kept_with.setdefault(word, []).append(index)
        represented_by[path] = distinct[nearest]
    return represented_by


def path_entropy(paths: Iterable[StepNames]) -> float:
    """The entropy of how often each path occurs among `paths`, in bits; 0 for no paths.

    >>> path_entropy([("A",), ("A",), ("B",), ("C",)])
    1.5
    """
    return entropy_bits(Counter(paths).values())


def entropy_bits(counts: Iterable[int]) -> float:
    """The entropy in bits of a distribution given by counts; 0 without counts."""
    sizes = [count for count in counts if count]
    total = sum(sizes)
    # `fsum` rounds once, so the order of the counts makes no difference.
    return math.fsum(size / total * math.log2(total / size) for size in sizes)
