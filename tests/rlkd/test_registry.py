import os
import pydoc
import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from rewards import BUILT_IN
from rlkd.errors import UsageError
from rlkd.registry import (
    Found,
    Kind,
    Registry,
    SpecError,
    build,
    check_arguments,
    describe,
    register,
    registry,
    split_alias,
    suggestion,
)
from tests.helpers import ROOT


@pytest.fixture
def empty() -> Registry:
    """A registry of its own, so that no test changes another's; built-in names and entry points are there."""
    return Registry("reward")


def write(path: Path, code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    return path


def install(folder: Path, distribution: str, entry_points: str) -> None:
    """A distribution as an installer leaves it, as far as entry points are concerned."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    write(info / "entry_points.txt", entry_points)


def in_fresh_python(code: str, cwd: Path, *path: Path) -> str:
    # As an installed script starts: the folder it is started from is not on the search path.
    found = [str(Path(p)) for p in (*path, ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(found)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def brevity(completions, **columns):
    return [0.0] * len(completions)


def verbosity(completions, **columns):
    return [1.0] * len(completions)


# Names


def test_a_registered_name_is_found(empty):
    empty.add("brevity", brevity)
    assert empty.find("brevity").target is brevity


def test_the_decorator_registers_and_returns_the_function_unchanged(monkeypatch):
    monkeypatch.setattr(registry("reward"), "_objects", {})
    assert register("reward", "short")(brevity) is brevity
    assert registry("reward").find("short").target is brevity


def test_the_same_function_may_be_registered_again(empty):
    empty.add("brevity", brevity)
    empty.add("brevity", brevity)
    assert empty.find("brevity").target is brevity


def test_a_name_cannot_stand_for_two_functions(empty):
    empty.add("brevity", brevity)
    with pytest.raises(SpecError, match=r"'brevity' is registered twice: by .*\.brevity and by .*\.verbosity"):
        empty.add("brevity", verbosity)
    assert empty.find("brevity").target is brevity


def test_a_built_in_name_cannot_be_taken(empty):
    with pytest.raises(SpecError, match=r"registered twice: by rewards\.accuracy\.Accuracy and by"):
        empty.add("accuracy", brevity)


def test_an_object_without_a_name_of_its_own_can_be_registered(empty):
    class Brevity:
        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    empty.add("brevity", Brevity())
    assert "Brevity" in empty.names()["brevity"]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_built_in_name_can_be_imported(kind):
    for name, path in registry(kind).built_in.items():
        assert registry(kind).find(name) == Found(name, pydoc.locate(path), path)


def test_a_typo_in_a_name_is_answered_with_a_suggestion_and_all_names(empty):
    empty.add("brevity", brevity)
    empty.add("verbosity", verbosity)
    with pytest.raises(
        SpecError, match=r"unknown reward 'brevitty'\. Did you mean 'brevity'\? Known: .*brevity.*verbosity"
    ):
        empty.find("brevitty")


@pytest.mark.parametrize("spec", ["", "  ", "alias="])
def test_an_empty_spec_is_refused(empty, spec):
    with pytest.raises(SpecError, match="an empty reward spec"):
        empty.find(spec)


def test_kinds_do_not_share_names(monkeypatch):
    monkeypatch.setattr(registry("reward"), "_objects", {"brevity": brevity})
    with pytest.raises(SpecError, match="unknown selector 'brevity'"):
        registry("selector").find("brevity")


# Dotted paths


def test_a_dotted_path_names_anything_importable(empty):
    found = empty.find("os.path.basename")
    assert (found.name, found.target) == ("basename", os.path.basename)


def test_a_dotted_path_to_a_missing_attribute_names_the_closest_one(empty):
    with pytest.raises(SpecError, match=r"os\.path has no 'basenam'\. Did you mean 'basename'"):
        empty.find("os.path.basenam")


def test_a_dotted_path_to_a_missing_module_names_the_module(empty):
    with pytest.raises(SpecError, match="cannot import 'no_such_package'"):
        empty.find("no_such_package.reward")


def test_a_module_that_raises_on_import_is_named_with_its_error(empty, tmp_path, monkeypatch):
    write(tmp_path / "broken_module.py", "1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=r"cannot import 'broken_module': ZeroDivisionError"):
        empty.find("broken_module.reward")


def test_a_module_that_lacks_a_dependency_names_the_dependency(empty, tmp_path, monkeypatch):
    write(tmp_path / "needy_module.py", "import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="no_such_dependency"):
        empty.find("needy_module.reward")


FIND_AND_CALL = """
from rlkd.registry import registry
print(registry("reward").find("shared_name.reward").target())
"""


def test_a_dotted_path_is_looked_for_in_the_current_folder_too(tmp_path):
    write(tmp_path / "here" / "shared_name.py", "def reward(): return 'current folder'")
    assert in_fresh_python(FIND_AND_CALL, tmp_path / "here").strip() == "current folder"


def test_the_current_folder_is_looked_at_last(tmp_path):
    write(tmp_path / "here" / "shared_name.py", "def reward(): return 'current folder'")
    write(tmp_path / "installed" / "shared_name.py", "def reward(): return 'installed'")
    assert in_fresh_python(FIND_AND_CALL, tmp_path / "here", tmp_path / "installed").strip() == "installed"


def test_a_broken_installed_module_is_not_replaced_by_one_in_the_current_folder(tmp_path):
    write(tmp_path / "here" / "shared_name.py", "def reward(): return 'current folder'")
    write(tmp_path / "installed" / "shared_name.py", "import no_such_dependency")
    code = """
    from rlkd.registry import SpecError, registry
    try:
        registry("reward").find("shared_name.reward")
    except SpecError as error:
        print(error)
    """
    assert "no_such_dependency" in in_fresh_python(code, tmp_path / "here", tmp_path / "installed")


# Files


def test_a_function_in_a_file_is_found_and_goes_by_its_own_name(empty, tmp_path):
    path = write(tmp_path / "mine.py", "def short(completions): return [1.0]")
    found = empty.find(f"{path}:short")
    assert (found.name, found.target([]), found.source) == ("short", [1.0], str(path))


def test_a_relative_path_counts_from_the_current_folder(empty, tmp_path, monkeypatch):
    write(tmp_path / "mine.py", "def short(completions): return [2.0]")
    monkeypatch.chdir(tmp_path)
    assert empty.find("mine.py:short").target([]) == [2.0]


def test_loading_a_file_leaves_the_search_path_alone(empty, tmp_path):
    path = write(tmp_path / "mine.py", "def short(completions): return [1.0]")
    before = list(sys.path)
    empty.find(f"{path}:short")
    assert sys.path == before


def test_a_file_never_stands_for_an_installed_module_of_its_name(empty, tmp_path):
    import json

    path = write(tmp_path / "json.py", "def short(completions): return [1.0]")
    empty.find(f"{path}:short")
    assert sys.modules["json"] is json


def test_files_with_similar_paths_are_different_modules(empty, tmp_path):
    one = write(tmp_path / "a" / "b.py", "def short(): return 'a/b'")
    other = write(tmp_path / "a_b.py", "def short(): return 'a_b'")
    assert empty.find(f"{one}:short").target() == "a/b"
    assert empty.find(f"{other}:short").target() == "a_b"


def test_two_functions_of_one_file_share_its_module(empty, tmp_path):
    path = write(tmp_path / "mine.py", "calls = []\ndef add(): calls.append(1)\ndef count(): return len(calls)")
    empty.find(f"{path}:add").target()
    assert empty.find(f"{path}:count").target() == 1


def test_a_folder_with_an_equals_sign_is_no_alias(empty, tmp_path):
    path = write(tmp_path / "lr=3" / "mine.py", "def short(): return 3")
    assert empty.find(f"{path}:short").name == "short"
    assert empty.find(f"brief={path}:short").name == "brief"


def test_a_missing_file_is_named_with_its_full_path(empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as raised:
        empty.find("nowhere/mine.py:short")
    assert f"there is no file {tmp_path / 'nowhere' / 'mine.py'}" in str(raised.value)


def test_a_wrong_name_in_a_file_is_answered_with_a_suggestion(empty, tmp_path):
    path = write(tmp_path / "mine.py", "def shortness(): ...\ndef _hidden(): ...")
    with pytest.raises(SpecError, match=r"has no 'shortnes'\. Did you mean 'shortness'\? Known: shortness\."):
        empty.find(f"{path}:shortnes")


@pytest.mark.parametrize("spec", ["{path}", "{path}:"])
def test_a_file_without_a_name_says_how_to_write_it(empty, tmp_path, spec):
    path = write(tmp_path / "mine.py", "def short(): ...")
    with pytest.raises(SpecError, match=r"write path/to/file\.py:name"):
        empty.find(spec.format(path=path))


@pytest.mark.parametrize(
    ("code", "error"), [("1 / 0", "ZeroDivisionError"), ("def f(:", "SyntaxError"), ("import nope_", "nope_")]
)
def test_a_file_that_raises_is_named_with_its_error_and_can_be_fixed(empty, tmp_path, code, error):
    path = write(tmp_path / "mine.py", code)
    with pytest.raises(SpecError, match=rf"mine\.py does not load: .*{error}"):
        empty.find(f"{path}:short")
    # A text of another length: the compiled form of a source is told apart by time in seconds and size.
    write(path, "def short():\n    return 'fixed'")
    assert empty.find(f"{path}:short").target() == "fixed"


def test_an_interrupt_while_a_file_loads_passes_through(empty, tmp_path):
    path = write(tmp_path / "mine.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        empty.find(f"{path}:short")


# Aliases


@pytest.mark.parametrize(
    ("spec", "alias", "rest"),
    [
        ("accuracy", None, "accuracy"),
        (" acc = accuracy ", "acc", "accuracy"),
        ("acc=my.module.reward", "acc", "my.module.reward"),
        ("acc=/runs/lr=3/my.py:reward", "acc", "/runs/lr=3/my.py:reward"),
        ("/runs/lr=3/my.py:reward", None, "/runs/lr=3/my.py:reward"),
        ("=accuracy", None, "accuracy"),
    ],
)
def test_an_alias_ends_at_the_first_equals_sign_that_is_not_part_of_a_path(spec, alias, rest):
    assert split_alias(spec) == (alias, rest)


def test_an_alias_renames_what_any_form_of_spec_finds(empty, tmp_path):
    empty.add("brevity", brevity)
    path = write(tmp_path / "mine.py", "def short(): ...")
    names = [empty.find(f"other={spec}").name for spec in ("brevity", "os.path.basename", f"{path}:short")]
    assert names == ["other"] * 3


# Entry points


def test_a_package_brings_a_reward_by_its_entry_point(empty, tmp_path, monkeypatch):
    install(tmp_path, "kind-rewards", "[rlkd.rewards]\nkindness = kind_rewards:kindness\n")
    write(tmp_path / "kind_rewards.py", "def kindness(completions, **columns): return [1.0]")
    monkeypatch.syspath_prepend(tmp_path)
    assert empty.names()["kindness"] == "kind_rewards.kindness (kind-rewards)"
    assert "kind_rewards" not in sys.modules
    found = empty.find("kindness")
    assert (found.name, found.source, found.target([])) == ("kindness", "kind_rewards:kindness", [1.0])


def test_a_name_that_two_packages_bring_is_ambiguous(empty, tmp_path, monkeypatch):
    install(tmp_path, "kind-one", "[rlkd.rewards]\nkindness = kind_one:f\n")
    install(tmp_path, "kind-two", "[rlkd.rewards]\nkindness = kind_two:f\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="several packages provide") as raised:
        empty.find("kindness")
    assert "kind-one" in str(raised.value)
    assert "kind-two" in str(raised.value)


def test_a_package_that_does_not_load_is_named(empty, tmp_path, monkeypatch):
    install(tmp_path, "unkind-rewards", "[rlkd.rewards]\nunkindness = unkind_rewards:f\n")
    write(tmp_path / "unkind_rewards.py", "raise OSError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=r"of the package unkind-rewards does not load: OSError\('no licence'\)"):
        empty.find("unkindness")


def test_listing_names_imports_nothing(tmp_path):
    install(tmp_path, "kind-rewards", "[rlkd.rewards]\nkindness = kind_rewards:kindness\n")
    write(tmp_path / "kind_rewards.py", "1 / 0")
    code = """
    import sys
    from rlkd.registry import registry
    before = set(sys.modules)
    names = registry("reward").names()
    print(sorted(names))
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    print(sorted(new & {"kind_rewards", "torch", "trl", "transformers", "datasets", "math_verify"}))
    """
    names, imported = in_fresh_python(code, tmp_path, tmp_path).splitlines()
    assert names == str(sorted([*BUILT_IN, "kindness"]))
    assert imported == "[]"


# Arguments


def scale(factor, *, offset=0): ...


def test_arguments_that_fit_pass():
    assert check_arguments(scale, {"factor": 2, "offset": 1}, "scale") is None


def test_an_unknown_argument_is_answered_with_a_suggestion():
    with pytest.raises(
        SpecError, match=r"scale has no parameter 'ofset'\. Did you mean 'offset'\? Known: factor, off"
    ):
        check_arguments(scale, {"factor": 2, "ofset": 1}, "scale")


def test_a_missing_argument_is_named_with_all_parameters():
    with pytest.raises(SpecError, match=r"scale needs the parameter 'factor'\. Parameters: factor, offset=0\."):
        check_arguments(scale, {}, "scale")


def test_a_factory_that_takes_anything_takes_anything():
    check_arguments(lambda **options: None, {"whatever": 1}, "it")
    assert describe(lambda **options: None) == "Parameters: none."


def test_a_suggestion_without_any_known_word_says_none():
    assert suggestion("word", []) == " Known: none."


# Building


def needs_level(completions, level, *, cap=3, **columns):
    return [cap] * len(completions)


def make_brevity(cap=3):
    return partial(needs_level, cap=cap)


def brief(questions, limit=400):
    return [limit] * len(questions)


def lenient(questions, **options):
    return options


HERE = {"brevity": needs_level, "make": make_brevity, "brief": brief, "lenient": lenient, "number": 3, "ready": {}.get}


@pytest.fixture
def here(monkeypatch):
    for kind in ("reward", "selector", "judge"):
        monkeypatch.setattr(registry(kind), "_objects", dict(HERE))


def test_a_function_over_columns_comes_back_with_its_parameters(here):
    built = build("reward", "short=brevity", {"cap": 5})
    assert (built.name, built.target, built.parameters) == ("short", needs_level, {"cap": 5})
    assert built.bound(completions=["a"], level=[1]) == [5]
    assert build("reward", "brevity").bound is needs_level


def test_a_function_of_nothing_but_columns_is_a_reward(here, monkeypatch):
    monkeypatch.setattr(registry("reward"), "_objects", {"wide": lambda **columns: [1.0]})
    assert build("reward", "wide").bound() == [1.0]


def test_a_factory_is_called_with_its_parameters(here):
    built = build("reward", "make", {"cap": 5})
    assert (built.parameters, built.target(completions=["a"], level=[1])) == (None, [5])


def test_the_parameters_of_a_function_distinguish_an_object_from_a_factory(here):
    assert build("selector", "brief", {"limit": 2}).bound(questions="abc") == [2, 2, 2]
    with pytest.raises(SpecError, match="judge 'brief' needs the parameter 'questions'"):
        build("judge", "brief")


def test_a_callable_object_over_columns_takes_parameters_and_another_object_none(here):
    with pytest.raises(SpecError, match="selector 'ready' is an object, which takes no parameters; found limit"):
        build("selector", "ready", {"limit": 2})
    assert build("selector", "ready").target == HERE["ready"]


@pytest.mark.parametrize(
    ("kind", "spec", "parameters", "message"),
    [
        ("reward", "brevity", {"cup": 5}, "reward 'brevity' has no parameter 'cup'. Did you mean 'cap'? Known: cap."),
        ("reward", "brevity", {"completions": 5}, "reward 'brevity' has no parameter 'completions'"),
        ("reward", "brevity", {"level": 5}, "'level' has no default, so it is a column of the data"),
        ("reward", "make", {"cup": 5}, "reward 'make' has no parameter 'cup'. Did you mean 'cap'? Known: cap."),
        ("reward", "number", {}, "reward 'number' is not a function or class, but 3"),
        ("reward", "nothing", {}, "unknown reward 'nothing'"),
        ("selector", "brief", {"questions": 5}, "selector 'brief' has no parameter 'questions'"),
        ("selector", "lenient", {"questions": 5}, "selector 'lenient' has no parameter 'questions'"),
    ],
)
def test_parameters_that_do_not_fit_are_named(here, kind, spec, parameters, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        build(kind, spec, parameters)


def test_a_function_that_takes_anything_may_have_any_parameter(here):
    assert build("selector", "lenient", {"whatever": 1}).bound(questions=[]) == {"whatever": 1}


def test_a_default_fills_a_parameter_that_exists_and_is_not_given(here):
    defaults = {"limit": 3, "questions": "never", "student": "never"}
    assert build("selector", "brief", defaults=defaults).parameters == {"limit": 3}
    assert build("selector", "brief", {"limit": 1}, defaults=defaults).parameters == {"limit": 1}


def test_an_error_is_of_the_kind_that_the_caller_wants(here):
    class OwnError(UsageError):
        pass

    for spec, parameters in (("nothing", {}), ("brief", {"cup": 1})):
        with pytest.raises(OwnError):
            build("selector", spec, parameters, error=OwnError)
