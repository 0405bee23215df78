"""What counts as one: intents that mean the same get one name, and of near-equal paths one is kept.

    >>> from rlkd.rationales.embedders import open_embedder
    >>> canonical_intents(["find a price", "find the price", "measure an angle"], open_embedder())
    {'find a price': 'find a price', 'find the price': 'find a price', 'measure an angle': 'measure an angle'}
    >>> distinct_paths([("AddPrices",), ("FindRate",), ("PricesAdd",)])
    {('AddPrices',): ('AddPrices',), ('FindRate',): ('FindRate',), ('PricesAdd',): ('AddPrices',)}

Both follow D-RPC's released code (arXiv 2605.07139). What comes out depends on the set of intents alone, never on
their order, and on paths only through the order in which they are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rlkd.rationales.embedders import on_grid

if TYPE_CHECKING:
    import numpy as np

    from rlkd.rationales.embedders import Embedder

Path = tuple[str, ...]
"""The names of the steps of a rationale, in order."""

COMPONENTS = 5
MOST_WORDS = 4

_NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]|\d+")


def split_name(name: str) -> list[str]:
    """The words of a step's name.

    >>> split_name("ComputeTotalCost"), split_name("FindGCD"), split_name("add_up")
    (['Compute', 'Total', 'Cost'], ['Find', 'GCD'], ['add', 'up'])
    """
    return _NAME_PART.findall(name)


def path_words(path: Path) -> str:
    """The words of all names of a path, as one text."""
    return " ".join(" ".join(split_name(name)) for name in path)


def canonical_intents(intents: Iterable[str], embedder: Embedder, eps: float = 0.25) -> dict[str, str]:
    """The canonical intent of each intent of one category, in alphabetical order.

    The distinct intents are embedded, projected on their first min(5, n, width) principal components, and clustered by
    DBSCAN with radius `eps` and at least two members (D-RPC, its seed 42 left out: neither step draws anything here).
    A cluster goes by its shortest member (fewest words, then fewest characters, then by the alphabet: the last is
    ours), an intent that is near to none by itself; names are cut to four words. Clusters whose names become equal by
    that are one, and so are a cluster and the intent that is its name: a canonical intent always stands for itself.
    """
    distinct = sorted(set(intents))
    names: dict[str, str] = {}
    for members in _clusters(distinct, embedder, eps):
        name = short_name(min(members, key=lambda intent: (len(intent.split()), len(intent), intent)))
        names |= dict.fromkeys(members, name)
    return {intent: names.get(names[intent], names[intent]) for intent in distinct}


def short_name(intent: str) -> str:
    """An intent cut to four words."""
    return " ".join(intent.split()[:MOST_WORDS])


def _clusters(intents: list[str], embedder: Embedder, eps: float) -> list[list[str]]:
    if len(intents) < 2:
        return [[intent] for intent in intents]
    from sklearn.cluster import DBSCAN

    labels = DBSCAN(eps=eps, min_samples=2).fit_predict(projected(embedder.embed(intents)))
    clusters: dict[tuple[int, int], list[str]] = {}
    for place, (intent, label) in enumerate(zip(intents, labels, strict=True)):
        clusters.setdefault((int(label), place if label < 0 else 0), []).append(intent)
    return list(clusters.values())


def projected(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, width) on their first min(5, n, width) principal components, (n, at most 5) in float64.

    By a full singular value decomposition, so that nothing is drawn; the sign of a component is arbitrary, and no
    distance depends on it.
    """
    import numpy as np

    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return (left * sizes)[:, :COMPONENTS]


def distinct_paths(
    paths: Sequence[Path], threshold: float = 0.9, embedder: Embedder | None = None
) -> dict[Path, Path]:
    """For each path the one that stands for it: itself where it is kept, else a kept one before it.

    Greedy in the order given (D-RPC): a path goes whose similarity with a kept one is at least `threshold`, and its
    most similar kept one stands for it, the first of several. Similarity is the Jaccard index of the words of the
    names; with an embedder the cosine of the vectors of these words (the released code takes means of word2vec vectors
    there). What is kept is kept whole if it is put through again.
    """
    distinct = list(dict.fromkeys(paths))
    similarity = _jaccard(distinct) if embedder is None else _cosine(distinct, embedder)
    kept: list[int] = []
    stands_for: dict[Path, Path] = {}
    for place, path in enumerate(distinct):
        values = similarity(place, kept)
        best = max(range(len(kept)), key=lambda index: values[index], default=None)
        if best is None or values[best] < threshold:
            kept.append(place)
            stands_for[path] = path
        else:
            stands_for[path] = distinct[kept[best]]
    return stands_for


def _jaccard(paths: list[Path]) -> Callable[[int, list[int]], list[float]]:
    words = [frozenset(path_words(path).lower().split()) for path in paths]

    def similarity(place: int, others: list[int]) -> list[float]:
        mine = words[place]
        # Two paths without a word have nothing in common: they are different, or they would be one already.
        return [len(mine & words[other]) / max(1, len(mine | words[other])) for other in others]

    return similarity


def _cosine(paths: list[Path], embedder: Embedder) -> Callable[[int, list[int]], list[float]]:
    vectors = on_grid(embedder.embed([path_words(path) for path in paths]))

    def similarity(place: int, others: list[int]) -> list[float]:
        return (vectors[others] @ vectors[place]).tolist()

    return similarity
