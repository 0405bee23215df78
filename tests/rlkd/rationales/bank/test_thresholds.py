import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from rlkd.embedders import open_embedder
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.thresholds import MAX_ENTRIES, Thresholds, calibrate, known_thresholds, thresholds_for

NGRAMS = open_embedder("hashed-ngrams")


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
    for name in ("hashed-ngrams-1", "transformers:all-mpnet-base-v2", "transformers:tiny-bert@0123456789ab"):
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
    near = NGRAMS.embed([e.question for e in SEED]) @ NGRAMS.embed([e.intents[0] for e in SEED]).T
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
            self.texts = []

        def embed(self, texts):
            self.texts += texts
            return np.stack([[np.cos(a), np.sin(a)] for a in (len(text) % 7 / 5 for text in texts)]).astype(np.float32)

    seed = many(MAX_ENTRIES + 500)
    forth, back = Counting(), Counting()
    assert calibrate(forth, seed) == calibrate(back, seed[::-1])
    assert len(set(forth.texts)) <= 2 * MAX_ENTRIES
    assert sorted(set(forth.texts)) == sorted(set(back.texts))
    # Drawn, not cut off.
    drawn = [each for each in seed if each.question in set(forth.texts)]
    assert len(drawn) == MAX_ENTRIES
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
