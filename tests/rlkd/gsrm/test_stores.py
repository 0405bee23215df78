import pickle
import sqlite3
import threading

import pytest

from rlkd.gsrm import ReasoningTrace, StructureStore, VerdictStore
from rlkd.structure import Step, Structure

A, B, C = (("meta", text, "other") for text in "abc")


@pytest.fixture
def store(tmp_path):
    return VerdictStore(tmp_path / "deep" / "verdicts.sqlite")


def test_a_store_returns_what_was_put_and_nothing_else(store):
    store.put("model", {A: 1.5, B: -0.25})
    assert store.get("model", [A, C, B]) == {A: 1.5, B: -0.25}
    assert store.get("model", []) == {}


def test_infinite_log_odds_are_stored(store):
    store.put("model", {A: float("inf"), B: float("-inf")})
    assert store.get("model", [A, B]) == {A: float("inf"), B: float("-inf")}


def test_the_first_answer_stays(store):
    store.put("model", {A: 1.0})
    store.put("model", {A: 2.0, B: 3.0})
    assert store.get("model", [A, B]) == {A: 1.0, B: 3.0}


def test_log_odds_that_are_no_number_are_refused(store):
    with pytest.raises(ValueError, match="nan"):
        store.put("model", {A: float("nan")})


def test_a_file_of_another_program_keeps_its_tables(store):
    store.cache.path.parent.mkdir()
    with sqlite3.connect(store.cache.path) as connection:
        connection.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, log_odds REAL NOT NULL)")
        connection.execute("INSERT INTO verdicts VALUES ('old', 0.5)")
    store.put("model", {A: 1.0})
    assert store.get("model", [A]) == {A: 1.0}
    with sqlite3.connect(store.cache.path) as connection:
        assert connection.execute("SELECT * FROM verdicts").fetchall() == [("old", 0.5)]


def test_structures_and_verdicts_may_share_a_file(store):
    trace, structure = ReasoningTrace("?", "a", teacher=True), Structure([Step("one")])
    structures = StructureStore(store.cache.path)
    structures.put("model", {trace: structure})
    store.put("model", {A: -1.0})
    assert structures.get("model", {trace}) == {trace: structure}
    assert store.get("model", [A]) == {A: -1.0}


def test_a_store_outlives_its_object_and_pickles_as_its_path(store):
    store.put("model", {A: 1.0})
    assert VerdictStore(store.cache.path).get("model", [A]) == {A: 1.0}
    assert pickle.loads(pickle.dumps(store)).get("model", [A]) == {A: 1.0}


def test_threads_share_a_store(store):
    questions = [("meta", str(number), "other") for number in range(20)]
    threads = [threading.Thread(target=store.put, args=("model", {question: 1.0})) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store.get("model", questions)) == 20


def test_the_key_holds_the_model_the_field_and_both_texts(store):
    store.put("model", {A: 1.0})
    assert store.get("other", [A]) == {}
    assert store.get("model", [B, ("question", *A[1:]), (*A[:2], "another")]) == {}
