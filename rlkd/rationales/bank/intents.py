"""Canonical intents: wordings of one intent get one name.

    >>> from rlkd.embedders import open_embedder
    >>> canonical_intents(["find a price", "find the price", "measure an angle"], open_embedder())
    {'find a price': 'find a price', 'find the price': 'find a price', 'measure an angle': 'measure an angle'}

Follows D-RPC's released code (arXiv 2605.07139). The result depends on the set of intents only, not on their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlkd.embedders import KnownVectors

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

    from rlkd.embedders import Embedder

COMPONENTS = 5
MAX_WORDS = 4
FULL_SVD = 200
"""Up to this many intents, or 32 columns, the decomposition is a full one (see `projected`)."""


def canonical_intents(
    intents: Iterable[str], embedder: Embedder, eps: float = 0.25, known: KnownVectors | None = None
) -> dict[str, str]:
    """The canonical intent of each intent of one category, in alphabetical order.

    The distinct intents are embedded, `projected`, and clustered by DBSCAN with radius `eps` and at least two members
    (D-RPC). A cluster is named after its shortest member (fewest words, then fewest characters, then alphabetical
    order: the last is ours), truncated to four words. Clusters of one name are merged, and so are a cluster and the
    intent equal to its name: a canonical intent maps to itself. `known` caches vectors between calls.
    """
    distinct = sorted(set(intents))
    labels: list[int] = [0] * len(distinct)
    if len(distinct) > 1:
        labels = linked(projected((KnownVectors() if known is None else known).rows(distinct, embedder)), eps).tolist()
    clusters: dict[int, list[str]] = {}
    for intent, label in zip(distinct, labels, strict=True):
        clusters.setdefault(label, []).append(intent)
    names: dict[str, str] = {}
    for members in clusters.values():
        shortest = min(members, key=lambda intent: (len(intent.split()), len(intent), intent))
        names |= dict.fromkeys(members, " ".join(shortest.split()[:MAX_WORDS]))
    return {intent: names.get(names[intent], names[intent]) for intent in distinct}


def projected(vectors: np.ndarray | csr_array) -> np.ndarray:
    """Vectors (n, width) on their first min(5, n, width) principal components, (n, at most 5) in float64.

    Up to 200 vectors by a full singular value decomposition; beyond that by ARPACK on the sparse rows, which are never
    centred in memory, with D-RPC's seed 42. The sign of a component is arbitrary; no distance depends on it.
    """
    import numpy as np
    from scipy.sparse import csr_array
    from sklearn.decomposition import PCA
    from sklearn.utils.sparsefuncs import mean_variance_axis

    rows = csr_array(vectors, dtype=np.float64)
    components = min(COMPONENTS, *rows.shape)
    if rows.shape[0] * mean_variance_axis(rows, axis=0)[1].sum() <= 1e-9:
        return np.zeros((rows.shape[0], components))  # rounding errors have no direction
    if rows.shape[0] <= FULL_SVD or rows.shape[1] <= 32:
        return PCA(components, svd_solver="full").fit_transform(rows.toarray())
    return PCA(components, svd_solver="arpack", random_state=42).fit_transform(rows)


def linked(points: np.ndarray, eps: float) -> np.ndarray:
    """A cluster label for each of the points (n, dimensions), n at least 2: equal if steps of at most `eps` link them.

    These are DBSCAN's clusters of at least two members, and noise has labels of its own; single linkage needs memory
    linear in n, where scikit-learn's DBSCAN lists all neighbours of all points.
    """
    import numpy as np
    from sklearn.cluster import AgglomerativeClustering

    # Distances below the threshold are linked.
    above = float(np.nextafter(eps, np.inf))
    return AgglomerativeClustering(n_clusters=None, linkage="single", distance_threshold=above).fit_predict(points)
