"""Installed packages, compared with the ranges that rlkd accepts and with the versions that were tested together."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlkd.doctor.findings import Finding, listed
from rlkd.installation import HOME, SUPPORTED_VLLM, installed_vllm, supports_vllm

# What an optional package is for.
OPTIONAL = {
    "gguf": "the embedded SmolLM2 models",
    "matplotlib": "curves",
    "plotly": "rlkd report",
    "bitsandbytes": "4 and 8 bit",
    "sentence-transformers": "sentence encoders",
}


def check_versions(home: Path = HOME, installed: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Python and the packages. `installed`: name -> version, by default those of this environment."""
    python, requirements = declared(home)
    tested, found = pinned_versions(home), environment() if installed is None else installed
    version = platform.python_version()
    in_range = SpecifierSet(python).contains(version)
    yield Finding(
        "versions",
        "ok" if in_range else "problem",
        f"Python {version}",
        "" if in_range else f"rlkd needs {python}.",
    )
    usable = []
    for requirement in requirements:
        name = normal(requirement.name)
        have, asked = found.get(name), str(requirement.specifier)
        if have is None:
            yield Finding("versions", "problem", f"{name} is not installed", f"Run  pip install '{name}{asked}'")
        elif not requirement.specifier.contains(have, prereleases=True):
            yield Finding(
                "versions", "problem", f"{name} {have}: rlkd supports {asked}", f"Run  pip install '{name}{asked}'"
            )
        else:
            usable.append(name)
    differing = [name for name in usable if name in tested and public(found[name]) != tested[name]]
    same = [name for name in usable if name in tested and name not in differing]
    if differing:
        yield Finding(
            "versions",
            "warning",
            "other versions than those that were tested together: "
            + listed(f"{name} {found[name]} (tested: {tested[name]})" for name in differing),
            f"They are in the supported range. The tested ones:  pip install -c {home / 'constraints.txt'} rlkd",
        )
    main = [name for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets") if name in usable]
    shown = listed(f"{name} {found[name]}" for name in main)
    if tested:
        yield Finding("versions", "ok", f"{len(same)} packages in the versions that were tested together; {shown}")
    elif usable:
        yield Finding("versions", "ok", f"{len(usable)} packages in the supported range; {shown}")
    yield _vllm()
    absent = [f"{name} ({use})" for name, use in OPTIONAL.items() if name not in found]
    if absent:
        yield Finding("versions", "ok", f"optional packages that are not installed: {listed(absent)}")


def declared(home: Path = HOME) -> tuple[str, list[Requirement]]:
    """The range of Python and the packages that rlkd needs: of its checkout, else of the installed distribution."""
    file = home / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], [Requirement(line) for line in project["dependencies"]]
    metadata = importlib.metadata.metadata("rlkd")
    needed = [Requirement(line) for line in importlib.metadata.requires("rlkd") or ()]
    return metadata["Requires-Python"] or "", [each for each in needed if each.marker is None]


def pinned_versions(home: Path = HOME) -> dict[str, str]:
    """The versions that were tested together, by name; none where a wheel has no `constraints.txt`."""
    file = home / "constraints.txt"
    lines: Sequence[str] = file.read_text(encoding="utf-8").splitlines() if file.is_file() else ()
    pinned = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {normal(name): version for name, equals, version in pinned if equals}


def environment() -> dict[str, str]:
    """The version of each installed distribution, by name."""
    return {
        normal(name): each.version
        for each in importlib.metadata.distributions()
        if (name := each.metadata["Name"]) is not None
    }


def normal(name: str) -> str:
    """The name of a distribution in the one spelling of packaging's rules.

    >>> normal("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """A version without the name of its build: `2.13.0+cpu` is 2.13.0."""
    return version.partition("+")[0]


def _vllm() -> Finding:
    found, (low, high) = installed_vllm(), SUPPORTED_VLLM
    if found is None:
        return Finding(
            "versions", "ok", "vLLM is not installed here (use_vllm needs it; rlkd serve takes that of `python:`)"
        )
    if not supports_vllm(found):
        return Finding(
            "versions",
            "warning",
            f"vLLM {found}: TRL supports {low} to {high}",
            "Expect errors with use_vllm, or install one of those.",
        )
    return Finding("versions", "ok", f"vLLM {found}, which TRL supports ({low} to {high})")
