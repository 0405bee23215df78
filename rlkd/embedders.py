"""Embedders: texts to unit vectors, for the path bank and for selection.

    >>> texts = ["Compute the total cost", "ComputeTotalCost", "Measure an angle", "!"]
    >>> vectors = open_embedder("hashed-ngrams").embed(texts)
    >>> [f"{abs(cosine):.1f}" for cosine in vectors @ vectors[0]]
    ['1.0', '1.0', '0.0', '0.0']

`docs/path_bank.md` lists the specs. Cosines of different embedders are not comparable, and neither are thresholds on
them. Importing this module loads neither torch nor scikit-learn.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlkd.engines.base import EngineError
from rlkd.errors import UsageError
from rlkd.registry import SpecError, build

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

DEFAULT = "hashed-ngrams"
BUILT_IN = {
    DEFAULT: "rlkd.embedders.HashedNgrams",
    "transformers": "rlkd.embedders.TransformersEmbedder",
    "sentence-transformers": "rlkd.embedders.SentenceTransformersEmbedder",
}
_WITH_MODEL = ("transformers", "sentence-transformers")


class Embedder(Protocol):
    """Turns texts into vectors. `name` is its identity: bank files record it, and it differs where vectors differ."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32: of length 1, or zero for an empty text."""
        ...


def open_embedder(spec: str = DEFAULT, *, device: str | None = None) -> Embedder:
    """The embedder that a spec names (see the top of this module). Weights are read at the first text.

    `device`: for an embedder that has such a parameter. Raises `SpecError` for an unknown name or a missing model, and
    `UsageError` for a missing package.
    """
    scheme, _, model = spec.partition(":")
    parameters = {}
    if scheme in _WITH_MODEL:
        if not model:
            raise SpecError(f"embedder {spec!r} names no model: write {scheme}:MODEL, MODEL a folder or hub id")
        spec, parameters = scheme, {"model": model}
    embedder = build("embedder", spec, parameters, defaults={"device": device}).target
    if not isinstance(getattr(embedder, "name", None), str) or not callable(getattr(embedder, "embed", None)):
        raise SpecError(f"embedder {spec!r}: expected an object with a `name` (text) and `embed(texts)`: {embedder!r}")
    return embedder


def checked_embedder(spec: str) -> Embedder:
    """The embedder that a spec names, after it has embedded one text.

    Raises `UsageError` for a model that does not load, and for a result that is not as `Embedder.embed` promises.
    """
    import numpy as np

    embedder = open_embedder(spec)
    try:
        vectors = np.asarray(embedder.embed(["total cost"]))
    except (EngineError, OSError) as error:
        raise UsageError(f"--embedder {spec}: {error}") from error
    length = float(np.linalg.norm(vectors.astype(np.float64)))
    if vectors.ndim != 2 or len(vectors) != 1 or not abs(length - 1) < 1e-3:
        raise UsageError(
            f"--embedder {spec}: expected one vector of length 1 for one text, found an array of shape "
            f"{vectors.shape} with the length {length:.3g}. Divide each vector by its length"
        )
    return embedder


# Words that occur in every question. Without them a vector says more about the content of a text; our list. A change
# here needs another `HashedNgrams.name`.
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


