"""Texts to unit vectors, for the path bank and for selection: one interface, three ways to do it.

    tfidf                          hashed word and character n-grams (scikit-learn): no model, nothing to download
    transformers:MODEL             a sentence encoder in this process (`rlkd.engines.embeddings`), by folder or hub id
    sentence-transformers:MODEL    the same by the package of that name (`pip install 'rlkd[embeddings]'`)

    >>> vectors = open_embedder("tfidf").embed(["Compute the total cost", "ComputeTotalCost", "Measure an angle", "!"])
    >>> [f"{abs(cosine):.1f}" for cosine in vectors @ vectors[0]]
    ['1.0', '1.0', '0.0', '0.0']

Cosines of different embedders are not comparable, so neither are thresholds: those of the path bank's authors belong
to all-MiniLM-L6-v2 (`known_thresholds`), others are calibrated on the seed of a bank (`calibrate`).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlkd.errors import UsageError
from rlkd.registry import suggestion

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

    from rlkd.rationales.bank.entries import RouteEntry

FORMS = ("tfidf", "transformers:MODEL", "sentence-transformers:MODEL")


class Embedder(Protocol):
    """What turns texts into vectors.

    `name` is its identity: it goes into the files of banks, and differs where vectors differ.
    """

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32: of length 1, or zero for a text with nothing in it."""
        ...


@dataclass(frozen=True)
class Thresholds:
    """What counts as near for one embedder. The values that stand here are those of D-RPC, with all-MiniLM-L6-v2.

    Args:
        duplicate: two paths whose similarity is at least this are one (token Jaccard or cosine: `Rules.duplicates`).
        route: below this cosine of a question with the nearest intent no path is offered (.35: our choice, the
            released code has no threshold).
        eps: the radius of DBSCAN, a Euclidean distance after the projection of a category's intents.

    Raises ValueError where one of them cannot be met, or is met by all.
    """

    duplicate: float = 0.9
    route: float = 0.35
    eps: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.duplicate <= 1 or not -1 <= self.route <= 1 or not 0 < self.eps < 2:
            raise ValueError(f"{self}: expected 0 < duplicate <= 1, -1 <= route <= 1 and 0 < eps < 2")


def open_embedder(spec: str = "tfidf", *, device: str | None = None) -> Embedder:
    """The embedder that a spec names (see the top of this module). Weights are read when the first text comes.

    `device` is for the two that run a model. Raises `UsageError` for a spec of another form and for a package that is
    missing.
    """
    kind, colon, model = spec.partition(":")
    if spec == "tfidf":
        return NgramEmbedder()
    if kind == "transformers" and model:
        return TransformersEmbedder(model, device=device)
    if kind == "sentence-transformers" and model:
        return SentenceTransformersEmbedder(model, device=device)
    if colon and not model and f"{kind}:MODEL" in FORMS:
        raise UsageError(f"embedder {spec!r} names no model: write {kind}:FOLDER_OR_HUB_ID")
    raise UsageError(f"unknown embedder {spec!r}.{suggestion(spec, FORMS)}")


# Words that stand in every question. Without them a vector says more of what a text is about; ours, and never to be
# changed without another `NgramEmbedder.name`.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for by with from and or so then than as is are was were be been do does did "
        "has have had he she it they i we you his her its their this that these those there if how many much "
        "what which who when now will would can could per",
    )
)
_WORD_START = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])")
_WORD = re.compile(r"\w+")


