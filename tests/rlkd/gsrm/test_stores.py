import multiprocessing
import pickle
import sqlite3
import threading

import pytest

from rlkd.gsrm import StructureStore, Trace, VerdictStore
from rlkd.gsrm.stores import verdict_key
from rlkd.structure import Step, Structure

QUESTION = [{"role": "user", "content": "Are these the same?"}]


def _write(path, start):
    store = VerdictStore(path)
    for place in range(start, start + 50):
        store.put({f"key {place}": float(place)})


@pytest.fixture
def store(tmp_path):
    return VerdictStore(tmp_path / "deep" / "verdicts.sqlite")


def test_a_store_gives_back_what_it_was_given_and_nothing_else(store):
    store.put({"a": 1.5, "b": -0.25})
    assert store.get(["a", "c", "b"]) == {"a": 1.5, "b": -0.25}
    assert store.get([]) == {}


def test_infinite_log_odds_are_kept(store):
    store.put({"yes": float("inf"), "no": float("-inf")})
    assert store.get(["yes", "no"]) == {"yes": float("inf"), "no": float("-inf")}


def test_the_first_answer_stays(store):
    store.put({"a": 1.0})
    store.put({"a": 2.0, "b": 3.0})
    assert store.get(["a", "b"]) == {"a": 1.0, "b": 3.0}


def test_log_odds_that_are_no_number_are_refused(store):
    with pytest.raises(ValueError, match="nan"):
        store.put({"a": float("nan")})


def test_a_file_of_an_earlier_version_is_taken_over_and_keeps_what_it_had(store):
    store.path.parent.mkdir()
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, log_odds REAL NOT NULL)")
        connection.execute("INSERT INTO verdicts VALUES ('old', 0.5)")
    store.put({"new": 1.0})
    assert store.get(["old", "new"]) == {"new": 1.0}
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT * FROM verdicts").fetchall() == [("old", 0.5)]


def test_structures_and_verdicts_may_share_a_file(store):
    trace, structure = Trace("?", "a", teacher=True), Structure([Step("one")])
    structures = StructureStore(store.path)
    structures.put("model", {trace: structure})
    key = verdict_key("model", QUESTION)
    store.put({key: -1.0})
    assert structures.get("model", {trace}) == {trace: structure}
    assert store.get([key]) == {key: -1.0}


def test_a_store_outlives_its_object_and_pickles_as_its_path(store):
    store.put({"a": 1.0})
    assert VerdictStore(store.path).get(["a"]) == {"a": 1.0}
    assert pickle.loads(pickle.dumps(store)).get(["a"]) == {"a": 1.0}


def test_threads_share_a_store(store):
    threads = [threading.Thread(target=store.put, args=({f"key {place}": float(place)},)) for place in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(store.get([f"key {place}" for place in range(20)])) == 20


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_share_a_file(store, method):
    store.put({"parent": 1.0})
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_write, args=(store.path, start)) for start in (0, 50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(store.get([f"key {place}" for place in range(100)])) == 100


def test_a_forked_process_opens_a_connection_of_its_own(store):
    store.put({"parent": 1.0})
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=store.put, args=({"child": 2.0},))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert store.get(["parent", "child"]) == {"parent": 1.0, "child": 2.0}


def test_the_key_names_the_model_and_the_whole_question():
    reworded = [{"role": "user", "content": "Are these two the same?"}]
    keys = {verdict_key("one", QUESTION), verdict_key("other", QUESTION), verdict_key("one", reworded)}
    assert len(keys) == 3
    assert verdict_key("one", list(QUESTION)) in keys
