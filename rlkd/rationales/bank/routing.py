"""Routing: which paths of a bank fit a question: the nearest intent, and the nearest paths of that intent.

D-RPC (arXiv 2605.07139) takes the pair of category and intent whose intent is nearest to the question by cosine, over
all pairs, and ranks the paths of that pair by their cosine with the question. Ours: below the threshold of the
embedder (`Thresholds.route`) no path is offered; and three paths are offered, not one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlkd.embedders import Embedder, unit_rows
from rlkd.rationales.bank.bank import PathBank
from rlkd.rationales.bank.paths import StepNames, path_entropy, path_words

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MIN_SHARE = 0.5
"""Share of questions with a path offered below which `Coverage.message` warns."""


@dataclass(frozen=True, slots=True)
class Route:
    """The place of a question in a bank.

    `category` and `intent` are the nearest ones (None for an empty bank), `similarity` the cosine of the question with
    the intent. `paths` are those to offer, best first; empty if the intent is too far.
    """

    category: str | None
    intent: str | None
    paths: tuple[StepNames, ...]
    similarity: float

    @property
    def offered(self) -> bool:
        """Whether there is a path to offer."""
        return bool(self.paths)

    @property
    def budget(self) -> int | None:
        """The maximum number of steps of a rationale: the length of the best path (D-RPC); None without a path."""
        return max(1, len(self.paths[0])) if self.paths else None

    @property
    def difficulty(self) -> int | None:
        """1 for a budget of up to 2 steps, else 2 (D-RPC); None without a path."""
        return None if self.budget is None else 1 if self.budget <= 2 else 2


class Router:
    """Routes questions by one state of a bank: after a flush, make another one.

    Questions are embedded and compared `block` at a time, so memory grows with the routes only. Similarities are exact
    (`rlkd.embedders.unit_rows`), so the size of the block makes no difference. Ties go to the first in alphabetical
    order. Raises `BankError` for another embedder than the bank's.
    """

    def __init__(self, bank: PathBank, embedder: Embedder, *, block: int = 512) -> None:
        bank.check(embedder)
        if block < 1:
            raise ValueError(f"block={block}: expected at least 1 question")
        self.embedder = embedder
        self.block = block
        self.faithful = bank.rules.faithful
        self.threshold = bank.rules.thresholds.route
        self.generation = bank.generation
        self.intents = bank.intents()
        self._paths = [sorted(path.names for path in bank.paths(*pair)) for pair in self.intents]
        # The released code joins the names as they are; their words mean more to any embedder.
        join = " ".join if self.faithful else path_words
        self._intent_rows = unit_rows(embedder, [intent for _, intent in self.intents])
        self._path_rows = [unit_rows(embedder, list(map(join, paths))) for paths in self._paths]

    def route(self, questions: Sequence[str], k: int | None = None) -> list[Route]:
        """The route of each question, with at most `k` paths (default: 3, faithful 1).

        A question without anything to embed is offered nothing.
        """
        k = (1 if self.faithful else 3) if k is None else k
        if k < 1:
            raise ValueError(f"k={k}: expected at least 1 path")
        if not self.intents:
            return [Route(None, None, (), 0.0)] * len(questions)
        routes: list[Route] = []
        for start in range(0, len(questions), self.block):
            routes += self._block(unit_rows(self.embedder, questions[start : start + self.block]), k)
        return routes

    def _block(self, rows: csr_array, k: int) -> list[Route]:
        import numpy as np

        similarities = (rows @ self._intent_rows.T).toarray()  # (questions, intents)
        nearest = similarities.argmax(axis=1)
        nearness = similarities[np.arange(len(similarities)), nearest]
        offered = np.full(len(nearest), True)
        if not self.faithful:
            offered = (nearness >= self.threshold) & (np.diff(rows.indptr) > 0)
        ranked: dict[int, tuple[StepNames, ...]] = {}
        for pair in np.unique(nearest[offered]).tolist():
            indices = np.flatnonzero(offered & (nearest == pair))
            scores = (rows[indices] @ self._path_rows[pair].T).toarray()
            # Stable, so that among equals the alphabet decides.
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            for index, best in zip(indices.tolist(), order.tolist(), strict=True):
                ranked[index] = tuple(self._paths[pair][each] for each in best)
        return [
            Route(self.intents[pair][0], self.intents[pair][1], ranked.get(index, ()), similarity)
            for index, (pair, similarity) in enumerate(zip(nearest.tolist(), nearness.tolist(), strict=True))
        ]


@dataclass(frozen=True)
class Coverage:
    """How far a bank reached: `offered` of the `questions` got a path, and `paths` distinct ones, with an `entropy` in
    bits, were used."""

    questions: int
    offered: int
    paths: int
    entropy: float

    @property
    def share(self) -> float:
        """The share of the questions that were offered a path; 1 without questions."""
        return self.offered / self.questions if self.questions else 1.0

    def message(self) -> str | None:
        """A warning if fewer than half of the questions were offered a path; None otherwise."""
        if self.share >= MIN_SHARE:
            return None
        return (
            f"only {self.offered} of {self.questions} questions ({self.share:.0%}) were offered a path of the bank, "
            f"less than {MIN_SHARE:.0%}: most rationales are written without it. Enlarge the seed, lower the "
            "threshold `route` (rlkd.rationales.bank.thresholds.calibrate), or use an embedder that compares meaning "
            "(transformers:sentence-transformers/all-MiniLM-L6-v2)."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON, with the share."""
        return {**asdict(self), "share": self.share}


def coverage(routes: Iterable[Route], used: Iterable[StepNames] | None = None) -> Coverage:
    """How far a bank reached on some questions.

    `used` are the paths of the written rationales, one per rationale. None: as if each question that is offered a path
    used the best one, to look at a bank without a teacher.
    """
    routes = list(routes)
    offered = [route.paths[0] for route in routes if route.paths]
    paths = offered if used is None else list(used)
    return Coverage(len(routes), len(offered), len(set(paths)), path_entropy(paths))


def bank_sizes(
    bank: PathBank, embedder: Embedder, questions: Sequence[str], sizes: Sequence[int] = (50, 75, 125)
) -> dict[int, Coverage]:
    """The coverage of the bank at other sizes (our choice, in place of a bound whose statement is not public)."""
    return {size: coverage(Router(bank.rederived(embedder, cap=size), embedder).route(questions, 1)) for size in sizes}
