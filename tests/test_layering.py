"""An import may only go down: recipes -> trainers -> rewards -> rlkd; and the distribution holds what it should."""

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = ["rlkd", "rewards", "trainers", "recipes"]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_packages_below_it(root: Path, layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"recipes"}
    files = list((root / layer).rglob("*.py"))
    assert files
    for path in files:
        tops = {module.split(".")[0] for module in imported_modules(path)}
        assert not tops & above, f"{path} imports {tops & above}"


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
    optional = {"vllm", "jieba", "matplotlib", "PIL", "pytest", "sentence_transformers"}
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
    "module", ["rlkd.cli", "rlkd.registry", "rewards", "rewards.cli", "trainers", "rlkd.structure", "rlkd.validity"]
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
    data = [*source.glob("recipes/*.yaml"), *source.glob("rlkd/assets/*.*"), *source.glob("rlkd/assets/adapters/*/*")]
    modules = [path for layer in LAYERS for path in (source / layer).rglob("*.py")]
    assert len(data) >= 6
    assert {str(path.relative_to(source)) for path in [*data, *modules]} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
