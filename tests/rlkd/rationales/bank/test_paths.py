import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.embedders import open_embedder
from rlkd.rationales.bank import paths as paths_module
from rlkd.rationales.bank.paths import distinct_paths, path_words, split_name

NGRAMS = open_embedder("hashed-ngrams")


def test_the_examples_of_the_module_are_true():
    assert doctest.testmod(paths_module).failed == 0


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ComputeTotalCost", ["Compute", "Total", "Cost"]),
        ("FindGCD", ["Find", "GCD"]),
        ("GCDOfBoth", ["GCD", "Of", "Both"]),
        ("SolveForX", ["Solve", "For", "X"]),
        ("Step2Add", ["Step", "2", "Add"]),
        ("add_up", ["add", "up"]),
        ("FlächeBerechnen", ["Fläche", "Berechnen"]),
        ("求和", ["求和"]),
        ("Add prices", ["Add", "prices"]),
        ("", []),
    ],
)
def test_names_are_split_into_their_words(name, parts):
    assert split_name(name) == parts


def test_paths_are_near_duplicates_from_nine_tenths_of_their_words_on():
    nine = ("AddBuyCut", "DigEatFly", "GetHitJog")
    ten = ("AddBuyCut", "DigEatFly", "GetHitJogNow")
    eight = ("AddBuyCut", "DigEatFly", "GetHit")
    assert distinct_paths([nine, ten]) == {nine: nine, ten: nine}  # 9 / 10
    assert distinct_paths([ten, nine]) == {ten: ten, nine: ten}
    assert distinct_paths([nine, eight]) == {nine: nine, eight: eight}  # 8 / 9
    assert distinct_paths([nine, eight], threshold=0.88) == {nine: nine, eight: nine}


def test_a_duplicate_is_compared_with_kept_paths_only_and_the_nearest_stands_for_it():
    a, b, c = ("AddBuyCutDig",), ("AddBuyCutDigEat",), ("AddBuyCutDigEatFly",)
    # b goes for a (4 / 5), so c, which is near b (5 / 6) but not a (4 / 6), stays.
    assert distinct_paths([a, b, c], threshold=0.8) == {a: a, b: a, c: c}
    assert distinct_paths([a, c, b], threshold=0.8) == {a: a, c: c, b: c}


def test_order_and_case_of_words_make_no_other_path_and_foreign_words_do():
    paths = [
        ("AddPrices", "ApplyTax"),
        ("ApplyTax", "AddPrices"),
        ("addPrices", "applyTax"),
        ("AddPrices",),
        ("求和",),
    ]
    kept = distinct_paths(paths)
    assert [kept[path] for path in paths] == [paths[0], paths[0], paths[0], paths[3], paths[4]]


def test_paths_without_a_word_are_different():
    assert distinct_paths([("!",), ("?",)]) == {("!",): ("!",), ("?",): ("?",)}


def test_with_an_embedder_its_cosine_decides():
    class Angles:
        """Texts on the unit circle."""

        name = "angles"

        def embed(self, texts):
            degrees = {"Add Prices": 0, "Sum Prices": 25, "Find Rate": 90}
            angles = np.radians([degrees[text] for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    paths = [("AddPrices",), ("SumPrices",), ("FindRate",)]
    assert distinct_paths(paths, 0.9, Angles())[paths[1]] == paths[0]  # cosine .906
    assert distinct_paths(paths, 0.91, Angles())[paths[1]] == paths[1]
    assert distinct_paths(paths)[paths[1]] == paths[1]


steps = st.sampled_from(["AddUp", "AddAll", "UpAdd", "FindRate", "FindTheRate", "ApplyTax"])
paths_strategy = st.lists(st.lists(steps, min_size=1, max_size=3).map(tuple), max_size=12)


@settings(max_examples=80, deadline=None)
@given(paths_strategy, st.sampled_from([0.5, 0.75, 0.9, 1.0]), st.booleans())
def test_what_is_kept_is_kept_again_and_no_two_kept_are_near(found, threshold, embedded):
    embedder = NGRAMS if embedded else None
    stands_for = distinct_paths(found, threshold, embedder)
    kept = [path for path, other in stands_for.items() if path == other]
    assert set(stands_for) == set(found)
    assert set(stands_for.values()) == set(kept)
    assert distinct_paths(kept, threshold, embedder) == {path: path for path in kept}
    if not embedded:
        for one in kept:
            for other in kept[: kept.index(one)]:
                mine, theirs = (set(path_words(path).lower().split()) for path in (one, other))
                assert len(mine & theirs) < threshold * len(mine | theirs)


def plain_distinct_paths(paths, threshold):
    """`distinct_paths` with words, by comparing with every kept path."""
    kept, stands_for = [], {}
    for path in dict.fromkeys(paths):
        mine = set(path_words(path).lower().split())
        near = [(len(mine & theirs) / max(1, len(mine | theirs)), other) for other, theirs in kept]
        best = max(near, key=lambda pair: pair[0], default=None)
        if best is None or best[0] < threshold:
            kept.append((path, mine))
            stands_for[path] = path
        else:
            stands_for[path] = best[1]
    return stands_for


few_words = st.lists(st.sampled_from(["Add", "Buy", "Cut", "Dig", "Eat", "Fly", "Get", "Hit"]), min_size=1, max_size=5)
few_word_paths = st.lists(st.lists(few_words.map("".join), min_size=1, max_size=3).map(tuple), max_size=25)


@settings(max_examples=150, deadline=None)
@given(few_word_paths, st.sampled_from([0.2, 0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 1.0]))
def test_the_paths_that_are_not_compared_would_have_changed_nothing(found, threshold):
    assert distinct_paths(found, threshold) == plain_distinct_paths(found, threshold)