class NgramEmbedder:
    """Hashed n-grams: words one and two at a time, and three to five characters within words.

    Nothing is fitted, so a text's vector depends on that text alone, on no other text and on no earlier run. The price
    is that there is no IDF, in spite of the name under which it is configured: in its place stands a fixed list of
    English stop words. Counts enter as log(1 + count), words and characters with equal weight. Names in TitleCase are
    read as their words. Case, and how Unicode composes a character, make no difference; any script will do, though a
    script without spaces is told apart by characters only.

    It knows spelling, not meaning: `Add the prices` and `Compute the total cost` have nothing in common.
    """

    name = "tfidf-1"
    # Wide, since the cosines of a question with four words are small, and collisions add noise to them: .01 (r.m.s.)
    # at this width, .02 at a quarter of it, where half of the questions had another nearest intent.
    half_width = 4096

    def __init__(self) -> None:
        self._vectorizers: tuple[Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, 8192) in float32; zero for a text without a letter or digit."""
        import numpy as np

        words, characters = self._loaded()
        contents = [_content(text) for text in texts]
        vectors = np.zeros((len(contents), 2 * self.half_width), dtype=np.float32)
        if not contents:
            return vectors
        for start, vectorizer in ((0, words), (self.half_width, characters)):
            counts = vectorizer.transform(contents)
            counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
            half = vectors[:, start : start + self.half_width]
            half[:] = counts.toarray()
            half /= np.maximum(_lengths(half), 1e-12)
        vectors /= np.maximum(_lengths(vectors), 1e-12)
        return vectors

    def _loaded(self) -> tuple[Any, Any]:
        if self._vectorizers is None:
            try:
                from sklearn.feature_extraction.text import HashingVectorizer
            except ModuleNotFoundError as error:
                raise UsageError(
                    f"the embedder 'tfidf' needs scikit-learn ({error}): pip install scikit-learn"
                ) from error
            common = {"n_features": self.half_width, "lowercase": False, "norm": None, "dtype": "float32"}
            self._vectorizers = (
                HashingVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), **common),
                HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common),
            )
        return self._vectorizers


def _content(text: str) -> str:
    """The words of a text that say what it is about, in small letters, with spaces between."""
    words = _WORD.findall(_WORD_START.sub(" ", unicodedata.normalize("NFKC", text)).replace("_", " ").casefold())
    return " ".join([word for word in words if word not in _STOP_WORDS] or words)


class TransformersEmbedder:
    """A sentence encoder in this process; weights are read when the first text comes.

    A folder goes by its name and a digest of its files, so that a bank knows its embedder again on another machine.
    """

    def __init__(self, model: str, *, device: str | None = None) -> None:
        from rlkd.engines.embeddings import SentenceEncoder

        self.name = f"transformers:{_identity(model)}"
        self.encoder = SentenceEncoder(model, device=device)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32. Raises `EngineError` where the model does not load."""
        # In a thread of its own: callers may themselves run in an event loop.
        with ThreadPoolExecutor(1) as executor:
            vectors = executor.submit(asyncio.run, self.encoder.encode(texts)).result().numpy()
        return _without_empty(vectors, texts)


class SentenceTransformersEmbedder:
    """A model of the package sentence-transformers, with the pooling that its own files ask for."""

    def __init__(self, model: str, *, device: str | None = None) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UsageError(
                f"the embedder 'sentence-transformers:{model}' needs a package that is not installed: pip install "
                f"'rlkd[embeddings]', or write transformers:{model} for mean pooling without it"
            )
        self.name = f"sentence-transformers:{_identity(model)}"
        self.model = model
        self.device = device
        self._loaded: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32."""
        import numpy as np

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        if self._loaded is None:
            from sentence_transformers import SentenceTransformer

            self._loaded = SentenceTransformer(self.model, device=self.device)
        vectors = self._loaded.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return _without_empty(np.array(vectors, dtype=np.float32), texts)


def _identity(model: str) -> str:
    """A hub id as it is; of a folder the name and a digest of what is in its configuration and weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json"), *folder.glob("tokenizer.json")]):
        with path.open("rb") as stream:
            digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


