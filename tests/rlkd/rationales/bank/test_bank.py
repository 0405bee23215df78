import copy
import json
import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.embedders import open_embedder
from rlkd.rationales.bank import bank as bank_module
from rlkd.rationales.bank.bank import BankError, BankRules, PathBank
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.thresholds import Thresholds

NGRAMS = open_embedder("hashed-ngrams")
NEAR = Thresholds(route=0.1, eps=0.25)
A, B, C = ("AddPrices", "ApplyTax"), ("FindRate",), ("ListItems", "SumAll")


def entry(question_id, path=A, *, category="cost", intent="compute total cost", correct=True, difficulty=1):
    budget = 2 if difficulty == 1 else 3
    return RouteEntry(question_id, "How much is it?", category, (intent,), difficulty, budget, path, correct)


def seeded(*entries, embedder=NGRAMS, thresholds=NEAR, **settings):
    return PathBank.from_seed(entries or [entry("s1")], embedder, thresholds=thresholds, **settings)


def succeed(bank, path, *questions, category="cost", intent="compute total cost"):
    for question in questions:
        bank.record_success(category, intent, path, question)


def uses(bank, category="cost", intent="compute total cost"):
    return {path.names: path.uses for path in bank.paths(category, intent)}


class Other:
    name = "other"

    def embed(self, texts):
        return np.stack([NGRAMS.embed([text])[0] for text in texts])


# The seed.


def test_a_seed_takes_right_answers_that_keep_the_contract():
    entries = [
        entry("q1", A),
        entry("q2", B, correct=False),
        entry("q3", B, correct=None),
        entry("q4", ("Add1",)),
        replace(entry("q5", C), budget=3),
    ]
    assert uses(seeded(*entries)) == {A: 1}
    # As released, the contract stands in the prompt only.
    assert uses(seeded(*entries, faithful=True)) == {A: 1, ("Add1",): 1, C: 1}


def test_a_seed_path_enters_after_one_success_and_equal_ones_are_one():
    bank = seeded(entry("q1"), entry("q2"), entry("q2"), entry("q3", B))
    assert uses(bank) == {A: 2, B: 1}
    assert len(bank) == 2
    assert bank.pending == 0


def test_intents_that_cluster_share_their_paths_and_other_categories_do_not():
    bank = seeded(
        entry("q1", A, intent="compute the total cost"),
        entry("q2", B, intent="compute total cost"),
        entry("q3", C, intent="compute total cost", category="travel"),
    )
    assert bank.intents() == [("cost", "compute total cost"), ("travel", "compute total cost")]
    assert uses(bank) == {A: 1, B: 1}
    assert bank.holds("cost", "compute the total cost", B)
    assert not bank.holds("travel", "compute total cost", B)


def test_an_empty_seed_is_an_empty_bank_that_can_grow():
    bank = PathBank.from_seed([], NGRAMS)
    assert (len(bank), bank.intents(), bank.entropy()) == (0, [], 0.0)
    succeed(bank, A, "q1", "q2")
    assert bank.flush(NGRAMS, force=True)
    assert uses(bank) == {A: 2}


def test_a_seed_without_thresholds_takes_those_of_its_embedder():
    class Known(Other):
        name = "transformers:sentence-transformers/all-MiniLM-L6-v2"

    assert PathBank.from_seed([entry("q1")], Known()).rules.thresholds == Thresholds()
    assert PathBank.from_seed([entry("q1")], NGRAMS).rules.thresholds.route == 0.0


# Growth.


def test_wrong_answers_change_nothing():
    bank = seeded()
    before = bank.to_json()
    for number in range(300):
        assert not bank.record(entry(f"q{number}", C if number % 2 else A, correct=None if number % 3 else False))
    assert not bank.flush(NGRAMS, force=True)
    assert bank.to_json() == before


def test_a_new_path_enters_after_successes_on_two_distinct_questions():
    bank = seeded()
    succeed(bank, B, "q1", "q1", "q1")
    succeed(bank, C, "q1", "q2")
    assert bank.pending == 2
    assert uses(bank) == {A: 1}
    assert bank.flush(NGRAMS, force=True)
    assert uses(bank) == {C: 2, A: 1}
    assert bank.pending == 1
    succeed(bank, B, "q7")
    assert bank.flush(NGRAMS, force=True)
    assert uses(bank) == {B: 2, C: 2, A: 1}


