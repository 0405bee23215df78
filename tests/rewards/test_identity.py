"""Which scores are the same: cached scores of rewards that may change."""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rewards import RewardOptions
from tests.helpers import ROOT
from tests.helpers.reward_files import MISBEHAVING, calls
from tests.helpers.rewards import build_reward, reused, wrap

pytestmark = pytest.mark.timeout(300)  # against hangs; no test asserts how long anything takes


def test_a_score_is_cached_for_later_batches_rewards_and_runs(build, file):
    logged = {}
    reward = build("alone", cached=True)
    assert reward(completions=["aa", "none", "b"]) == [2.0, None, 1.0]
    assert reward(completions=["b", "aa", "none", "ccc"]) == [1.0, 2.0, None, 3.0]
    assert reused(reward) == ["cache", "cache", "cache", None]
    again = build("alone", cached=True)
    assert again(completions=["aa", "aa", "none"], log_metric=logged.__setitem__) == [2.0, 2.0, None]
    assert [outcome.status for outcome in again.outcomes] == ["score", "score", "not_applicable"]
    assert logged["rewards/alone/reused_cache"] == 1.0
    assert len(calls(file)) == 4


def test_a_score_is_cached_for_other_processes(build, file, tmp_path):
    build("alone", cached=True)(completions=["aa"])
    code = """
    import pathlib, sys
    from rewards import build_reward
    reward = build_reward(sys.argv[1], cache=pathlib.Path(sys.argv[2]))
    print([(o.value, o.reused) for o in reward.score(completions=["aa"])])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), f"{file}:alone", tmp_path / "scores.sqlite"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[(2.0, 'cache')]\n", done.stderr
    assert calls(file) == ["aa"]


@pytest.mark.slow
def test_failures_are_never_cached(build, file):
    bad = ["failed x", "raise y", "exit", "nan", "sleep"]
    for _ in range(2):
        reward = build("alone", cached=True, timeout=1.0, workers=2)
        reward(completions=bad)
        assert reused(reward) == [None] * 5
    assert sorted(calls(file)) == sorted(bad * 2)


@pytest.mark.parametrize("change", ["parameters", "version", "source", "answer"])
def test_a_cached_score_is_not_reused_for_another_reward_or_sample(build, file, tmp_path, change):
    reward = build("alone", {"factor": 2}, cached=True, isolate=False)
    assert reward(completions=["aa"], answer=["1"]) == [4.0]
    arguments, options, answer = {"factor": 2}, {}, "1"
    if change == "parameters":
        arguments = {"factor": 3}
    elif change == "version":
        options = {"version": "2"}
    elif change == "answer":
        answer = "2"
    else:
        file.write_text(MISBEHAVING + "\n# changed\n")  # the module in memory is the old one, but its key is not
    other = build("alone", arguments, cached=True, isolate=False, **options)
    assert other(completions=["aa"], answer=[answer]) == [6.0 if change == "parameters" else 4.0]
    assert reused(other) == [None]


def test_rewards_of_one_source_that_differ_by_how_they_are_made_keep_their_scores_apart(build):
    assert build("plain", {"value": 1.0}, cached=True)(completions=["a"]) == [1.0]
    assert build("doubled", {"value": 1.0}, cached=True)(completions=["a"]) == [2.0]
    assert build("Constant", {"value": 1.0}, cached=True)(completions=["a"]) == [1.0]
    assert build("one", cached=True)(completions=["a"]) == [1.0]
    assert build("two", cached=True)(completions=["a"]) == [2.0]
    assert build("two", cached=True)(completions=["a"]) == [2.0]


def test_an_alias_does_not_matter_to_cached_scores(build, file, tmp_path):
    build("alone", cached=True)(completions=["aa"])
    other = build_reward(f"other={file}:alone", cache=tmp_path / "scores.sqlite")
    assert other(completions=["aa"]) == [2.0]
    assert reused(other) == ["cache"]


def test_what_a_reward_is_derived_from_or_wrapped_in_counts(build, file, tmp_path, monkeypatch):
    base = tmp_path / f"base_{random.randrange(10**9)}.py"
    base.write_text(
        "class Base:\n    def __call__(self, completions, **columns):\n        return [1.0] * len(completions)"
    )
    user = tmp_path / f"user_{random.randrange(10**9)}.py"
    user.write_text(
        "import functools\n"
        f"from {base.stem} import Base\n"
        "from statistics import mean\n"
        "class Mine(Base):\n    pass\n"
        "def wrapped(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"per_sample": True, "isolate": False}

    def prefix_of(name):
        return build_reward(f"{user}:{name}", options=options, cache=tmp_path / "s.sqlite")._key_prefix

    before = prefix_of("Mine"), prefix_of("wrapped")
    base.write_text(base.read_text() + "\n\n# changed\n")
    assert prefix_of("Mine") != before[0]
    assert prefix_of("wrapped") == before[1]


def test_the_source_of_a_decorated_reward_counts(tmp_path):
    path = tmp_path / f"decorated_{random.randrange(10**9)}.py"
    path.write_text("from contextlib import ContextDecorator, nullcontext\n"
                    "class Quiet(ContextDecorator):\n"
                    "    def __enter__(self): pass\n"
                    "    def __exit__(self, *error): pass\n"
                    "@Quiet()\n"
                    "def mine(completions, **columns):\n    return [1.0] * len(completions)\n")  # fmt: skip
    options = {"per_sample": True, "isolate": False}
    before = build_reward(f"{path}:mine", options=options)._key_prefix  # the wrapper's file is the standard library's
    path.write_text(path.read_text() + "# changed\n")
    assert build_reward(f"{path}:mine", options=options)._key_prefix != before


def module_level(completions, **columns):
    return [1.0] * len(completions)


def test_functions_whose_name_may_be_anothers_keep_nothing(tmp_path):
    cache = tmp_path / "scores.sqlite"
    options = {"per_sample": True}
    for value in (1.0, 2.0):
        # One name, one file, and no closure.
        reward = wrap(
            lambda completions, value=value, **columns: [value] * len(completions), options=options, cache=cache
        )
        assert reward(completions=["a", "a"]) == [value] * 2
        assert reused(reward) == [None, "batch"]
    for _ in range(2):
        reward = wrap(module_level, options=options, cache=cache)
        reward(completions=["a"])
    assert reused(reward) == ["cache"]


def test_positional_parameters_of_a_partial_count(tmp_path):
    from functools import partial

    for value in (1.0, 2.0):
        reward = wrap(partial(constant, value), options={"per_sample": True}, cache=tmp_path / "scores.sqlite")
        assert reward(completions=["a"]) == [value]


def constant(value, completions, **columns):
    return [value] * len(completions)


def test_objects_that_are_handed_over_keep_nothing(tmp_path):
    class Counting:
        reward_options = RewardOptions(per_sample=True)

        def __init__(self, value):
            self.value = value

        def __call__(self, completions, **columns):
            return [self.value] * len(completions)

    for value in (1.0, 2.0):
        assert wrap(Counting(value), cache=tmp_path / "scores.sqlite")(completions=["a"]) == [value]
    assert not (tmp_path / "scores.sqlite").exists()


@pytest.mark.parametrize("off", ["option", "flag", "batch"])
def test_keeping_scores_can_be_switched_off(build, file, tmp_path, off):
    options = {"option": {"cache": False}, "batch": {"per_sample": False}}.get(off, {})
    for _ in range(2):
        reward = build("alone", cached=off != "flag", **options)
        assert reward(completions=["aa"]) == [2.0]
    assert calls(file) == ["aa", "aa"]
    assert not (tmp_path / "scores.sqlite").exists()


def test_a_cache_that_cannot_be_used_stops_nothing(build, tmp_path, caplog):
    (tmp_path / "folder.sqlite").mkdir()
    reward = build("alone", cached=tmp_path / "folder.sqlite")
    for _ in range(2):
        assert reward(completions=["aa", "aa"]) == [2.0, 2.0]
    assert "The run goes on" in caplog.text


def test_a_file_that_changes_during_the_run_has_no_more_scores_cached(tmp_path, caplog):
    path, cache = tmp_path / "mine.py", tmp_path / "scores.sqlite"
    source = """
