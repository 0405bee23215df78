import asyncio
import doctest
import hashlib
import importlib.util
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from rlkd import embedders
from rlkd.embedders import KnownVectors, checked_embedder, open_embedder, unit_rows
from rlkd.engines import EngineError
from rlkd.errors import UsageError

NGRAMS = open_embedder("hashed-ngrams")
TEXTS = [
    "How many pens are left?",
    "Compute the total cost",
    "买了三个苹果还剩几个",
    "Сколько осталось яблок",
    "🍎🍏 7",
    "x" * 5000,
]


def folder_with_encoder(folder, seed):
    """A random BERT of one layer over a dozen words, saved as a folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "apples", "and", "pears", "left"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return folder_with_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert", seed=0)


def test_the_example_of_the_module_is_true():
    assert doctest.testmod(embedders).failed == 0


def test_rows_of_ngrams_have_length_one_in_any_script():
    vectors = NGRAMS.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 8192)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # And texts of one script differ too.
    other = NGRAMS.embed(["买了五支铅笔一共多少钱", "Найдите площадь круга"])
    assert np.all((vectors[2:4] * other).sum(axis=1) < 0.3)


@pytest.mark.parametrize("text", ["", "   \n", "?!", "…", "___", "\ud800"])
def test_a_text_with_nothing_in_it_is_a_zero_row(text):
    assert not NGRAMS.embed(["a pen", text])[1].any()


def test_no_texts_are_no_rows():
    assert NGRAMS.embed([]).shape == (0, 8192)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_vector_of_a_text_has_the_same_bits_whatever_the_other_texts_are(texts, draw):
    order = list(range(len(texts)))
    draw.shuffle(order)
    together, shuffled = NGRAMS.embed(texts), NGRAMS.embed([texts[place] for place in order])
    assert np.array_equal(together[order], shuffled)
    assert all(np.array_equal(NGRAMS.embed([text])[0], row) for text, row in zip(texts, together, strict=True))


def test_case_composition_titlecase_and_stop_words_make_no_difference():
    same = [
        "compute total café cost",
        "Compute the TOTAL cafe\u0301 cost",
        "ComputeTotalCaféCost",
        "compute_total café cost",
    ]
    vectors = NGRAMS.embed(same)
    assert np.array_equal(vectors, np.repeat(vectors[:1], len(same), axis=0))


def test_a_text_of_stop_words_alone_is_kept():
    assert NGRAMS.embed(["how many of the"]).any()


def test_more_words_in_common_are_nearer():
    others = NGRAMS.embed(["total cost of pens", "total length of a fence", "measure an angle"])
    near, far, none = others @ NGRAMS.embed(["find the total cost of pens"])[0]
    assert near > 0.8 > far > 0.1 > abs(none)


def test_the_vectors_behind_the_name_have_not_drifted():
    # A bank file keeps thresholds and clusters for `hashed-ngrams-1`: whoever changes vectors changes the name too.
    coarse = np.rint(NGRAMS.embed(["Compute the total cost of 3 pens", "买了三个苹果"]) * 2**10).astype("<i2")
    assert NGRAMS.name == "hashed-ngrams-1"
    assert hashlib.sha256(coarse.tobytes()).hexdigest()[:16] == "d18d2cab4aa58b2c"


def test_an_ngram_embedder_pickles():
    assert np.array_equal(pickle.loads(pickle.dumps(NGRAMS)).embed(TEXTS), NGRAMS.embed(TEXTS))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30))
def test_a_cosine_has_the_same_bits_in_any_block(seed, count, block):
    vectors = np.random.default_rng(seed).standard_normal((count + 17, 300)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    class Given:
        name = "given"

        def embed(self, texts):
            return vectors[[int(text) for text in texts]]

    texts = [str(number) for number in range(count + 17)]
    left, right = unit_rows(Given(), texts[:count], block), unit_rows(Given(), texts[count:])
    whole = (left @ right.T).toarray()
    blocks = [left[start : start + block].toarray() @ right.toarray().T for start in range(0, count, block)]
    assert np.array_equal(np.concatenate(blocks), whole)
    # Exactly, as a sum in whole numbers shows.
    first, second = (np.rint(vectors[row].astype(np.float64) * 2**20).astype(np.int64).tolist() for row in (0, count))
    assert whole[0, 0] == sum(a * b for a, b in zip(first, second, strict=True)) / 2**40
    np.testing.assert_allclose(whole, vectors[:count].astype(np.float64) @ vectors[count:].T, atol=1e-5)


def test_rows_of_an_encoder_have_length_one_and_empty_texts_are_zero(encoder_folder):
    embedder = open_embedder(f"transformers:{encoder_folder}", device="cpu")
    vectors = embedder.embed(["how many apples", "", "pears left", " "])
    assert vectors.shape == (4, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 0], atol=1e-5)
    # What the encoder remembers of an empty text is not overwritten.
    assert np.array_equal(embedder.embed(["how many apples", ""]), vectors[:2])


def test_an_encoder_can_be_used_within_a_running_event_loop(encoder_folder):
    embedder = open_embedder(f"transformers:{encoder_folder}", device="cpu")

    async def inside():
        return embedder.embed(["how many apples"])

    assert np.array_equal(asyncio.run(inside()), embedder.embed(["how many apples"]))


def test_an_encoder_in_a_folder_is_known_again_elsewhere_and_other_weights_are_not(encoder_folder, tmp_path):
    name = open_embedder(f"transformers:{encoder_folder}").name
    assert str(encoder_folder.parent) not in name
    shutil.copytree(encoder_folder, tmp_path / "tiny-bert")
    assert open_embedder(f"transformers:{tmp_path / 'tiny-bert'}").name == name
    other = folder_with_encoder(tmp_path / "again", seed=1)
    shutil.rmtree(tmp_path / "tiny-bert")
    other.rename(tmp_path / "tiny-bert")
    assert open_embedder(f"transformers:{tmp_path / 'tiny-bert'}").name != name


def test_a_model_that_does_not_load_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match="does not load"):
        open_embedder(f"transformers:{tmp_path / 'empty'}").embed(["pen"])


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="the package is there")
def test_a_missing_package_is_named_with_the_extra_and_the_way_without_it():
    with pytest.raises(UsageError, match=r"rlkd\[embeddings\].*transformers:some/model"):
        open_embedder("sentence-transformers:some/model")


def test_the_package_and_plain_transformers_agree(encoder_folder):
    pytest.importorskip("sentence_transformers")
    texts = ["how many apples", "", "pears left"]
    theirs = open_embedder(f"sentence-transformers:{encoder_folder}", device="cpu")
    ours = open_embedder(f"transformers:{encoder_folder}", device="cpu")
    np.testing.assert_allclose(theirs.embed(texts), ours.embed(texts), atol=1e-5)
    assert theirs.embed([]).shape == ours.embed([]).shape == (0, 0)
    assert theirs.name.partition(":")[2] == ours.name.partition(":")[2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hashed-ngram", "Did you mean 'hashed-ngrams'"),
        ("transformers:", "names no model"),
        ("transformers", "transformers:MODEL"),
        ("", "an empty embedder spec"),
        ("word2vec:x", "unknown embedder"),
    ],
)
def test_a_spec_of_another_form_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        open_embedder(spec)


def test_the_module_loads_neither_scikit_learn_nor_torch():
    code = (
        "import sys; from rlkd import embedders; from rlkd.rationales.bank import bank, routing;"
        "embedders.open_embedder('hashed-ngrams');"
        "print([name for name in ('sklearn', 'torch', 'transformers', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_vectors_that_are_known_are_neither_worked_out_again_nor_changed():
    class Counting:
        name = "counting"

        def __init__(self):
            self.texts = []

        def embed(self, texts):
            self.texts += texts
            return NGRAMS.embed(texts)

    known, embedder = KnownVectors(), Counting()
    first = known.rows(["add prices", "?", "find a rate"], embedder)
    assert np.array_equal(first.toarray(), unit_rows(NGRAMS, ["add prices", "?", "find a rate"]).toarray())
    again = known.rows(["find a rate", "sum up", "add prices", "sum up"], embedder)
    assert np.array_equal(
        again.toarray(), unit_rows(NGRAMS, ["find a rate", "sum up", "add prices", "sum up"]).toarray()
    )
    assert embedder.texts == ["add prices", "?", "find a rate", "sum up"]


OWN = """
import numpy as np

class Letters:
    def __init__(self, width=26, scale=1.0):
        self.name, self.width, self.scale = f"letters-{width}", width, scale

    def embed(self, texts):
        counts = [[1 + text.count(chr(97 + n)) for n in range(self.width)] for text in texts]
        vectors = np.array(counts, dtype=np.float32).reshape(len(texts), self.width)
        return self.scale * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

class Twice(Letters):
    def __init__(self):
        super().__init__(scale=2.0)

class Nameless:
    embed = None
"""


def test_an_embedder_of_a_file_is_opened_by_its_path_and_checked(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = checked_embedder(f"{tmp_path}/own.py:Letters")
    assert (own.name, own.embed(["add"]).shape) == ("letters-26", (1, 26))
    with pytest.raises(UsageError, match=r"expected an object with a `name` \(text\) and `embed\(texts\)`"):
        open_embedder(f"{tmp_path}/own.py:Nameless")
    with pytest.raises(UsageError, match=r"shape \(1, 26\) with the length 2. Divide"):
        checked_embedder(f"{tmp_path}/own.py:Twice")
