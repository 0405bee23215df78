import asyncio
import doctest
import hashlib
import importlib.util
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.rationales.bank import embedders
from rlkd.rationales.bank.bank import RouteEntry
from rlkd.rationales.bank.embedders import (
    MOST_ENTRIES,
    Thresholds,
    calibrate,
    cosines,
    known_thresholds,
    open_embedder,
    thresholds_for,
)

NGRAMS = open_embedder("tfidf")
TEXTS = [
    "How many pens are left?",
    "Compute the total cost",
    "买了三个苹果还剩几个",
    "Сколько осталось яблок",
    "🍎🍏 7",
    "x" * 5000,
]


def entry(number, question, category, intent, correct=True):
    return RouteEntry(f"q{number}", question, category, (intent,), 1, 2, ("AddUp",), correct)


SEED = [
    entry(number, *each)
    for number, each in enumerate(
        [
            ("Ann buys 3 notebooks at $4 each. How much does she pay in total?", "cost", "compute total cost"),
            ("What is the cost of 2 tickets at $8 and 3 at $5?", "cost", "calculate the cost of tickets"),
            ("A coat of $120 has a discount of 25 %. What does it cost now?", "cost", "apply a discount"),
            ("A car drives 180 miles in 3 hours. What is its speed?", "rates", "find average speed"),
            ("A printer makes 15 pages a minute. How long for 240 pages?", "rates", "apply a constant rate"),
            ("Two pipes fill a pool in 4 and 6 hours. How long together?", "rates", "combine work rates"),
            ("A rectangle is 8 cm long and 5 cm wide. Find its area.", "area", "compute rectangle area"),
            ("Find the area of a circle with radius 7.", "area", "compute circle area"),
        ]
    )
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
    # And texts of one script are told apart.
    other = NGRAMS.embed(["买了五支铅笔一共多少钱", "Найдите площадь круга"])
    assert np.all(np.diag(cosines(vectors[2:4], other)) < 0.3)


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
    near, far, none = cosines(
        NGRAMS.embed(["find the total cost of pens"]),
        NGRAMS.embed(["total cost of pens", "total length of a fence", "measure an angle"]),
    )[0]
    assert near > 0.8 > far > 0.1 > abs(none)


def test_the_vectors_behind_the_name_have_not_drifted():
    # A bank file keeps thresholds and clusters for `tfidf-1`: whoever changes vectors changes the name too.
    coarse = np.rint(NGRAMS.embed(["Compute the total cost of 3 pens", "买了三个苹果"]) * 2**10).astype("<i2")
    assert NGRAMS.name == "tfidf-1"
    assert hashlib.sha256(coarse.tobytes()).hexdigest()[:16] == "d18d2cab4aa58b2c"


def test_an_ngram_embedder_pickles():
    assert np.array_equal(pickle.loads(pickle.dumps(NGRAMS)).embed(TEXTS), NGRAMS.embed(TEXTS))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30))
def test_a_cosine_has_the_same_bits_in_any_block(seed, rows, block):
    draw = np.random.default_rng(seed)
    left, right = (draw.standard_normal((count, 300)).astype(np.float32) for count in (rows, 17))
    left, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (left, right))
    whole = cosines(left, right)
    blocks = [cosines(left[start : start + block], right) for start in range(0, rows, block)]
    assert np.array_equal(np.concatenate(blocks), whole)
    # Exactly, as a sum in whole numbers shows.
    first, second = (np.rint(each[0].astype(np.float64) * 2**20).astype(np.int64).tolist() for each in (left, right))
    assert whole[0, 0] == sum(a * b for a, b in zip(first, second, strict=True)) / 2**40
    np.testing.assert_allclose(whole, left.astype(np.float64) @ right.T, atol=1e-5)


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
    ("spec", "told"),
    [
        ("tf-idf", "Did you mean 'tfidf'"),
        ("transformers:", "names no model"),
        ("transformers", "transformers:MODEL"),
        ("", "Known: sentence"),
        ("word2vec:x", "unknown embedder"),
    ],
)
def test_a_spec_of_another_form_is_refused(spec, told):
    with pytest.raises(UsageError, match=told):
        open_embedder(spec)


def test_the_module_loads_neither_scikit_learn_nor_torch():
    code = (
        "import sys; from rlkd.rationales.bank import clustering, bank, embedders, routing;"
        "embedders.open_embedder('tfidf');"
        "print([name for name in ('sklearn', 'torch', 'transformers', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "values", [{"duplicate": 0}, {"duplicate": 1.1}, {"route": 2}, {"eps": 0}, {"eps": float("nan")}]
)
def test_thresholds_that_nothing_or_everything_meets_are_refused(values):
    with pytest.raises(ValueError, match="expected 0 < duplicate"):
        Thresholds(**values)


def test_the_published_thresholds_belong_to_minilm_wherever_it_comes_from():
    class Named:
        def __init__(self, name):
            self.name = name

    for name in (
        "transformers:sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers:all-MiniLM-L6-v2",
        "transformers:all-MiniLM-L6-v2@0123456789ab",
    ):
        assert known_thresholds(Named(name)) == Thresholds(duplicate=0.9, route=0.35, eps=0.25)
    for name in ("tfidf-1", "transformers:all-mpnet-base-v2", "transformers:tiny-bert@0123456789ab"):
        assert known_thresholds(Named(name)) is None


