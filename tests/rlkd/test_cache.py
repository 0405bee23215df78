import copy
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlkd.cache
from rlkd.cache import SMALLEST_CAP, Cache, cache_key

LIMIT = 120
"""Seconds after which a test counts as hanging."""


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "cache.sqlite")


def used_bytes(path):
    with closing(sqlite3.connect(path)) as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


def python(script, *arguments, **options):
    """A Python process that runs `script`."""
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], **options)


# Keys

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def typed(value):
    """A value in a form that distinguishes 1, 1.0, True and "1", and 0.0 from -0.0."""
    if isinstance(value, dict):
        return "dict", frozenset((key, typed(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(map(typed, value))
    return type(value).__name__, repr(value)


@settings(max_examples=150)
@given(st.lists(JSON, max_size=3), st.lists(JSON, max_size=3))
def test_keys_are_equal_if_and_only_if_the_parts_are(one, other):
    assert (cache_key(*one) == cache_key(*other)) == (typed(one) == typed(other))


LOOK_ALIKES = [
    (1,), (1.0,), (True,), ("1",), ("1.0",), ("true",), (0,), (0.0,), (-0.0,), (False,), (None,), ("null",), ("",), (),
    ([],), ({},), ("a", "b"), (["a", "b"],), ("ab",), ("a,b",), ('a","b',), (["a"], "b"), ({"a": "b"},), ({"b": "a"},),
    (10**22,), (1e22,), ("é",), ("e\u0301",), ("\U0001f600",), ("\ud83d\ude00",), ("\\ud83d\\ude00",),
]  # fmt: skip


def test_similar_parts_have_different_keys():
    assert len({cache_key(*parts) for parts in LOOK_ALIKES}) == len(LOOK_ALIKES)


def test_a_tuple_is_a_list_and_dicts_have_no_order():
    assert cache_key(("a", ["b"])) == cache_key(["a", ("b",)])
    assert cache_key({"a": 1, "b": {"c": 2, "d": 3}}) == cache_key({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_key_is_the_same_in_every_process():
    parts = ("accuracy", 1, {"b": [None, True], "a": 0.1}, "naïve")
    script = "import sys; from rlkd.cache import cache_key; print(cache_key(*eval(sys.argv[1])))"
    with python(script, repr(parts), stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=LIMIT)[0].strip() == cache_key(*parts)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Path("x"), "PosixPath"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (object(), "object"),
        ([{"deep": [1j]}], "complex"),
        ({1: "a"}, "key 1 of type int"),
        ({"a": {None: 1}}, "key None of type NoneType"),
    ],
)
def test_a_part_that_json_cannot_express_is_refused_with_its_type(part, named):
    with pytest.raises(TypeError, match=named):
        cache_key("name", part)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_nan_and_inf_are_refused_in_keys_and_values(cache, number):
    with pytest.raises(ValueError, match=f"cache key has {number}"):
        cache_key({"a": [float(number)]})
    with pytest.raises(ValueError, match=f"'bad' has {number}"):
        cache.put({"good": 1.0, "bad": [float(number)]})
    assert cache.get(["good", "bad"]) == {}


# Entries


@settings(max_examples=30)
@given(st.dictionaries(st.text().map(cache_key), JSON, max_size=5))
def test_values_come_back_unchanged(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("cache") / "cache.sqlite"
    Cache(path).put(values)
    found = Cache(path).get(list(values))
    assert {key: typed(value) for key, value in found.items()} == {key: typed(value) for key, value in values.items()}


def test_texts_with_broken_surrogates_and_tuples_come_back(cache):
    cache.put({"broken": "\ud83d\ude00", "whole": "\U0001f600", "nothing": None, "tuple": (1, 2)})
    found = cache.get(["broken", "whole", "nothing", "tuple"])
    assert found == {"broken": "\ud83d\ude00", "whole": "\U0001f600", "nothing": None, "tuple": [1, 2]}


def test_unknown_keys_are_missing_and_empty_calls_touch_no_file(cache):
    cache.put({})
    assert not cache.path.exists()
    cache.put({"a": 1.5})
    assert cache.get(["a", "b", "a"]) == {"a": 1.5}
    assert cache.get([]) == {}


def test_the_first_value_stays(cache):
    cache.put({"a": 1})
    cache.put({"a": 2, "b": 3})
    assert cache.get(["a", "b"]) == {"a": 1, "b": 3}
    assert len(cache) == 2


def test_many_keys_are_one_query(cache):
    stored = {f"key {i}": i / 7 for i in range(5000)}
    cache.put(stored)
    statements = []
    cache._connected().set_trace_callback(statements.append)
    assert cache.get(list(stored)) == stored
    assert len(statements) == 1


def test_a_value_that_json_cannot_express_is_refused_with_its_batch(cache):
    with pytest.raises(TypeError, match=r"'bad' has a builtins\.set"):
        cache.put({"good": 1, "bad": {"a": {1}}})
    with pytest.raises(TypeError, match="key 1 of type int"):
        cache.put({"good": 1, "bad": {1: "would come back under '1'"}})
    assert len(cache) == 0


def test_a_cache_pickles_as_its_arguments(tmp_path):
    cache = Cache(tmp_path / "cache.sqlite", max_bytes=10**6)
    cache.put({"a": 1})
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert (other.path, other.max_bytes) == (cache.path, 10**6)
        assert other.get(["a"]) == {"a": 1}


def test_importing_the_cache_imports_no_other_module_of_the_project_and_nothing_heavy():
    script = (
        "import sys; before = set(sys.modules); import rlkd.cache\n"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('rlkd.')))"
    )
    with python(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=LIMIT)[0].splitlines() == ["['rlkd']", "['rlkd.cache']"]


# The bound on the size


def filled(path, batches, *, max_bytes, size=100):
    """A cache filled with batches of ten entries; its keys in order; the bytes used after each batch."""
    cache, keys, used = Cache(path, max_bytes=max_bytes), [], []
    for batch in range(batches):
        values = {cache_key(batch, i): "x" * size for i in range(10)}
        cache.put(values)
        keys += values
        used.append(used_bytes(path))
    return cache, keys, used


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 100, 5000])
def test_beyond_the_bound_the_oldest_entries_are_dropped(tmp_path, size):
    cap = 200_000
    cache, keys, used = filled(tmp_path / "c.sqlite", 3 * cap // (10 * (size + 150)), max_bytes=cap, size=size)
    assert max(used) <= cap
    found = cache.get(keys)
    assert list(found) != keys  # some are dropped
    assert set(found) == set(keys[len(keys) - len(found) :])
    assert len(found) * (size + 64) > cap / 3  # but no more than necessary
    assert all(after <= 0.9 * cap for before, after in pairwise(used) if after < before)
    one_put = 10 * (size + 150) + 3 * 4096
    assert cache.path.stat().st_size <= cap + one_put


def test_putting_an_entry_again_does_not_renew_it(tmp_path):
    cache = Cache(tmp_path / "c.sqlite", max_bytes=SMALLEST_CAP)
    cache.put({"old": 0})
    place = 0
    while cache.get(["old"]):
        cache.put({"old": 0}) if place % 2 else None
        cache.put({f"key {place}": "x" * 1000})
        place += 1
        assert place < 100
    assert cache.get([f"key {place - 1}"])


def test_of_a_batch_larger_than_the_bound_the_end_stays(tmp_path):
    cache = Cache(tmp_path / "c.sqlite", max_bytes=SMALLEST_CAP)
    keys = [f"key {place}" for place in range(1000)]
    cache.put(dict.fromkeys(keys, "x" * 1000))
    found = cache.get(keys)
    assert 0 < len(found) < 64
    assert set(found) == set(keys[-len(found) :])


def test_without_a_bound_nothing_is_dropped(tmp_path):
    cache, keys, _ = filled(tmp_path / "c.sqlite", 20, max_bytes=None)
    assert len(cache) == len(keys) == 200


def test_a_bound_that_would_store_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"max_bytes=1024 of cache .*: expected at least 65536 bytes"):
        Cache(tmp_path / "c.sqlite", max_bytes=1024)


