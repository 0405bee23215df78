import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.embedders import open_embedder, unit_rows
from rlkd.rationales.bank.bank import BankError, PathBank
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.paths import path_entropy, path_words
from rlkd.rationales.bank.routing import Coverage, Route, Router, bank_sizes, coverage
from rlkd.rationales.bank.thresholds import Thresholds

NGRAMS = open_embedder("hashed-ngrams")
ROUTES = [
    ("cost", "compute total cost", ("MultiplyPrices", "AddPrices")),
    ("cost", "compute total cost", ("AddPrices", "ApplyTax", "AddTip")),
    ("cost", "compute total cost", ("FindCost",)),
    ("cost", "compute total cost", ("ListItems", "SumCost")),
    ("cost", "apply discount", ("FindDiscount", "SubtractDiscount")),
    ("area", "compute rectangle area", ("MultiplySides",)),
    ("rates", "find average speed", ("AddDistances", "AddTimes", "DivideDistance")),
]
QUESTIONS = [
    "What is the total cost of 3 pens at $2 and a book at $7?",
    "A coat of $120 has a discount of 25 %. What does it cost now?",
    "A rectangle is 8 cm long and 5 cm wide. What is its area?",
    "A cyclist rides 24 km in 2 hours. What is the average speed?",
    "Name three birds.",
    "",
]


def bank_of(routes=ROUTES, *, route=0.2, embedder=NGRAMS, **settings):
    made = [
        RouteEntry(f"q{n}", "", category, (intent,), 2, 3, path, True)
        for n, (category, intent, path) in enumerate(routes)
    ]
    return PathBank.from_seed(made, embedder, thresholds=Thresholds(route=route, eps=0.01), **settings)


def reference(bank, questions, k, threshold):
    """Each question by itself: all pairs, then all paths of the nearest."""
    routes = []
    for question in questions:
        [vector] = unit_rows(NGRAMS, [question]).toarray()
        near = [(-float(vector @ unit_rows(NGRAMS, [pair[1]]).toarray()[0]), pair) for pair in bank.intents()]
        distance, pair = min(near)
        paths = sorted(
            (-float(vector @ unit_rows(NGRAMS, [path_words(path.names)]).toarray()[0]), path.names)
            for path in bank.paths(*pair)
        )
        offered = -distance >= threshold and vector.any()
        routes.append(Route(*pair, tuple(names for _, names in paths[:k]) if offered else (), -distance))
    return routes


def test_a_question_goes_to_the_nearest_intent_of_all_categories_and_gets_its_nearest_paths():
    routes = Router(bank_of(), NGRAMS).route(QUESTIONS)
    assert [(route.category, route.intent) for route in routes[:4]] == [
        ("cost", "compute total cost"),
        ("cost", "apply discount"),
        ("area", "compute rectangle area"),
        ("rates", "find average speed"),
    ]
    assert routes[0].paths[0] in (("FindCost",), ("ListItems", "SumCost"))  # "cost" stands in the question
    assert len(routes[0].paths) == 3
    assert routes[1].paths == (("FindDiscount", "SubtractDiscount"),)


def test_below_the_threshold_nothing_is_offered_and_at_it_something_is():
    [exact] = Router(bank_of(route=0.0), NGRAMS).route(QUESTIONS[:1])
    [at] = Router(bank_of(route=exact.similarity), NGRAMS).route(QUESTIONS[:1])
    [below] = Router(bank_of(route=exact.similarity + 1e-9), NGRAMS).route(QUESTIONS[:1])
    assert at.offered
    assert at.paths == exact.paths
    assert not below.offered
    # The nearest is still told, and what depends on a path is not made up.
    assert (below.category, below.intent, below.paths) == ("cost", "compute total cost", ())
    assert below.budget is None
    assert below.difficulty is None


def test_a_question_without_a_word_is_offered_nothing_even_without_a_threshold():
    assert not Router(bank_of(route=-1.0), NGRAMS).route([""])[0].offered


def test_as_released_something_is_always_offered_and_it_is_one_path():
    routes = Router(bank_of(route=1.0, faithful=True), NGRAMS).route(QUESTIONS)
    assert [len(route.paths) for route in routes] == [1] * len(QUESTIONS)


def test_as_released_names_are_compared_unsplit():
    class Exact:
        """A direction for each text, the same for equal ones only."""

        name = "exact"

        def embed(self, texts):
            known = ["x", "cost", "AddPrices FindRate", "Add Prices Find Rate", "AAside", "A Aside"]
            return np.eye(len(known), dtype=np.float32)[[known.index(text) for text in texts]]

    routes = [("c", "cost", ("AAside",)), ("c", "cost", ("AddPrices", "FindRate"))]
    for faithful, question in ((True, "AddPrices FindRate"), (False, "Add Prices Find Rate")):
        router = Router(bank_of(routes, route=0.0, embedder=Exact(), faithful=faithful), Exact())
        assert router.route([question])[0].paths[0] == ("AddPrices", "FindRate")


