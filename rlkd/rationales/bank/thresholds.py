"""Thresholds: how near two texts must be for one embedder, published or calibrated on the seed of a bank."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlkd.embedders import Embedder, unit_rows
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.intents import projected


@dataclass(frozen=True)
class Thresholds:
    """Similarities that count as near for one embedder. The defaults are D-RPC's, with all-MiniLM-L6-v2.

    Args:
        duplicate: similarity from which two paths are duplicates (token Jaccard or cosine: `BankRules.duplicates`).
        route: cosine of a question with the nearest intent below which no path is offered (.35 is our choice; the
            released code has no threshold).
        eps: radius of DBSCAN, a Euclidean distance after the projection of a category's intents.

    Raises ValueError for a value that no pair or every pair reaches.
    """

    duplicate: float = 0.9
    route: float = 0.35
    eps: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.duplicate <= 1 or not -1 <= self.route <= 1 or not 0 < self.eps < 2:
            raise ValueError(f"{self}: expected 0 < duplicate <= 1, -1 <= route <= 1 and 0 < eps < 2")


# The models that D-RPC's values belong to, by the last part of the name.
_KNOWN = {"all-MiniLM-L6-v2": Thresholds()}

# Fewer right answers than this say nothing about an embedder's cosines.
MIN_ENTRIES = 4
# Of more right answers, this many are drawn: quartiles are as good, and memory stays below some 200 MiB.
MAX_ENTRIES = 2_000
_MEDIAN_DISTANCE = 1.04  # between two intents of a category, projected, with MiniLM (docs/path_bank.md)


def known_thresholds(embedder: Embedder) -> Thresholds | None:
    """The published thresholds of an embedder; None if `calibrate` has to find them."""
    return _KNOWN.get(embedder.name.partition(":")[2].partition("@")[0].rpartition("/")[2])


def thresholds_for(embedder: Embedder, entries: Sequence[RouteEntry]) -> Thresholds:
    """The known thresholds of an embedder, or those that `calibrate` finds."""
    return known_thresholds(embedder) or calibrate(embedder, entries)


def calibrate(embedder: Embedder, entries: Sequence[RouteEntry]) -> Thresholds:
    """Thresholds of an embedder, from the right answers of a seed round (our choice).

    - `route`: the lower quartile of the cosines of a question with its own first intent, or, if larger, the upper
      quartile of its cosine with the nearest intent of another category. Never so large that fewer than half of the
      seed questions are offered a path, and at least 0.
    - `eps`: .25 times the median distance between two intents of a category, projected, relative to that with MiniLM.

    With fewer than `MIN_ENTRIES` right answers: `route` 0, `eps` .25. Of more than `MAX_ENTRIES`, that many are drawn
    by a hash of their content, so that their order makes no difference.
    """
    import numpy as np
    from scipy.spatial.distance import pdist

    right = [entry for entry in entries if entry.correct and entry.intents]
    if len(right) < MIN_ENTRIES:
        return Thresholds(route=0.0)
    if len(right) > MAX_ENTRIES:
        right = sorted(right, key=_draw)[:MAX_ENTRIES]
    questions = unit_rows(embedder, [entry.question for entry in right])
    near = (questions @ unit_rows(embedder, [entry.intents[0] for entry in right]).T).toarray()
    route = float(np.quantile(near.diagonal(), 0.25, method="lower"))
    categories = np.array([entry.category for entry in right])
    foreign = categories[:, None] != categories[None, :]
    if foreign.any():
        route = max(route, float(np.quantile(np.where(foreign, near, -1.0).max(axis=1), 0.75)))
    route = min(route, float(np.quantile(near.max(axis=1), 0.5, method="lower")))
    distances: list[np.ndarray] = []
    for category in sorted({entry.category for entry in right}):
        members = sorted({entry.intents[0] for entry in right if entry.category == category})
        if len(members) > 1:
            distances.append(pdist(projected(unit_rows(embedder, members))))
    scale = float(np.median(np.concatenate(distances))) / _MEDIAN_DISTANCE if distances else 1.0
    # Rounded down, so that the question that set the threshold passes it.
    return Thresholds(route=max(0.0, math.floor(route * 1e4) / 1e4), eps=min(1.0, max(0.05, round(0.25 * scale, 3))))


def _draw(entry: RouteEntry) -> bytes:
    """The position of an entry in the draw of `calibrate`."""
    parts = ("calibrate", entry.question_id, entry.question, entry.category, entry.intents[0])
    return hashlib.sha256(json.dumps(parts).encode()).digest()
