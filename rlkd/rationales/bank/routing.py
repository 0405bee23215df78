"""Which paths of a bank fit a question: the nearest intent, and the paths of that intent that are nearest.

    router = Router(bank, embedder)
    for route in router.route(questions):
        print(route.category, route.intent, route.paths, route.similarity)

D-RPC (arXiv 2605.07139) takes the pair of category and intent whose intent is nearest to the question by cosine, over
all pairs, and ranks the paths of that pair by their cosine with the question. Ours beside it: below the threshold of
the embedder (`Thresholds.route`) no path is offered, so that a teacher is not led along one that has nothing to do
with the question; and three paths are offered, not one.

`coverage` says how many questions were offered a path, and whether that is so few that the bank is in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlkd.rationales.bank.bank import PathBank, path_entropy
from rlkd.rationales.bank.clustering import Path, path_words
from rlkd.rationales.bank.embedders import on_grid

if TYPE_CHECKING:
    import numpy as np

    from rlkd.rationales.bank.embedders import Embedder

LEAST_SHARE = 0.5
"""Of questions with a path offered: below it, `Coverage.message` says so."""

_PATHS, _PATHS_FAITHFUL = 3, 1


@dataclass(frozen=True, slots=True)
class Route:
    """Where a question leads in a bank.

    `category` and `intent` are the nearest ones (None for an empty bank), `similarity` the cosine of the question with
    the intent. `paths` are those to offer, best first; none where the intent is too far.
    """

    category: str | None
    intent: str | None
    paths: tuple[Path, ...]
    similarity: float

    @property
    def offered(self) -> bool:
        """Whether there is a path to offer."""
        return bool(self.paths)

    @property
    def budget(self) -> int | None:
        """The most steps a rationale is to have: the length of the best path (D-RPC); None where none is offered."""
        return max(1, len(self.paths[0])) if self.paths else None

    @property
    def difficulty(self) -> int | None:
        """1 for a budget of up to 2 steps, else 2 (D-RPC); None where no path is offered."""
        return None if self.budget is None else 1 if self.budget <= 2 else 2


class Router:
    """Routes questions by one state of a bank: after a flush, make another one.

    Memory does not grow with the number of questions but for the routes: they are embedded and compared `block` at a
    time. Similarities are exact in their bits (`rlkd.rationales.bank.embedders.cosines`), so a route depends neither
    on the other questions nor on the size of the block, as far as the embedder's vectors do not. Ties go to the first
    in the alphabet. Raises `BankError` for another embedder than the bank's.
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
        self._intent_vectors = on_grid(embedder.embed([intent for _, intent in self.intents]))
        self._path_vectors = [
            on_grid(embedder.embed([self._path_text(path) for path in paths])) for paths in self._paths
        ]

    def route(self, questions: Sequence[str], k: int | None = None) -> list[Route]:
        """The route of each question, with at most `k` paths (default: 3, faithful 1).

        A question without anything to embed is offered nothing.
        """
        k = (_PATHS_FAITHFUL if self.faithful else _PATHS) if k is None else k
        if k < 1:
            raise ValueError(f"k={k}: expected at least 1 path")
        if not self.intents:
            return [Route(None, None, (), 0.0)] * len(questions)
        routes: list[Route] = []
        for start in range(0, len(questions), self.block):
            routes += self._block(on_grid(self.embedder.embed(questions[start : start + self.block])), k)
        return routes

    def _block(self, vectors: np.ndarray, k: int) -> list[Route]:
        import numpy as np

        similarities = vectors @ self._intent_vectors.T  # (questions, intents)
        nearest = similarities.argmax(axis=1)
        nearness = similarities[np.arange(len(vectors)), nearest]
        offered = np.full(len(vectors), True) if self.faithful else (nearness >= self.threshold) & vectors.any(axis=1)
        ranked: dict[int, tuple[Path, ...]] = {}
        for pair in np.unique(nearest[offered]).tolist():
            places = np.flatnonzero(offered & (nearest == pair))
            scores = vectors[places] @ self._path_vectors[pair].T
            # Stable, so that among equals the alphabet decides.
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            for place, row in zip(places.tolist(), order.tolist(), strict=True):
                ranked[place] = tuple(self._paths[pair][index] for index in row)
        return [
            Route(self.intents[pair][0], self.intents[pair][1], ranked.get(place, ()), similarity)
            for place, (pair, similarity) in enumerate(zip(nearest.tolist(), nearness.tolist(), strict=True))
        ]

    def _path_text(self, path: Path) -> str:
        # The released code joins the names as they are; their words mean more to any embedder.
        return " ".join(path) if self.faithful else path_words(path)


@dataclass(frozen=True)
class Coverage:
    """How far a bank reached.

    `questions` were routed, `offered` of them got a path. `paths` distinct paths were used, with an `entropy` in bits:
    how much the rationales still differ in kind.
    """

    questions: int
    offered: int
    paths: int
    entropy: float

    @property
    def share(self) -> float:
        """The share of the questions that were offered a path; 1 where there was no question."""
        return self.offered / self.questions if self.questions else 1.0

    def message(self) -> str | None:
        """What to say, loudly, where fewer than half of the questions were offered a path; None otherwise."""
        if self.share >= LEAST_SHARE:
            return None
        return (
            f"only {self.offered} of {self.questions} questions ({self.share:.0%}) were offered a path of the bank, "
            f"less than {LEAST_SHARE:.0%}: most rationales are written without it. Enlarge the seed, lower the "
            "threshold `route` (rlkd.rationales.bank.embedders.calibrate), or take an embedder that knows meaning "
            "(transformers:sentence-transformers/all-MiniLM-L6-v2)."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON, with the share."""
        return {**asdict(self), "share": self.share}


def coverage(routes: Iterable[Route], used: Iterable[Path] | None = None) -> Coverage:
    """How far a bank reached on some questions.

    `used` are the paths of the rationales that were written, one a rationale. None: as if each question that is
    offered a path used the best one, for looking at a bank without asking a teacher.
    """
    routes = list(routes)
    offered = [route.paths[0] for route in routes if route.paths]
    paths = offered if used is None else list(used)
    return Coverage(len(routes), len(offered), len(set(paths)), path_entropy(paths))


def bank_sizes(
    bank: PathBank, embedder: Embedder, questions: Sequence[str], sizes: Sequence[int] = (50, 75, 125)
) -> dict[int, Coverage]:
    """The coverage that the bank would have at other sizes: a small bank means fewer kinds of rationales, a large one
    reaches more questions. In place of a bound from theory, whose statement is not public (our choice)."""
    return {size: coverage(Router(bank.rederived(embedder, cap=size), embedder).route(questions, 1)) for size in sizes}