@pytest.mark.parametrize(
    ("path", "budget", "difficulty"), [(("A",), 1, 1), (("A", "B"), 2, 1), (("A", "B", "C"), 3, 2), (("A",) * 5, 5, 2)]
)
def test_the_budget_is_the_length_of_the_best_path_and_difficulty_follows(path, budget, difficulty):
    route = Route("cost", "add", (path, ("A", "B", "C", "D")), 0.5)
    assert (route.budget, route.difficulty) == (budget, difficulty)


def test_ties_go_to_the_first_in_the_alphabet():
    routes = [
        ("b", "add up", ("AddNow", "SumNow")),
        ("a", "add up", ("SumNow", "AddNow")),
        ("a", "add up", ("AddNow",)),
    ]
    for order in (routes, routes[::-1]):
        [found] = Router(bank_of(order, route=0.0), NGRAMS).route(["add up these"])
        assert found.category == "a"
    # Neither path is nearer; that the second of them is used more makes no difference.
    two = [("a", "add up", ("FindXOne",)), ("a", "add up", ("FindXOne",)), ("a", "add up", ("CutXTwo",))]
    assert Router(bank_of(two, route=0.0), NGRAMS).route(["add up these"])[0].paths == (("CutXTwo",), ("FindXOne",))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(ROUTES), min_size=1, unique=True),
    st.lists(st.sampled_from(QUESTIONS) | st.text(max_size=20), max_size=9),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.2]),
)
def test_routes_are_those_of_one_question_at_a_time_whatever_the_block(routes, questions, block, k, threshold):
    bank = bank_of(routes, route=threshold)
    found = Router(bank, NGRAMS, block=block).route(questions, k)
    assert found == reference(bank, questions, k, threshold)
    assert Router(bank, NGRAMS).route(questions[::-1], k)[::-1] == found


def test_an_empty_bank_offers_nothing():
    routes = Router(bank_of([]), NGRAMS).route(QUESTIONS)
    assert routes == [Route(None, None, (), 0.0)] * len(QUESTIONS)
    assert Router(bank_of(), NGRAMS).route([]) == []


def test_a_router_keeps_the_state_of_the_bank_it_was_made_of():
    bank = bank_of()
    router = Router(bank, NGRAMS)
    before = router.route(QUESTIONS)
    for question in ("x", "y"):
        bank.record_success("birds", "name three birds", ("RecallBirds",), question)
    bank.flush(NGRAMS, force=True)
    assert router.route(QUESTIONS) == before
    assert router.generation < bank.generation
    assert Router(bank, NGRAMS).route(QUESTIONS)[4].paths == (("RecallBirds",),)


def test_settings_that_route_nothing_are_refused():
    with pytest.raises(ValueError, match="block=0"):
        Router(bank_of(), NGRAMS, block=0)
    with pytest.raises(ValueError, match="k=0"):
        Router(bank_of(), NGRAMS).route(QUESTIONS, 0)

    class Other:
        name = "other"

    with pytest.raises(BankError, match=r"'hashed-ngrams-1'.*'other'"):
        Router(bank_of(), Other())


def test_coverage_counts_offers_and_what_was_used():
    routes = Router(bank_of(), NGRAMS).route(QUESTIONS)
    used = [("AddUp",), ("AddUp",), ("FindRate",), ("AddUp",), ("FindRate",), ("AddUp",), ("AddUp",), ("AddUp",)]
    found = coverage(routes, used)
    assert (found.questions, found.offered, found.paths) == (6, 4, 2)
    assert found.entropy == pytest.approx(0.8112781)
    assert found.to_json() == {
        "questions": 6,
        "offered": 4,
        "paths": 2,
        "entropy": found.entropy,
        "share": pytest.approx(2 / 3),
    }
    assert coverage(routes) == Coverage(6, 4, 4, 2.0)
    assert coverage([]) == Coverage(0, 0, 0, 0.0)
    assert coverage([]).message() is None


def test_fewer_than_half_of_the_questions_with_a_path_give_a_warning():
    assert Coverage(10, 5, 1, 0.0).message() is None
    message = Coverage(10, 4, 1, 0.0).message()
    assert "only 4 of 10 questions (40%)" in message
    assert "Enlarge the seed" in message
    assert coverage(Router(bank_of(route=1.0), NGRAMS).route(QUESTIONS)).message().startswith("only 0 of 6")


def test_a_smaller_bank_reaches_less_with_fewer_paths():
    sizes = bank_sizes(bank_of(cap=None), NGRAMS, QUESTIONS[:4], (1, 3, 100))
    assert [sizes[size].offered for size in (1, 3, 100)] == sorted(sizes[size].offered for size in (1, 3, 100))
    assert sizes[1].offered < sizes[100].offered == 4
    assert sizes[1].entropy == 0.0 < sizes[100].entropy


@settings(max_examples=50)
@given(st.lists(st.sampled_from([("A",), ("B",), ("C", "D")]), max_size=30))
def test_path_entropy_is_the_formula_and_knows_no_order(paths):
    shares = [paths.count(path) / len(paths) for path in set(paths)]
    assert path_entropy(paths) == pytest.approx(-sum(p * np.log2(p) for p in shares))
    assert path_entropy(paths) == path_entropy(paths[::-1])
