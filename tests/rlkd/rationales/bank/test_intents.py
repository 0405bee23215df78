import doctest
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from sklearn.decomposition import PCA

from rlkd.embedders import open_embedder
from rlkd.rationales.bank import intents as intents_module
from rlkd.rationales.bank.intents import FULL_SVD, canonical_intents, linked, projected

NGRAMS = open_embedder("hashed-ngrams")


class Placed:
    """Texts at places of the plane, on the unit circle: an angle in degrees each."""

    name = "placed"

    def __init__(self, **degrees):
        self.degrees = {text.replace("_", " "): angle for text, angle in degrees.items()}

    def embed(self, texts):
        angles = np.radians([self.degrees[text] for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_example_of_the_module_is_true():
    assert doctest.testmod(intents_module).failed == 0


def test_a_cluster_goes_by_its_shortest_member_and_a_lone_intent_by_itself():
    # 10 degrees are .17 apart, 90 degrees 1.41.
    placed = Placed(find_the_full_cost=0, total_cost=10, find_costs=20, full_cost=30, measure_angles=120)
    assert canonical_intents(placed.degrees, placed) == {
        "find costs": "full cost",
        "find the full cost": "full cost",
        "full cost": "full cost",
        "measure angles": "measure angles",
        "total cost": "full cost",
    }
    # One word is shorter than three, whatever their letters.
    placed = Placed(a_b_c=0, measure=5)
    assert set(canonical_intents(placed.degrees, placed).values()) == {"measure"}
    # Two words each: the fewest characters decide, and among those the alphabet.
    placed = Placed(take_bc=0, make_bc=5, add_costs=10)
    assert set(canonical_intents(placed.degrees, placed).values()) == {"make bc"}


def test_intents_are_one_up_to_the_radius_and_two_beyond_it():
    for degrees, clusters in ((14.2, 1), (14.5, 2)):  # chords of .2472 and .2524
        placed = Placed(first=0, second=degrees)
        assert len(set(canonical_intents(["first", "second"], placed, eps=0.25).values())) == clusters
    assert len(set(canonical_intents(["first", "second"], Placed(first=0, second=14.5), eps=0.26).values())) == 1


def test_names_are_truncated_to_four_words_and_a_truncated_name_stands_for_itself():
    placed = Placed(find_the_rest_of_all=0, find_the_rest_of_it=90)
    assert set(canonical_intents(placed.degrees, placed).values()) == {"find the rest of"}
    # The cut name is an intent too, in a cluster that goes by another name.
    placed = Placed(find_the_rest_of_all=0, find_the_rest_of=90, rest=95)
    names = canonical_intents(placed.degrees, placed)
    assert names == dict.fromkeys(sorted(placed.degrees), "rest")


@pytest.mark.parametrize("intents", [[], ["one"], ["one", "one"], ["the one", "a one"], ["", "one"]])
def test_few_equal_or_empty_intents_are_no_special_case(intents):
    names = canonical_intents(intents, NGRAMS)
    assert list(names) == sorted(set(intents))
    assert set(names.values()) <= set(intents)


words = st.sampled_from(["find", "compute", "the", "total", "rest", "cost", "price", "of", "apples", "rate"])
intents = st.lists(st.lists(words, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(intents, st.randoms(use_true_random=False))
def test_canonical_intents_depend_on_no_order_and_name_themselves(found, draw):
    names = canonical_intents(found, NGRAMS, eps=0.6)
    shuffled = found * 2
    draw.shuffle(shuffled)
    assert canonical_intents(shuffled, NGRAMS, eps=0.6) == names
    assert list(names) == sorted(set(found))
    for name in names.values():
        assert 1 <= len(name.split()) <= 4
        assert names.get(name, name) == name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 20))
def test_projection_and_clusters_are_those_of_scikit_learn(seed, count, width):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ours = projected(vectors)
    components = min(5, count, width)
    theirs = PCA(components, random_state=42, svd_solver="full").fit_transform(vectors.astype(np.float64))
    assert ours.shape == (count, components)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6)

    class Given:
        name = "given"

        def embed(self, texts):
            return vectors[[int(text) for text in texts]]

    names = canonical_intents([f"{n:02}" for n in range(count)], Given(), eps=0.5)
    labels = DBSCAN(eps=0.5, min_samples=2).fit_predict(theirs)
    expected = [
        f"{n:02}" if label < 0 else f"{np.flatnonzero(labels == label)[0]:02}" for n, label in enumerate(labels)
    ]
    assert list(names.values()) == expected


def free_intents(count):
    """Intents of four of 300 made-up words: distinct, and hardly one like another."""
    draw = random.Random(1)
    made = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(300)]
    return sorted({" ".join(draw.sample(made, 4)) for _ in range(count)})


@pytest.mark.parametrize("kind", ["n-grams", "dense"])
def test_beyond_the_full_decomposition_components_are_those_of_scikit_learn(kind):
    if kind == "dense":
        vectors = np.random.default_rng(3).standard_normal((FULL_SVD + 60, 48)).astype(np.float32)
    else:
        vectors = NGRAMS.embed(free_intents(FULL_SVD + 60))
    ours = projected(vectors)
    theirs = PCA(5, random_state=42, svd_solver="full").fit_transform(vectors.astype(np.float64))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    assert np.array_equal(projected(vectors), ours)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_many_vectors_in_few_directions_are_projected_like_few(rank):
    draw = np.random.default_rng(rank)
    places = draw.standard_normal((FULL_SVD + 100, rank)) @ draw.standard_normal((rank, 40)) + 1.0
    ours = projected(places)
    centred = places - places.mean(axis=0)
    assert ours.shape == (len(places), 5)
    np.testing.assert_allclose(ours @ ours.T, centred @ centred.T, atol=1e-6)


def test_many_intents_are_clustered_without_a_dense_matrix_of_them():
    found = free_intents(1200)
    dense = len(found) * 8192 * 4
    canonical_intents(found[:5], NGRAMS)  # imports
    tracemalloc.start()
    try:
        canonical_intents(found, NGRAMS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < dense


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=60),
    st.sampled_from([0.5, 1.0, 2.0**0.5, 2.0]),
)
def test_what_is_linked_is_a_cluster_of_scikit_learn_even_at_the_radius(grid, eps):
    places = np.array(grid, dtype=np.float64)
    ours = linked(places, eps)
    theirs = DBSCAN(eps=eps, min_samples=2).fit_predict(places)
    together = (theirs[:, None] == theirs[None]) & (theirs >= 0) | np.eye(len(places), dtype=bool)
    assert np.array_equal(ours[:, None] == ours[None], together)


def test_places_that_all_fall_together_are_linked_without_a_list_of_all_neighbours():
    places = np.random.default_rng(0).standard_normal((6000, 5)) / 100
    tracemalloc.start()
    try:
        labels = linked(places, 0.25)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(labels.tolist()) == {labels[0]}
    assert peak < 64 * 2**20  # the neighbours alone would be 6000^2 numbers, 275 MiB
