"""What counts as one: intents that mean the same get one name, and of near-equal paths one is kept.

    >>> from rlkd.rationales.bank.embedders import open_embedder
    >>> canonical_intents(["find a price", "find the price", "measure an angle"], open_embedder())
    {'find a price': 'find a price', 'find the price': 'find a price', 'measure an angle': 'measure an angle'}
    >>> distinct_paths([("AddPrices",), ("FindRate",), ("PricesAdd",)])
    {('AddPrices',): ('AddPrices',), ('FindRate',): ('FindRate',), ('PricesAdd',): ('AddPrices',)}

Both follow D-RPC's released code (arXiv 2605.07139). What comes out depends on the set of intents alone, never on
their order, and on paths only through the order in which they are given.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rlkd.rationales.bank.embedders import KnownVectors, rows_on_grid, sparse_rows

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

    from rlkd.rationales.bank.embedders import Embedder

Path = tuple[str, ...]
"""The names of the steps of a rationale, in order."""

COMPONENTS = 5
MOST_WORDS = 4

FULL_SVD = 200
"""Up to so many intents, or 32 columns, the decomposition is the full one (see `projected`)."""

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


def canonical_intents(
    intents: Iterable[str], embedder: Embedder, eps: float = 0.25, known: KnownVectors | None = None
) -> dict[str, str]:
    """The canonical intent of each intent of one category, in alphabetical order.

    The distinct intents are embedded, projected on their first min(5, n, width) principal components, and clustered
    by DBSCAN with radius `eps` and at least two members (D-RPC). A cluster goes by its shortest member (fewest words,
    then fewest characters, then by the alphabet: the last is ours), an intent that is near to none by itself; names
    are cut to four words. Clusters whose names become equal by that are one, and so are a cluster and the intent that
    is its name: a canonical intent always stands for itself. `known` holds vectors of this embedder from earlier
    calls; those that are missing are added.
    """
    distinct = sorted(set(intents))
    names: dict[str, str] = {}
    for members in _clusters(distinct, embedder, eps, KnownVectors() if known is None else known):
        name = short_name(min(members, key=lambda intent: (len(intent.split()), len(intent), intent)))
        names |= dict.fromkeys(members, name)
    return {intent: names.get(names[intent], names[intent]) for intent in distinct}


def short_name(intent: str) -> str:
    """An intent cut to four words."""
    return " ".join(intent.split()[:MOST_WORDS])


def _clusters(intents: list[str], embedder: Embedder, eps: float, known: KnownVectors) -> list[list[str]]:
    if len(intents) < 2:
        return [[intent] for intent in intents]
    clusters: dict[int, list[str]] = {}
    labels = linked(projected(known.rows(intents, embedder)), eps).tolist()
    for intent, label in zip(intents, labels, strict=True):
        clusters.setdefault(label, []).append(intent)
    return list(clusters.values())


def projected(vectors: np.ndarray | csr_array) -> np.ndarray:
    """Vectors (n, width) on their first min(5, n, width) principal components, (n, at most 5) in float64.

    Up to 200 vectors by a full singular value decomposition, so that nothing is drawn. Beyond that by ARPACK on the
    sparse rows, which are never centred in memory: its starting vector is drawn with D-RPC's seed 42, it goes on to
    the precision of float64 (1e-14 from the full decomposition, measured), and beside the rows it holds some 20
    vectors as long as these are many. The sign of a component is arbitrary, and no distance depends on it.
    """
    import numpy as np
    from scipy.sparse import csr_array

    count, width = vectors.shape
    if count <= FULL_SVD or width <= 32:
        dense = vectors.toarray() if isinstance(vectors, csr_array) else vectors
        centred = dense.astype(np.float64) - dense.mean(axis=0, dtype=np.float64)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        return (left * sizes)[:, :COMPONENTS]
    return _leading(csr_array(vectors, dtype=np.float64))


def _leading(rows: csr_array) -> np.ndarray:
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, svds

    mean = rows.sum(axis=0) / rows.shape[0]
    # The sum of squares around the mean; where nothing is left but rounding there is no direction to find.
    if np.square(rows.data).sum() - rows.shape[0] * np.square(mean).sum() <= 1e-9:
        return np.zeros((rows.shape[0], COMPONENTS))
    transposed = rows.T.tocsr()
    centred = LinearOperator(
        rows.shape,
        matvec=lambda vector: rows @ vector.ravel() - mean @ vector.ravel(),
        rmatvec=lambda vector: transposed @ vector.ravel() - mean * vector.sum(),
        dtype=np.float64,
    )
    start = np.random.default_rng(42).standard_normal(min(rows.shape))
    left, sizes, _ = svds(centred, k=COMPONENTS, v0=start)
    return (left * sizes)[:, ::-1]


def linked(places: np.ndarray, eps: float) -> np.ndarray:
    """A label for each of the places (n, dimensions): equal where they are linked by steps of at most `eps`.

    These are the clusters of DBSCAN with two members at least, for then a place with any neighbour is a core; what
    DBSCAN calls noise has a label of its own. Distances are compared as scikit-learn does, so that even a distance of
    `eps` falls alike. Memory is linear in n, where scikit-learn lists all neighbours of all places: as many as n^2, if
    most fall together. Time is near linear then, and quadratic where most places are alone.
    """
    import numpy as np

    order = np.argsort(places[:, 0], kind="stable")
    places = places[order]
    first = places[:, 0]
    # A little more than eps, for the rounding of the difference.
    reach = eps * (1 + 1e-9)
    at_once = max(1, 2**20 // len(places))
    labels = np.full(len(places), -1)
    for start in range(len(places)):
        if labels[start] >= 0:
            continue
        labels[start] = start
        front = np.array([start])
        while len(front):
            block, front = front[:at_once], front[at_once:]
            low, high = np.searchsorted(first, (first[block].min() - reach, first[block].max() + reach))
            waiting = low + np.flatnonzero(labels[low:high] < 0)
            apart = np.zeros((len(block), len(waiting)))
            for axis in range(places.shape[1]):
                apart += np.square(places[block, axis][:, None] - places[waiting, axis])
            reached = waiting[(apart <= eps * eps).any(axis=0)]
            labels[reached] = start
            front = np.concatenate([front, reached])
    found = np.empty_like(labels)
    found[order] = labels
    return found


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
    judge = _ByWords(distinct, threshold) if embedder is None else _ByEmbedder(distinct, embedder)
    stands_for: dict[Path, Path] = {}
    for place, path in enumerate(distinct):
        similarity, nearest = judge.nearest(place)
        if similarity < threshold:
            judge.keep(place)
            nearest = place
        stands_for[path] = distinct[nearest]
    return stands_for


class _ByWords:
    """The Jaccard index of the words of a path with those of the kept ones.

    Compared are only kept paths that can reach the threshold: they have most words of the path, so at least one of its
    few rarest.
    """

    def __init__(self, paths: list[Path], threshold: float) -> None:
        self.threshold = threshold
        self.words = [frozenset(path_words(path).lower().split()) for path in paths]
        self.frequency = Counter(word for words in self.words for word in words)
        self.kept: dict[str, list[int]] = {}

    def nearest(self, place: int) -> tuple[float, int]:
        """The greatest similarity, and the first kept path that has it; (-inf, -1) where none comes into question."""
        mine = self.words[place]
        # So many words may be missing in one that reaches the threshold; less a hair, for the rounding of the product.
        missing = len(mine) - math.ceil(self.threshold * len(mine) - 1e-9)
        rarest = sorted(mine, key=lambda word: (self.frequency[word], word))[: missing + 1]
        others = {other for word in rarest for other in self.kept.get(word, ())}
        best = max(((self._jaccard(mine, self.words[other]), -other) for other in others), default=(-math.inf, 1))
        return best[0], -best[1]

    def keep(self, place: int) -> None:
        """Compare later paths with this one too."""
        for word in self.words[place]:
            self.kept.setdefault(word, []).append(place)

    @staticmethod
    def _jaccard(mine: frozenset[str], theirs: frozenset[str]) -> float:
        return len(mine & theirs) / len(mine | theirs)


class _ByEmbedder:
    """The cosine of the words of a path with those of the kept ones, 256 paths at a time."""

    def __init__(self, paths: list[Path], embedder: Embedder) -> None:
        self.rows = rows_on_grid(sparse_rows(embedder, [path_words(path) for path in paths]))
        self.kept: list[int] = []
        self.start = self.stop = 0
        self.block: Any = None

    def nearest(self, place: int) -> tuple[float, int]:
        """As `_ByWords.nearest`."""
        if place >= self.stop:
            self.start, self.stop = place, place + 256
            self.block = self.rows[: self.stop] @ self.rows[place : self.stop].toarray().T
        if not self.kept:
            return -math.inf, -1
        similarities = self.block[self.kept, place - self.start]
        best = int(similarities.argmax())
        return float(similarities[best]), self.kept[best]

    def keep(self, place: int) -> None:
        """As `_ByWords.keep`."""
        self.kept.append(place)