class Tilted:
    """Intents lie on one axis; the n-th question of the seed has the cosine n / 10 with it."""

    name = "tilted"

    def embed(self, texts):
        cosine = {each.question: number / 10 for number, each in enumerate(SEED, 1)}
        return np.array([[c := cosine.get(text, 1.0), np.sqrt(1 - c * c)] for text in texts], dtype=np.float32)


def test_within_one_category_the_threshold_is_the_lower_quartile_of_the_own_intents():
    one = [replace(each, category="all") for each in SEED]
    assert calibrate(Tilted(), one).route == pytest.approx(0.2, abs=2e-4)
    assert calibrate(Tilted(), one[4:]).route == pytest.approx(0.5, abs=2e-4)


def test_what_foreign_intents_often_reach_is_below_the_threshold():
    class Spread:
        """Two intents at right angles; a question is named for its cosines with them, in tenths."""

        name = "spread"

        def embed(self, texts):
            places = {"left": (1, 0), "right": (0, 1)}
            flat = np.array([places.get(text) or (int(text[0]) / 10, int(text[1]) / 10) for text in texts])
            rest = np.sqrt(1 - np.square(flat).sum(axis=1, keepdims=True))
            return np.hstack([flat, rest]).astype(np.float32)

    def seed(*questions):
        return [entry(n, text, side, side) for n, (text, side) in enumerate(questions)]

    apart = seed(("51", "left"), ("61", "left"), ("16", "right"), ("17", "right"))
    assert calibrate(Spread(), apart).route == pytest.approx(0.5, abs=2e-4)
    # The own quartile falls to .2, but foreign intents are reached with .4 and more.
    mixed = seed(("24", "left"), ("24", "left"), ("64", "left"), ("46", "right"), ("46", "right"))
    assert calibrate(Spread(), mixed).route == pytest.approx(0.4, abs=2e-4)


def test_at_least_half_of_the_seed_is_offered_a_path():
    # All intents are one here, so the foreign quartile lies at .62; but the median question reaches no more than .4.
    assert calibrate(Tilted(), SEED).route == pytest.approx(0.4, abs=2e-4)
    thresholds = calibrate(NGRAMS, SEED)
    near = cosines(NGRAMS.embed([e.question for e in SEED]), NGRAMS.embed([e.intents[0] for e in SEED]))
    assert np.mean(near.max(axis=1) >= thresholds.route) >= 0.5
    assert thresholds.route > 0
    assert thresholds.duplicate == 0.9
    assert thresholds_for(NGRAMS, SEED) == thresholds


def test_wrong_answers_and_the_order_of_the_entries_do_not_move_a_calibration():
    wrong = entry(99, "Name the birds.", "birds", "name birds", correct=False)
    unknown = entry(98, "Name the fish.", "birds", "name fish", correct=None)
    assert calibrate(NGRAMS, [wrong, *reversed(SEED), unknown]) == calibrate(NGRAMS, SEED)


def test_a_seed_of_three_right_answers_calibrates_nothing():
    assert calibrate(NGRAMS, SEED[:3]) == Thresholds(duplicate=0.9, route=0.0, eps=0.25)
    assert calibrate(NGRAMS, []) == Thresholds(route=0.0)


def test_the_radius_grows_with_the_distances_of_the_embedder():
    class Scaled:
        """Intents on a line, `gap` apart."""

        name = "scaled"

        def __init__(self, gap):
            self.gap = gap

        def embed(self, texts):
            places = {text: n for n, text in enumerate(sorted({e.intents[0] for e in SEED}))}
            angles = np.array([self.gap * places.get(text, 0) for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    assert 0.05 <= calibrate(Scaled(0.05), SEED).eps < calibrate(Scaled(0.3), SEED).eps <= 1


def many(count):
    """Right answers whose intents and questions are mostly of their own words."""
    return [
        entry(
            n, f"How many w{n * 7 % 997} and v{n % 89} are {n} w{n % 31}?", f"c{n % 3}", f"count w{n * 7 % 997} v{n}"
        )
        for n in range(count)
    ]


def test_of_a_large_seed_no_more_than_two_thousand_entries_are_embedded_whatever_their_order():
    class Counting:
        name = "counting"

        def __init__(self):
            self.asked = []

        def embed(self, texts):
            self.asked += texts
            return np.stack([[np.cos(a), np.sin(a)] for a in (len(text) % 7 / 5 for text in texts)]).astype(np.float32)

    seed = many(MOST_ENTRIES + 500)
    forth, back = Counting(), Counting()
    assert calibrate(forth, seed) == calibrate(back, seed[::-1])
    assert len(set(forth.asked)) <= 2 * MOST_ENTRIES
    assert sorted(set(forth.asked)) == sorted(set(back.asked))
    # Drawn, not cut off.
    drawn = [each for each in seed if each.question in set(forth.asked)]
    assert len(drawn) == MOST_ENTRIES
    assert any(each in drawn for each in seed[-50:])
    assert any(each not in drawn for each in seed[:50])


def test_a_calibration_never_has_all_vectors_in_one_dense_matrix():
    seed = many(800)
    calibrate(NGRAMS, seed[:10])
    tracemalloc.start()
    try:
        calibrate(NGRAMS, seed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(seed) * 8192 * 4