def test_as_released_one_success_is_enough():
    bank = seeded(faithful=True)
    succeed(bank, B, "q1")
    assert bank.flush(NGRAMS, force=True)
    assert uses(bank) == {A: 1, B: 1}


def test_two_wordings_of_one_intent_support_a_path_together():
    bank = seeded()
    succeed(bank, B, "q1", intent="find remaining amount")
    succeed(bank, B, "q2", intent="find the remaining amount")
    succeed(bank, C, "q3", intent="measure an angle")
    succeed(bank, C, "q4", intent="find remaining amount")
    bank.flush(NGRAMS, force=True)
    assert uses(bank, intent="find remaining amount") == {B: 2}
    assert ("cost", "measure an angle") not in bank.intents()
    assert bank.pending == 2


def test_a_path_that_the_bank_holds_is_used_and_not_pending():
    bank = seeded()
    succeed(bank, A, "q1", "q2", "q2")
    assert uses(bank) == {A: 3}
    assert bank.pending == 0
    assert not bank.flush(NGRAMS, force=True)
    assert bank.generation == 0


def names(count):
    """Distinct names of one word."""
    letters = "abcdefghij"
    return [("X" + letters[n // 100] + letters[n // 10 % 10] + letters[n % 10],) for n in range(count)]


@pytest.mark.parametrize("faithful", [False, True])
def test_pending_routes_are_taken_in_when_there_are_a_hundred(faithful):
    bank = seeded(faithful=faithful)
    paths = names(100)
    for path in paths[:99]:
        succeed(bank, path, "q1")
    succeed(bank, paths[0], "q2")
    assert (bank.due, bank.flush(NGRAMS), bank.generation, len(bank)) == (99, False, 0, 1)
    succeed(bank, paths[99], "q1")
    assert (bank.due, bank.flush(NGRAMS), bank.generation) == (100, True, 1)
    assert (len(bank), bank.pending) == ((101, 0) if faithful else (2, 99))
    # Those that still wait do not start the next flush by themselves, and are counted once more when they are used.
    assert (bank.due, bank.flush(NGRAMS)) == (0, False)
    succeed(bank, paths[5], "q1")
    assert bank.due == (0 if faithful else 1)


class Counting:
    """The n-grams, with a list of the texts that were embedded."""

    name = NGRAMS.name

    def __init__(self):
        self.texts = []

    def embed(self, texts):
        self.texts += texts
        return NGRAMS.embed(texts)


def test_an_intent_is_embedded_once_however_often_the_bank_is_worked_out():
    embedder = Counting()
    bank = seeded(entry("q1"), embedder=embedder)
    for number, intent in enumerate(("find a rate", "measure an angle", "count the rest")):
        succeed(bank, B, f"x{number}", f"y{number}", intent=intent)
        assert bank.flush(embedder, force=True) or bank.recluster(embedder) is None
    bank.merge(bank.rederived(embedder), embedder).rederived(embedder, cap=1)
    assert sorted(embedder.texts) == ["compute total cost", "count the rest", "find a rate", "measure an angle"]


def test_a_flush_clusters_only_categories_with_a_new_intent(monkeypatch):
    clustered = []

    def recorded(intents, *rest):
        clustered.append(sorted(intents))
        return real(intents, *rest)

    real = bank_module.canonical_intents
    bank = seeded(entry("q1"), entry("q2", B, category="rates", intent="find a rate"))
    monkeypatch.setattr(bank_module, "canonical_intents", recorded)
    succeed(bank, C, "x", "y", category="rates", intent="combine rates")
    assert bank.flush(NGRAMS, force=True)
    # The route has entered, so what is in the bank is what is on record.
    assert clustered == [["combine rates", "find a rate"]]
    succeed(bank, ("SumAll",), "x", "y", category="rates", intent="combine rates")
    assert bank.flush(NGRAMS, force=True)
    assert len(clustered) == 1
    assert uses(bank, "rates", "combine rates") == {("SumAll",): 2, C: 2}


def test_an_unfit_path_of_a_right_answer_is_not_counted_unless_as_released():
    unfit = replace(entry("q1", ("CountAnnsPens",)), question="How many pens has Ann?")
    assert not seeded().record(unfit)
    assert seeded(faithful=True).record(unfit)
    assert not seeded().record(replace(entry("q1"), intents=()))


@pytest.mark.parametrize(
    "route", [("", "add", A), ("cost", " ", A), ("cost", "add", ()), ("cost", "add", ("AddUp", " "))]
)
def test_a_route_with_an_empty_part_is_refused_with_its_question(route):
    with pytest.raises(BankError, match=r"question 'q9'.*empty"):
        seeded().record_success(*route, "q9")


def test_spaces_and_case_make_no_other_intent_except_as_released():
    for faithful, count in ((False, 1), (True, 2)):
        bank = seeded(entry("q1", intent="Compute  total\ncost"), entry("q2", B, category="Cost"), faithful=faithful)
        assert len({category for category, _ in bank.intents()}) == count
        assert bank.holds("cost" if not faithful else "Cost", "compute total cost", B)


# Near-duplicates and size.


def test_uses_of_near_duplicates_count_for_the_path_that_stays():
    bank = seeded(entry("q1", ("AddPrices",)), entry("q2", ("PricesAdd",)), entry("q3", ("PricesAdd",)))
    assert uses(bank) == {("PricesAdd",): 3}  # used more, so it stays, though it came second
    succeed(bank, ("AddPrices",), "q4")
    assert uses(bank) == {("PricesAdd",): 4}
    assert bank.pending == 0
    released = seeded(
        entry("q1", ("PricesAdd",)), entry("q2", ("AddPrices",)), entry("q3", ("AddPrices",)), faithful=True
    )
    assert uses(released) == {("PricesAdd",): 3}  # came first, though used less


def test_near_paths_of_different_intents_both_stay():
    bank = seeded(entry("q1", ("AddPrices",)), entry("q2", ("PricesAdd",), intent="measure an angle"))
    assert len(bank) == 2


def test_the_embedder_can_judge_duplicates():
    # No word in common, many letters.
    near = [entry("q1", ("AddingPrices",)), entry("q2", ("AddPrice",))]
    loose = replace(NEAR, duplicate=0.25)
    assert len(seeded(*near, thresholds=loose)) == 2
    assert len(seeded(*near, thresholds=loose, duplicates="embedder")) == 1


def test_a_full_bank_keeps_the_most_used_paths():
    bank = seeded(
        entry("q1", A), entry("q2", A), entry("q3", B), entry("q4", B), entry("q5", B), entry("q6", C), cap=2
    )
    assert uses(bank) == {B: 3, A: 2}
    assert not bank.holds("cost", "compute total cost", C)


def test_among_equally_used_paths_the_one_used_last_stays_and_then_the_alphabet_decides():
    bank = seeded(entry("q1", A), entry("q2", B), entry("q3", C), cap=3)
    succeed(bank, ("TryAll",), "x", "y")
    assert bank.flush(NGRAMS, force=True)
    succeed(bank, B, "q9")
    succeed(bank, ("SkipOne",), "x", "y")
    assert bank.flush(NGRAMS, force=True)
    # Two uses each: SkipOne and B in generation 1, TryAll in generation 0. One use: A before C.
    assert uses(bank) == {B: 2, ("SkipOne",): 2, ("TryAll",): 2}
    assert uses(bank.rederived(NGRAMS, cap=2)) == {B: 2, ("SkipOne",): 2}
    assert uses(bank.rederived(NGRAMS, cap=4)) == {B: 2, ("SkipOne",): 2, ("TryAll",): 2, A: 1}


def test_the_cap_is_on_the_whole_bank_and_an_intent_without_a_path_is_gone():
    bank = seeded(entry("q1", A), entry("q2", A), entry("q3", B, intent="measure an angle"), cap=1)
    assert bank.intents() == [("cost", "compute total cost")]


def test_an_evicted_path_that_is_used_again_comes_back():
    bank = seeded(entry("q1", A), entry("q2", A), entry("q3", B), cap=1)
    succeed(bank, B, "q4", "q5")
    assert uses(bank) == {A: 2}
    succeed(bank, C, "q6")
    bank.flush(NGRAMS, force=True)
    assert uses(bank) == {B: 3}


def test_as_released_nothing_is_evicted():
    bank = seeded(*(entry(f"q{n}", path) for n, path in enumerate(names(200))), faithful=True)
    assert len(bank) == 200
    with pytest.raises(BankError, match="faithful=True with cap=75, support=1"):
        bank.rederived(NGRAMS, cap=75)


@pytest.mark.parametrize(
    "values", [{"cap": 0}, {"flush_at": 0}, {"support": 0}, {"duplicates": "words"}, {"faithful": True}]
)
def test_rules_that_contradict_themselves_are_refused_with_their_values(values):
    with pytest.raises(BankError, match=next(iter(values))):
        BankRules("hashed-ngrams-1", **values)


def test_the_entropy_is_that_of_the_uses():
    bank = seeded(entry("q1", A), entry("q2", B), entry("q3", C), entry("q4", ("AskAll",)))
    assert bank.entropy() == 2.0
    succeed(bank, A, *(f"x{n}" for n in range(4)))
    shares = [5 / 8, 1 / 8, 1 / 8, 1 / 8]
    assert bank.entropy() == pytest.approx(-sum(share * math.log2(share) for share in shares))
    assert bank.summary()["entropy_bits"] == round(bank.entropy(), 4)


def test_the_last_use_of_a_path_is_known_at_once_and_after_a_flush():
    bank = seeded(entry("q1", A), entry("q2", B))
    succeed(bank, C, "x", "y")
    bank.flush(NGRAMS, force=True)
    succeed(bank, B, "z")
    expected = {A: 0, B: 1, C: 0}
    assert {path.names: path.last for path in bank.paths("cost", "compute total cost")} == expected
    bank.recluster(NGRAMS)
    assert {path.names: path.last for path in bank.paths("cost", "compute total cost")} == expected


def test_uses_under_the_canonical_name_outlast_a_flush():
    bank = seeded(entry("q1", A, intent="compute the full cost of it"))
    assert bank.intents() == [("cost", "compute the full cost")]
    succeed(bank, A, "q2", intent="compute the full cost")
    bank.recluster(NGRAMS)
    assert uses(bank, intent="compute the full cost") == {A: 2}


def test_a_bank_can_be_read_by_a_person():
    bank = seeded(entry("q1", A), entry("q2", A), entry("q3", B, intent="measure an angle"))
    assert str(bank).splitlines() == [
        "2 paths, 2 intents, 0 pending, 0.92 bits",
        "cost / compute total cost",
        "      2  AddPrices > ApplyTax",
        "cost / measure an angle",
        "      1  FindRate",
    ]
    assert bank.summary()["paths"] == 2
    json.dumps(bank.summary())


# Any history: what the order does not change, merges, files.

routes = st.tuples(
    st.sampled_from(["cost", "rates"]),
    st.sampled_from(["find the cost", "find cost", "find a rate of all of it", "angle"]),
    st.sampled_from([A, B, C, ("PricesAdd", "TaxApply"), ("AddPrices", "ApplyTax", "SumAll")]),
    st.sampled_from([f"q{n}" for n in range(5)]),
)
histories = st.lists(st.lists(routes, max_size=8), min_size=1, max_size=3)
rules = st.sampled_from(
    [
        BankRules("hashed-ngrams-1", NEAR, cap=None),
        BankRules("hashed-ngrams-1", NEAR, cap=3),
        BankRules("hashed-ngrams-1", NEAR, support=1, duplicates="embedder"),
    ]
)


def lived(made_by, history):
    """A bank after some rounds of successes, each round ended by a flush; what comes last is not flushed."""
    bank = PathBank(made_by)
    for place, successes in enumerate(history):
        if place:
            bank.flush(NGRAMS, force=True)
        for category, intent, path, question in successes:
            bank.record_success(category, intent, path, question)
    return bank


@settings(max_examples=50, deadline=None)
@given(rules, histories, st.integers(0, 1000))
def test_the_order_of_successes_between_two_flushes_makes_no_difference(made_by, history, seed):
    draw = random.Random(seed)
    shuffled = [draw.sample(successes, len(successes)) for successes in history]
    one, other = lived(made_by, history), lived(made_by, shuffled)
    assert one.to_json() == other.to_json()
    assert one.flush(NGRAMS, force=True) == other.flush(NGRAMS, force=True)
    assert one.to_json() == other.to_json()


@settings(max_examples=50, deadline=None)
@given(rules, histories, histories)
@pytest.mark.slow
def test_what_waits_and_what_is_due_is_what_the_record_says(made_by, history, other):
    bank = lived(made_by, history)
    banks = [bank, bank.merge(lived(made_by, other), NGRAMS), bank.rederived(NGRAMS, cap=1)]
    bank.record_success("cost", "angle", C, "q0")
    for each in banks:
        lines = [line for line in each.to_json()["record"] if not line["entered"]]
        assert each.pending == len(lines)
        assert each.due == sum(line["last"] == each.generation for line in lines)


@settings(max_examples=50, deadline=None)
@given(rules, histories)
def test_a_bank_is_what_its_record_says(made_by, history):
    bank = lived(made_by, history)
    bank.flush(NGRAMS, force=True)
    content = bank.to_json()
    entered = [line for line in content["record"] if line["entered"]]
    for category, intent in bank.intents():
        assert 1 <= len(intent.split()) <= 4
        for path in bank.paths(category, intent):
            assert path.uses >= made_by.support
            assert bank.holds(category, intent, path.names)
    if made_by.cap is None:
        questions = {(line["category"], question) for line in entered for question in line["questions"]}
        assert all(bank.holds(line["category"], line["intent"], line["path"]) for line in entered)
        assert sum(len(line["questions"]) for line in entered) >= bank.summary()["uses"] >= len(questions)
    else:
        assert len(bank) <= made_by.cap
    again = copy.deepcopy(bank)
    again.recluster(NGRAMS)
    assert again.to_json() == content


@settings(max_examples=50, deadline=None)
@given(rules, histories, histories, histories)
@pytest.mark.slow
def test_merging_is_commutative_associative_and_idempotent(made_by, first, second, third):
    a, b, c = (lived(made_by, history) for history in (first, second, third))
    before = a.to_json(), b.to_json()
    ab = a.merge(b, NGRAMS)
    assert ab.to_json() == b.merge(a, NGRAMS).to_json()
    assert ab.merge(c, NGRAMS).to_json() == a.merge(b.merge(c, NGRAMS), NGRAMS).to_json()
    assert ab.merge(b, NGRAMS).to_json() == ab.to_json()
    aa = a.merge(a, NGRAMS)
    a.recluster(NGRAMS)
    assert aa.to_json() == a.to_json()
    assert (before[0]["record"], before[1]) == (a.to_json()["record"], b.to_json())


@settings(max_examples=30, deadline=None)
@given(rules, histories, histories)
def test_merged_banks_know_all_uses_and_all_that_was_pending(made_by, first, second):
    a, b = lived(made_by, first), lived(made_by, second)
    merged = a.merge(b, NGRAMS)
    known = {}
    for bank in (a, b):
        for line in bank.to_json()["record"]:
            key = (line["category"], line["intent"], tuple(line["path"]))
            questions, entered = known.get(key, (set(), False))
            known[key] = (questions | set(line["questions"]), entered or line["entered"])
    found = {
        (line["category"], line["intent"], tuple(line["path"])): (set(line["questions"]), line["entered"])
        for line in merged.to_json()["record"]
    }
    assert found == known


def test_merged_banks_of_the_released_kind_are_the_same_either_way():
    a = seeded(entry("q1", ("AddPrices",)), entry("q2", B), faithful=True)
    b = seeded(entry("q3", C), entry("q4", ("PricesAdd",)), faithful=True)
    assert a.merge(b, NGRAMS).to_json() == b.merge(a, NGRAMS).to_json()
    assert uses(a.merge(b, NGRAMS)) == {("AddPrices",): 2, B: 1, C: 1}  # place 0 against place 1


def test_of_paths_that_two_released_banks_have_in_another_order_the_earlier_place_counts():
    near = entry("q1", ("AddPrices",)), entry("q2", ("PricesAdd",), intent="measure an angle")
    a, b = (seeded(*order, faithful=True) for order in (near, near[::-1]))
    for one, other in ((a, b), (b, a)):
        assert [line["first"] for line in one.merge(other, NGRAMS).to_json()["record"]] == [0, 0]


def test_a_merged_bank_is_no_part_of_those_it_was_made_of():
    a, b = seeded(), seeded(entry("s2", B))
    before = a.to_json(), b.to_json()
    merged = a.merge(b, NGRAMS)
    for path in (A, B):
        succeed(merged, path, "q1", "q2")
    assert (a.to_json(), b.to_json()) == before


def test_support_from_two_banks_counts_together_after_a_flush():
    a, b = seeded(), seeded()
    succeed(a, B, "q1")
    succeed(b, B, "q2")
    merged = a.merge(b, NGRAMS)
    assert (uses(merged), merged.pending) == ({A: 1}, 1)
    assert merged.flush(NGRAMS, force=True)
    assert uses(merged) == {B: 2, A: 1}


def test_banks_of_different_rules_are_not_merged_and_the_fields_are_named():
    with pytest.raises(BankError, match=r"cap \(75 and 50\), support \(2 and 1\)\. Bring one") as caught:
        seeded().merge(seeded(cap=50, support=1), NGRAMS)
    assert "thresholds" not in str(caught.value)
    with pytest.raises(BankError, match="thresholds"):
        seeded().merge(seeded(thresholds=Thresholds()), NGRAMS)


# Other embedders.


def test_another_embedder_is_refused_wherever_it_could_be_taken(tmp_path):
    bank = seeded()
    bank.to_file(tmp_path / "bank.json")
    succeed(bank, B, "q1", "q2")
    for attempt in (
        lambda: bank.flush(Other(), force=True),
        lambda: bank.recluster(Other()),
        lambda: bank.merge(seeded(), Other()),
        lambda: PathBank.from_file(tmp_path / "bank.json", Other()),
    ):
        with pytest.raises(BankError, match=r"'hashed-ngrams-1'.*'other'.*rederived"):
            attempt()
    with pytest.raises(BankError, match=r"bank\.json: the bank was made with"):
        PathBank.from_file(tmp_path / "bank.json", Other())
    assert PathBank.from_file(tmp_path / "bank.json", NGRAMS).rules.embedder == "hashed-ngrams-1"


def test_a_bank_moves_to_another_embedder_with_its_thresholds_only():
    bank = seeded(entry("q1", intent="compute the cost"), entry("q2", B, intent="compute cost"))
    with pytest.raises(BankError, match=r"no thresholds are known for the embedder 'other'.*calibrate"):
        bank.rederived(Other())
    moved = bank.rederived(Other(), thresholds=Thresholds(eps=0.3))
    assert (moved.rules.embedder, moved.rules.thresholds.eps) == ("other", 0.3)
    assert uses(moved, intent="compute cost") == {A: 1, B: 1}
    assert bank.rules.embedder == "hashed-ngrams-1"


def test_a_bank_of_other_rules_than_requested_is_refused_with_the_fields_and_the_way_out(tmp_path):
    path = tmp_path / "bank.json"
    seeded(cap=50).to_file(path)
    message = r"bank\.json: .*cap \(50, expected 75\), route \(0\.1, expected 0\.3\)\. Leave.*PathBank\.rederived"
    with pytest.raises(BankError, match=message):
        PathBank.from_file(path, NGRAMS, cap=75, support=2, route=0.3, faithful=False)
    with pytest.raises(BankError, match=r"faithful \(False, expected True\)"):
        PathBank.from_file(path, faithful=True)
    assert PathBank.from_file(path, NGRAMS, cap=50, route=0.1).rules.cap == 50
    with pytest.raises(TypeError, match="size: unknown rule of a bank; expected some of cap, "):
        PathBank.from_file(path, size=50)


# Files.


@settings(max_examples=40, deadline=None)
@given(made_by=rules, history=histories, later=histories)
@pytest.mark.slow
def test_a_bank_read_from_its_file_is_the_same_and_lives_on_alike(tmp_path_factory, made_by, history, later):
    path = tmp_path_factory.mktemp("banks") / "bank.json"
    bank = lived(made_by, history)
    bank.to_file(path)
    found = PathBank.from_file(path, NGRAMS)
    assert found.to_json() == bank.to_json()
    found.to_file(path.with_name("again.json"))
    assert path.with_name("again.json").read_bytes() == path.read_bytes()
    for each in (bank, found):
        for route in later[0]:
            each.record_success(*route)
        each.flush(NGRAMS, force=True)
    assert found.to_json() == bank.to_json()


def test_a_bank_of_the_released_kind_keeps_the_order_of_its_paths_in_its_file(tmp_path):
    bank = seeded(entry("q1", ("PricesAdd",)), entry("q2", B), faithful=True)
    bank.to_file(tmp_path / "bank.json")
    found = PathBank.from_file(tmp_path / "bank.json")
    for each in (bank, found):
        succeed(each, ("AddPrices",), "q3", "q4")
        each.flush(NGRAMS, force=True)
        assert uses(each) == {("PricesAdd",): 3, B: 1}
    assert found.to_json() == bank.to_json()


def test_a_file_can_be_read_by_a_person_and_holds_any_script(tmp_path):
    bank = seeded(entry("q1", A), entry("q\n2", A))
    succeed(bank, ("求和",), "问题 1", "\ud800", category="算术", intent="Σ “all”")
    bank.to_file(tmp_path / "deep" / "bank.json")
    text = (tmp_path / "deep" / "bank.json").read_text(encoding="utf-8")
    assert '"compute total cost": [' in text
    assert len(text.splitlines()) > 40
    assert "问题 1" in text
    assert PathBank.from_file(tmp_path / "deep" / "bank.json").to_json() == bank.to_json()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bank.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "bank.json"
    seeded().to_file(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        seeded(entry("q1", B)).to_file(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["bank.json"]


def broken(change):
    content = seeded(entry("q1"), entry("q2", B)).to_json()
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"format": "rlkd path', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a path bank"),
        (b'{"format": "another"}', "not a path bank"),
        (broken(lambda it: it.update(version=2)), "version 2, this program reads version 1"),
        (broken(lambda it: it.pop("version")), "version None"),
        (broken(lambda it: it.pop("record")), "KeyError: 'record'"),
        (broken(lambda it: it["rules"].pop("embedder")), "embedder"),
        (broken(lambda it: it["rules"].update(capacity=3)), "capacity"),
        (broken(lambda it: it["rules"].update(cap=0)), "cap=0"),
        (broken(lambda it: it["rules"]["thresholds"].update(eps=9)), "eps"),
        (broken(lambda it: it.update(generation=-1)), "generation is -1"),
        (broken(lambda it: it["record"][1].update(questions=[])), r"record 2, 'questions' is \[\]"),
        (broken(lambda it: it["record"][0].update(questions="q1")), "record 1, 'questions' is 'q1'"),
        (broken(lambda it: it["record"][0].update(path=["AddUp", 3])), "record 1, 'path'"),
        (broken(lambda it: it["record"][0].update(category=None)), "record 1, 'category' is None"),
        (broken(lambda it: it["record"][0].update(entered=1)), "record 1, 'entered' is 1"),
        (broken(lambda it: it["record"][0].update(last=True)), "record 1, 'last' is True"),
        (broken(lambda it: it["record"][0].pop("last")), "KeyError: 'last'"),
        (broken(lambda it: it["record"].append(it["record"][0])), "record 3 is there twice"),
        (broken(lambda it: it["record"].pop(0)), "has no line in the record"),
        (broken(lambda it: it["record"][0].update(entered=False)), "has no line in the record"),
        (broken(lambda it: it["bank"].update(cost=[])), "does not have the form"),
        (broken(lambda it: it["intents"]["cost"].update({"compute total cost": 7})), "canonical intent of"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_the_place(tmp_path, content, message):
    path = tmp_path / "my bank.json"
    path.write_bytes(content)
    with pytest.raises(BankError, match=rf"path bank .*my bank\.json.*{message}"):
        PathBank.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BankError, match=r"none\.json: No such file"):
        PathBank.from_file(tmp_path / "none.json")