class HashedNgrams:
    """Hashed n-grams: words one and two at a time, and three to five characters within words.

    Nothing is fitted, so the vector of a text depends on that text only. A fixed list of English stop words stands in
    for inverse document frequencies. Counts enter as log(1 + count), words and characters with equal weight. Names in
    TitleCase are read as their words; case and Unicode composition make no difference.
    """

    name = "hashed-ngrams-1"
    # Wide, since the cosines of a question with four words are small, and collisions add noise to them: .01 (r.m.s.)
    # at this width, .02 at a quarter of it, where half of the questions had another nearest intent.
    half_width = 4096

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, 8192) in float32; zero for a text without a letter or digit."""
        import numpy as np
        from scipy.sparse import hstack
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.preprocessing import normalize

        if not texts:
            return np.zeros((0, 2 * self.half_width), dtype=np.float32)
        contents = [_content(text) for text in texts]
        common = {"n_features": self.half_width, "lowercase": False, "norm": None, "dtype": np.float32}
        halves = []
        for vectorizer in (
            HashingVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), **common),
            HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **common),
        ):
            counts = vectorizer.transform(contents)
            counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
            halves.append(normalize(counts))
        return normalize(hstack(halves, format="csr")).toarray()


def _content(text: str) -> str:
    """The content words of a text, in lower case, separated by spaces."""
    words = _WORD.findall(_WORD_START.sub(" ", unicodedata.normalize("NFKC", text)).replace("_", " ").casefold())
    return " ".join([word for word in words if word not in _STOP_WORDS] or words)


class TransformersEmbedder:
    """A sentence encoder in this process. Weights are read at the first text.

    A folder is named by its name and a digest of its files, so that a bank recognises its embedder on another machine.
    """

    def __init__(self, model: str, *, device: str | None = None) -> None:
        from rlkd.engines.embeddings import SentenceEncoder

        self.name = f"transformers:{_identity(model)}"
        self.encoder = SentenceEncoder(model, device=device)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32. Raises `EngineError` if the model does not load."""
        # In a thread of its own: the caller may run in an event loop itself.
        with ThreadPoolExecutor(1) as executor:
            vectors = executor.submit(asyncio.run, self.encoder.encode(texts)).result().numpy()
        return _without_empty(vectors, texts)


class SentenceTransformersEmbedder:
    """A model of the package sentence-transformers, with the pooling that its own files define."""

    def __init__(self, model: str, *, device: str | None = None) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UsageError(
                f"the embedder 'sentence-transformers:{model}' needs a package that is not installed: pip install "
                f"'rlkd[embeddings]', or write transformers:{model} for mean pooling without it"
            )
        self.name = f"sentence-transformers:{_identity(model)}"
        self.model, self.device = model, device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width) in float32."""
        import numpy as np

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        options = {"normalize_embeddings": True, "convert_to_numpy": True, "show_progress_bar": False}
        vectors = self._loaded.encode(list(texts), **options)
        return _without_empty(np.array(vectors, dtype=np.float32), texts)

    @cached_property
    def _loaded(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(self.model, device=self.device)


def _identity(model: str) -> str:
    """A hub id as it is; for a folder its name and a digest of its configuration and weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json"), *folder.glob("tokenizer.json")]):
        with path.open("rb") as stream:
            digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


def _without_empty(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    # A model gives its special tokens a direction; an empty text is near nothing.
    vectors[[not text.strip() for text in texts]] = 0
    return vectors


def unit_rows(embedder: Embedder, texts: Sequence[str], block: int = 256) -> csr_array:
    """The vectors of the texts as sparse rows, (texts, width) in float64; at most a block of them is ever dense.

    Entries are rounded to multiples of 2^-20, so that float64 holds every sum of products exactly: a cosine has the
    same bits in every block and in any order of summation. Its error is about 1e-6.
    """
    import numpy as np
    from scipy.sparse import csr_array, vstack

    parts = [csr_array((0, 0), dtype=np.float64)] if not texts else []
    for start in range(0, len(texts), block):
        rows = csr_array(embedder.embed(texts[start : start + block]))
        rounded = np.rint(rows.data.astype(np.float64) * 2**20) / 2**20
        parts.append(csr_array((rounded, rows.indices, rows.indptr), shape=rows.shape))
        parts[-1].eliminate_zeros()
    return vstack(parts, format="csr")


class KnownVectors:
    """The rows (`unit_rows`) of texts of one embedder: each text is embedded once."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._rows: csr_array | None = None

    def rows(self, texts: Sequence[str], embedder: Embedder) -> csr_array:
        """The rows of the texts; those that are missing are embedded."""
        from scipy.sparse import vstack

        new = [text for text in dict.fromkeys(texts) if text not in self._index]
        if new or self._rows is None:
            rows = unit_rows(embedder, new)
            self._rows = rows if self._rows is None else vstack([self._rows, rows], format="csr")
            self._index |= {text: len(self._index) + number for number, text in enumerate(new)}
        return self._rows[[self._index[text] for text in texts]]