def _without_empty(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    # A model gives its special tokens a direction; an empty text is near to nothing.
    vectors[[not text.strip() for text in texts]] = 0
    return vectors


def _lengths(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True)).astype(np.float32)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosines of unit or zero rows (m, width) and (n, width), (m, n) in float64, exact to about 1e-6.

    What a matrix product rounds depends on its shape. Here nothing is rounded but the entries, to multiples of 2^-20:
    every sum of products is then a multiple of 2^-40 below 2, which float64 holds exactly. So a cosine has the same
    bits in whatever block it is worked out, and a tie is a tie everywhere.
    """
    return on_grid(left) @ on_grid(right).T


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """Vectors in float64 with their entries rounded to multiples of 2^-20 (see `cosines`)."""
    import numpy as np

    return np.rint(vectors.astype(np.float64) * 2**20) / 2**20


def rows_on_grid(rows: csr_array) -> csr_array:
    """Sparse rows as `on_grid` has dense ones: products of them have the same bits."""
    from scipy.sparse import csr_array

    return csr_array((on_grid(rows.data), rows.indices, rows.indptr), shape=rows.shape)


def sparse_rows(embedder: Embedder, texts: Sequence[str], block: int = 256) -> csr_array:
    """The vectors of the texts as sparse rows, (texts, width) in float32: no more than a block of them is ever dense.

    A row of n-grams has some 70 entries of 8,192; one of an encoder has them all, and takes 8 bytes for each.
    """
    import numpy as np
    from scipy.sparse import csr_array, vstack

    parts = [csr_array(embedder.embed(texts[start : start + block])) for start in range(0, len(texts), block)]
    return vstack(parts, format="csr") if parts else csr_array((0, 0), dtype=np.float32)


class KnownVectors:
    """The vectors of the texts of one embedder: each is worked out once, and only its entries are kept."""

    def __init__(self) -> None:
        self._width = 0
        self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, texts: Sequence[str], embedder: Embedder) -> csr_array:
        """The vectors of the texts, (texts, width) in float32; those that are missing are embedded."""
        import numpy as np
        from scipy.sparse import csr_array

        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            found = sparse_rows(embedder, new)
            self._width = found.shape[1]
            for text, start, stop in zip(new, found.indptr[:-1], found.indptr[1:], strict=True):
                # Copies: a part of the block would keep the whole of it.
                self._rows[text] = found.indices[start:stop].copy(), found.data[start:stop].copy()
        rows = [self._rows[text] for text in texts]
        places = np.concatenate([[0], np.cumsum([len(indices) for indices, _ in rows], dtype=np.int64)])
        if not rows:
            return csr_array((0, self._width), dtype=np.float32)
        indices, values = (np.concatenate(part) for part in zip(*rows, strict=True))
        return csr_array((values, indices, places), shape=(len(rows), self._width))


# The models that D-RPC's numbers belong to, by the last part of the name.
_KNOWN = {"all-MiniLM-L6-v2": Thresholds()}

# Below this many right answers a seed says nothing about an embedder's cosines.
FEWEST_ENTRIES = 4
# Above it, so many of them are drawn: what is measured are quartiles, and the tables are as long as wide.
MOST_ENTRIES = 2_000
_MEDIAN_DISTANCE = 1.04  # between two intents of a category, projected, with MiniLM (docs/path_bank.md)


def known_thresholds(embedder: Embedder) -> Thresholds | None:
    """The thresholds of an embedder that were measured or published; None where `calibrate` has to find them."""
    return _KNOWN.get(embedder.name.partition(":")[2].partition("@")[0].rpartition("/")[2])


def calibrate(embedder: Embedder, entries: Sequence[RouteEntry]) -> Thresholds:
    """Thresholds of an embedder, from the right answers of a seed round (our choice).

    - `route`: the lower quartile of the cosines of a question with its own first intent, or, where that is more, the
      upper quartile of its cosine with the nearest intent of another category: what foreign intents often reach says
      nothing. Never so much that fewer than half of the seed's questions are offered a path, and at least 0. With
      MiniLM this gave .345 on the hand-made questions of `docs/path_bank.md`, where .35 had been chosen before.
    - `eps`: .25 times the median distance between two intents of a category, projected, over what it is with MiniLM.
    - `duplicate`: .9 for all. It is met only by paths whose names share nearly all their words.

    With fewer than four right answers there is nothing to measure: `route` 0, `eps` .25. Of more than 2,000, so many
    are drawn by a hash of what they are, so that their order makes no difference: quartiles of so many are as good,
    and memory stays below some 200 MiB.
    """
    import numpy as np
    from scipy.spatial.distance import pdist

    from rlkd.rationales.bank.clustering import projected

    right = [entry for entry in entries if entry.correct and entry.intents]
    if len(right) < FEWEST_ENTRIES:
        return Thresholds(route=0.0)
    if len(right) > MOST_ENTRIES:
        right = sorted(right, key=_drawn)[:MOST_ENTRIES]
    questions = rows_on_grid(sparse_rows(embedder, [entry.question for entry in right]))
    near = (questions @ rows_on_grid(sparse_rows(embedder, [entry.intents[0] for entry in right])).T).toarray()
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
            distances.append(pdist(projected(sparse_rows(embedder, members))))
    scale = float(np.median(np.concatenate(distances))) / _MEDIAN_DISTANCE if distances else 1.0
    # Rounded down, so that the question that set it passes it.
    return Thresholds(route=max(0.0, math.floor(route * 1e4) / 1e4), eps=min(1.0, max(0.05, round(0.25 * scale, 3))))


def _drawn(entry: RouteEntry) -> bytes:
    """Where an entry stands in the draw of `calibrate`."""
    parts = ("calibrate", entry.question_id, entry.question, entry.category, entry.intents[0])
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def thresholds_for(embedder: Embedder, entries: Sequence[RouteEntry]) -> Thresholds:
    """The known thresholds of an embedder, or those that `calibrate` finds."""
    return known_thresholds(embedder) or calibrate(embedder, entries)