from rewards import RewardOptions

def mine(completions, **columns):
    return [{value} for _ in completions]

mine.reward_options = RewardOptions(per_sample=True, workers=1)
"""
    path.write_text(source.format(value=1.0))
    first = build_reward(f"{path}:mine", cache=cache)
    assert first(completions=["a"]) == [1.0]
    path.write_text(source.format(value=2.0))
    first.close()  # as where a worker is killed: the next one loads the new file
    assert first(completions=["a", "b"])[0] == 1.0
    assert "its source was changed during the run" in caplog.text
    path.write_text(source.format(value=1.0))
    again = build_reward(f"{path}:mine", cache=cache)
    again(completions=["a", "b"])
    assert [outcome.reused for outcome in again.outcomes] == ["cache", None]
    assert [outcome.value for outcome in again.outcomes] == [1.0, 1.0]


def test_a_source_is_read_again_only_after_it_was_written(tmp_path, monkeypatch):
    path = tmp_path / f"still_{random.randrange(10**9)}.py"
    path.write_text("def mine(completions, **columns):\n    return [1.0] * len(completions)\n")
    identity = build_reward(f"{path}:mine")._identity
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or read_bytes(self))
    assert identity.is_current()
    assert reads == []
    path.write_text(path.read_text())  # the same content again
    assert identity.is_current()
    path.write_text(path.read_text() + "# changed\n")
    assert not identity.is_current()
    assert reads == [path] * 2
    path.unlink()
    assert not identity.is_current()