# Threads and processes


def test_threads_share_a_cache(cache):
    problems = []

    def work(place):
        for batch in range(10):
            values = {f"{place} {batch} {entry}": place for entry in range(5)} | {f"shared {batch}": batch}
            cache.put(values)
            if cache.get(list(values)) != values:
                problems.append((place, batch))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not problems
    assert len(cache) == 8 * 10 * 5 + 10


def test_a_writer_waits_for_another_instead_of_failing(cache, caplog):
    cache.put({"a": 1})
    with closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        writer = threading.Thread(target=cache.put, args=({"b": 2},))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        other.execute("COMMIT")
        writer.join(LIMIT)
    assert cache.get(["a", "b"]) == {"a": 1, "b": 2}
    assert not caplog.records


OPENER = """
import logging, os, sys, time
from pathlib import Path
from rlkd.cache import Cache
logging.getLogger("rlkd.cache").addFilter(lambda record: os._exit(3))
print("ready", flush=True)
sys.stdin.readline()
Cache(Path(sys.argv[1])).put({sys.argv[2]: 1})
"""


def test_processes_that_create_the_file_at_the_same_moment_all_succeed(cache):
    workers = [python(OPENER, cache.path, n, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for n in range(4)]
    for worker in workers:
        assert worker.stdout.readline() == b"ready\n"
    for worker in workers:
        worker.stdin.write(b"\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=LIMIT)
    assert [worker.returncode for worker in workers] == [0] * 4
    assert cache.get([str(n) for n in range(4)]) == {str(n): 1 for n in range(4)}


def _child_of_a_fork(cache, number):
    cache.put({f"child {number}": number})
    known = cache.get(["parent", f"child {number}"]) == {"parent": 0, f"child {number}": number}
    # With a lock inherited from a writing thread, it would wait for a minute and give up.
    os._exit(0 if known else 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_while_another_thread_writes_works_on_its_own(cache):
    cache.put({"parent": 0})
    stop = threading.Event()

    def write():
        place = 0
        while not stop.is_set():
            cache.put({f"{place} {entry}": "x" * 200 for entry in range(50)})
            place += 1
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        context = multiprocessing.get_context("fork")
        for number in range(8):
            child = context.Process(target=_child_of_a_fork, args=(cache, number))
            child.start()
            child.join(LIMIT)
            assert child.exitcode == 0
    finally:
        stop.set()
        writer.join(LIMIT)
    assert len(cache.get([f"child {number}" for number in range(8)])) == 8
    with closing(sqlite3.connect(cache.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Unusable files


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def not_a_database(path):
    path.write_bytes(bytes(range(256)) * 64)


def folder_is_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("not a folder")


def path_is_a_folder(path):
    path.mkdir()


def damaged_pages(path):
    filled(path, 10, max_bytes=None, size=1000)
    image = path.read_bytes()
    path.write_bytes(image[:4096] + b"\xff" * (len(image) - 4096))


def other_table(path):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE entries (id INTEGER)")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (not_a_database, "file is not a database"),
        (folder_is_a_file, "File exists"),
        (path_is_a_folder, "unable to open database file"),
        (damaged_pages, "malformed"),
        (other_table, "table entries has 1 columns"),
    ],
)
def test_an_unusable_file_costs_one_warning(cache, caplog, spoil, reason):
    cache.path.parent.mkdir()
    spoil(cache.path)
    for _ in range(3):
        cache.put({"a": 1})
        assert cache.get(["a"]) == {}
    [message] = warnings_of(caplog)
    assert str(cache.path) in message
    assert reason in message
    assert "delete the file" in message


def test_a_cache_works_again_once_its_unusable_file_is_deleted(cache, caplog):
    cache.path.parent.mkdir()
    not_a_database(cache.path)
    cache.put({"a": 1})
    cache.path.unlink()
    cache.put({"a": 1})
    assert cache.get(["a"]) == {"a": 1}
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("value", ["'[1'", "x'ff00'", "7"])
def test_a_foreign_value_is_not_a_hit(cache, caplog, value):
    cache.put({"a": 1})
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute(f"INSERT INTO entries VALUES ('foreign', {value})")
    assert cache.get(["foreign"]) == {}
    assert "not JSON" in warnings_of(caplog)[0]
    assert cache.get(["a"]) == {"a": 1}


def test_a_file_that_stays_locked_costs_one_long_wait(cache, caplog, monkeypatch):
    monkeypatch.setattr(rlkd.cache, "_PATIENCE", 0.2)
    monkeypatch.setattr(rlkd.cache, "_PATIENCE_AFTER_FAILURE", 0.0)
    cache.path.parent.mkdir()
    with closing(sqlite3.connect(cache.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        cache.put({"a": 1})
        cache.put({"b": 2})
    [message] = warnings_of(caplog)
    assert "database is locked" in message
    cache.put({"c": 3})
    assert cache.get(["a", "b", "c"]) == {"c": 3}


FULL_DISK = """
import resource, sys
from pathlib import Path
from rlkd.cache import Cache
cache = Cache(Path(sys.argv[1]))
cache.put({"before": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for place in range(5):
    cache.put({f"{place} {entry}": "x" * 1000 for entry in range(200)})
assert cache.get(["before", "0 0"]) == {"before": 1}
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
cache.put({"after": 2})
assert cache.get(["before", "after", "0 0"]) == {"before": 1, "after": 2}
"""


def test_a_full_disk_costs_one_warning_and_no_earlier_entry(cache):
    with python(FULL_DISK, cache.path, stderr=subprocess.PIPE, text=True) as process:
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert said.count("The run goes on") == 1, said
    assert cache.get(["before", "after"]) == {"before": 1, "after": 2}


def test_ctrl_c_passes_and_rolls_back_the_transaction(tmp_path, monkeypatch, caplog):
    cache = Cache(tmp_path / "c.sqlite", max_bytes=SMALLEST_CAP)
    cache.put({"a": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rlkd.cache, "_used_bytes", interrupted)  # after the entries, before the commit
    with pytest.raises(KeyboardInterrupt):
        cache.put({"b": 2})
    monkeypatch.undo()
    Cache(cache.path).put({"c": 3})  # no lock is left
    assert cache.get(["a", "b", "c"]) == {"a": 1, "c": 3}
    assert not caplog.records


# Killed writers

WRITER = """
import logging, os, sys, time
from pathlib import Path
from rlkd.cache import Cache, cache_key

def value(label):
    return {"of": label, "score": int(cache_key(label)[:8], 16) / 7, "text": cache_key(label) * 8}

def labels(name, batch):
    # Some are this writer's own; all writers put the shared ones.
    return [f"{name}/{batch}/{n}" for n in range(30)] + [f"shared/{batch % 40}/{n}" for n in range(10)]

if __name__ == "__main__":
    path, log, name, stop, pause = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), float(sys.argv[5])
    # The cache only warns if it cannot store an entry; here that would be a loss.
    logging.getLogger("rlkd.cache").addFilter(lambda record: (os.write(2, record.getMessage().encode()), os._exit(3)))
    cache, marks = Cache(path), os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    batch = 0
    while not stop.exists():
        values = {cache_key(label): value(label) for label in labels(name, batch)}
        os.write(marks, f"begin {batch}\\n".encode())
        cache.put(values)
        os.write(marks, f"done {batch}\\n".encode())
        assert cache.get(list(values)) == values, batch
        batch += 1
        time.sleep(pause)
"""


def _marks(log):
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    begun, done = ({int(line.split()[1]) for line in lines if line.startswith(word)} for word in ("begin", "done"))
    return begun, done


@pytest.mark.slow
def test_killed_writers_cost_the_others_nothing(tmp_path):
    kills, seed = 20, random.Random(0)
    path, stop = tmp_path / "cache.sqlite", tmp_path / "stop"
    logs = {}

    def writer(name, pause):
        logs[name] = tmp_path / f"{name}.log"
        return python(WRITER, path, logs[name], name, stop, pause, stderr=subprocess.PIPE)

    steady = [writer(name, 0.005) for name in ("first", "second")]
    for kill in range(kills):
        process = writer(f"victim {kill}", 0)
        give_up = time.monotonic() + LIMIT
        while not _marks(logs[f"victim {kill}"])[1]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.002)
        time.sleep(seed.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LIMIT)
        assert process.returncode == -signal.SIGKILL
    stop.touch()
    for process in steady:
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said

    marks = {name: _marks(log) for name, log in logs.items()}
    amid = [name for name, (begun, done) in marks.items() if begun - done]
    assert len(amid) >= kills // 5, f"only {len(amid)} of {kills} kills hit a batch that was being written"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        kept = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM entries")}

    made = {"__name__": "definitions"}
    exec(WRITER, made)
    for key, value in kept.items():
        assert key == cache_key(value["of"])
        assert value == made["value"](value["of"])
    for name, (begun, done) in marks.items():
        for batch in begun:
            own = [cache_key(label) in kept for label in made["labels"](name, batch) if label.startswith(name)]
            assert all(own) if batch in done else (all(own) or not any(own)), (name, batch)
    assert min(len(marks[name][1]) for name in ("first", "second")) >= kills, "the other writers continued"
