"""The structure of the code: imports only go down and form no circle, and each name means one thing."""

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = ["rlkd", "rewards", "trainers", "recipes"]


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def modules(root: Path) -> dict[str, Path]:
    """Every module of the four packages by its dotted name."""
    found = {}
    for path in (path for layer in LAYERS for path in (root / layer).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, inside functions and under TYPE_CHECKING too."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        imported = set()
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    imported.add(submodule if submodule in known else node.module)
        graph[name] = (imported & set(known)) - {name}
    return graph


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_packages_below_it(root: Path, layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"recipes"}
    files = list((root / layer).rglob("*.py"))
    assert files
    for path in files:
        tops = {module.split(".")[0] for module in imported_modules(path)}
        assert not tops & above, f"{path} imports {tops & above}"


def test_imports_form_no_circle(root: Path) -> None:
    graph = import_graph(root)
    assert sum(map(len, graph.values())) > 300
    while graph:
        graph = {name: imported & set(graph) for name, imported in graph.items()}
        inside = {name for name, imported in graph.items() if imported} & set().union(*graph.values())
        if len(inside) == len(graph):
            break
        graph = {name: imported for name, imported in graph.items() if name in inside}
    assert not graph, f"these modules import each other, directly or by way of others: {graph}"


# Each trainer's package, and what imports it besides its dry run; `rlkd` and `async_grpo` are one method.
IMPORTERS = {"async_grpo": {"rlkd"}, "gsrm": set(), "rlkd": {"async_grpo", "vllm"}, "validity_kd": set()}


@pytest.mark.parametrize("package", IMPORTERS)
def test_what_trainers_share_is_in_no_trainers_package(root: Path, package: str) -> None:
    graph = import_graph(root)
    found = {
        name
        for name, imported in graph.items()
        if name.startswith("trainers.")
        and name.split(".")[1] not in IMPORTERS[package] | {package, "dry_run"}
        and any(module.startswith(f"trainers.{package}.") for module in imported)
    }
    assert any(module.startswith(f"trainers.{package}.") for module in graph)
    assert not found, (
        f"{found} import trainers.{package}: what they share belongs in trainers.common or trainers.teachers"
    )


def test_a_class_name_means_one_thing(root: Path) -> None:
    places: dict[str, list[str]] = {}
    for path in (path for top in (*LAYERS, "benchmarks") for path in (root / top).rglob("*.py")):
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(root)))
    assert len(places) > 100
    assert not {name: found for name, found in places.items() if len(found) > 1}


ENGINE_CLASSES = {"ServerEngine", "TransformersEngine", "VLLMEngine"}
ENGINE_SCHEMES = ("http", "https", "http://", "https://", "vllm:", "transformers:")


def engine_tests(tree: ast.AST) -> list[int]:
    """Lines that test for a class of engine, or for the prefix of an engine's spec."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("isinstance", "issubclass"):
                named = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                named |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
                if named & ENGINE_CLASSES:
                    lines.append(node.lineno)
            if isinstance(function, ast.Attribute) and function.attr in ("startswith", "removeprefix"):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                if words & set(ENGINE_SCHEMES):
                    lines.append(node.lineno)
    return lines


def test_only_engines_know_what_an_engine_is(root: Path) -> None:
    """Everything else uses the protocol's capabilities, so that a user's own backend works wherever ours does."""
    assert engine_tests(ast.parse("isinstance(x, (int, engines.ServerEngine))"))
    assert engine_tests(ast.parse("spec.startswith(('http://', 'https://'))"))
    for name, path in modules(root).items():
        if not name.startswith("rlkd.engines"):
            found = engine_tests(syntax(path))
            assert not found, f"{path}, lines {found}: use a capability of rlkd.engines.base.Engine"


def test_what_is_imported_is_required(root: Path) -> None:
    """By this distribution or by what it requires: not by what else happens to be installed."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    required: set[str] = set()
    while wanted:
        need = Requirement(wanted.pop())
        name = canonicalize_name(need.name)
        if name not in required and (need.marker is None or need.marker.evaluate({"extra": ""})):
            required.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # of an extra, or for another platform
                wanted += metadata.requires(name) or []
    owners = metadata.packages_distributions()
    optional = {"vllm", "deepspeed", "jieba", "matplotlib", "PIL", "plotly", "pytest", "sentence_transformers"}
    for path in (path for layer in LAYERS for path in (root / layer).rglob("*.py")):
        tops = {module.split(".")[0] for module in imported_modules(path)}
        for top in tops - set(sys.stdlib_module_names) - set(LAYERS) - optional:
            names = {canonicalize_name(owner) for owner in owners.get(top, [])}
            assert names & required or (path.parent / f"{top}.py").exists(), f"{path} imports {top}"


def test_no_group_is_repeated_possessively(root: Path) -> None:
    """`(?:...)*+` matches wrongly before Python 3.11.5 (python/cpython#106052); `(?>(?:...)*)` says the same."""
    files = [path for layer in LAYERS for path in (root / layer).rglob("*.py")]
    found = [
        f"{path}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"(?:\)|[^{]\{[A-Z_]+\})(?:[*+?]|\{\{?[\d,]+\}\}?)\+", line)
    ]
    assert len(files) > 100
    assert not found


def test_the_methods_are_free_of_trl(root: Path) -> None:
    for path in (root / "rlkd").rglob("*.py"):
        assert not any(module.split(".")[0] == "trl" for module in imported_modules(path)), path


@pytest.mark.parametrize(
    "module",
    [
        "rlkd.cli",
        "rlkd.study.cli",
        "rlkd.registry",
        "rewards",
        "rewards.cli",
        "trainers",
        "rlkd.structure",
        "rlkd.validity",
    ],
)
def test_light_modules_import_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'trl', 'transformers', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_built_wheel_carries_recipes_configs_and_the_sample(root: Path, tmp_path: Path) -> None:
    # The build environment of the tests stands in for an isolated one, which would need the network.
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(root), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("rlkd-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [
        *source.glob("recipes/**/*.yaml"),
        *source.glob("rlkd/assets/*.*"),
        *source.glob("rlkd/assets/adapters/*/*"),
        *source.glob("rlkd/assets/lab-*/*"),
    ]
    data += [*source.glob("*/py.typed"), *source.glob("rlkd/report/page/*")]
    modules = [path for layer in LAYERS for path in (source / layer).rglob("*.py")]
    assert len(data) >= 6
    assert {str(path.relative_to(source)) for path in [*data, *modules]} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
