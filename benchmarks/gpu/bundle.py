"""A folder of the packages that a machine without network lacks: wheels in the versions of `constraints.txt`.

    FOLDER/wheels/*.whl       what rlkd needs, and what that needs; Liger for a comparison
    FOLDER/requirements.txt   rlkd's own requirements
    FOLDER/bundle.json        the Python version, the wheels with their sizes, and what the machine must have

Our own code comes from the checkout that `gpu_day.py run` stands in, models are made there from a seed: neither is in
the folder. What is large is expected on a machine for this work (`MUST_EXIST`), as the folder is to be carried around.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu import ROOT

# 160 MB of wheels without torch and CUDA; 111 MB of them are the last four of these.
MUST_EXIST = ("torch", "numpy", "pyarrow", "pandas", "scipy", "scikit-learn")
# Its own requirement, Triton, comes with torch.
EXTRAS = {"liger-kernel": "0.8.5"}
LIMIT_MB = 60.0
# The versions of glibc that wheels are built for; pip matches each by its number.
GLIBC = range(39, 4, -1)


def make_bundle(
    out: Path, python: str, have: Mapping[str, str | None], limit_mb: float, machine: str
) -> dict[str, Any]:
    """Download the wheels into a new folder; returns what `bundle.json` says.

    Args:
        out: the folder; an earlier bundle there is replaced.
        python: version of the machine's Python, such as `3.12`.
        have: further packages that the machine has, with their versions where they are known.
        limit_mb: the most that the wheels may take, in MB.
        machine: its processor, such as `x86_64`.

    Raises SystemExit where the folder holds something else, a wheel is missing, or they are too large.
    """
    if out.exists() and any(out.iterdir()) and not (out / "bundle.json").exists():
        raise SystemExit(f"{out} is not empty and no bundle: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    present = dict.fromkeys(MUST_EXIST) | {canonical(name): version for name, version in have.items()}
    pins = read_pins((ROOT / "constraints.txt").read_text())
    names, expected = needed(own, present, marker_values(python, machine), metadata.requires)
    wanted = [f"{name}=={pins.get(name) or metadata.version(name)}" for name in names]
    wanted += [f"{name}=={version}" for name, version in EXTRAS.items() if name not in present]
    download(wanted, out / "wheels", python, machine)
    (out / "requirements.txt").write_text("\n".join(own) + "\n")
    sizes = {path.name: path.stat().st_size for path in sorted((out / "wheels").iterdir())}
    content = {"python": python, "machine": machine, "must_exist": expected, "wheels": sizes}
    (out / "bundle.json").write_text(json.dumps(content, indent=1) + "\n")
    total = sum(sizes.values()) / 1e6
    if total > limit_mb:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        shown = ", ".join(f"{name.split('-')[0]} {sizes[name] / 1e6:.0f} MB" for name in largest)
        raise SystemExit(
            f"the wheels in {out} take {total:.0f} MB, above --limit_mb {limit_mb:g} ({shown}): name packages that "
            f"the machine has by --have, or raise the limit"
        )
    return content


def canonical(name: str) -> str:
    """A package's name in its normal form.

    >>> canonical("Math_Verify")
    'math-verify'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def named_packages(words: Iterable[str]) -> dict[str, str | None]:
    """Packages, with the version after `==`, from words or files with one a line (`pip list --format=freeze`)."""
    found: dict[str, str | None] = {}
    for word in words:
        path = Path(word)
        for line in path.read_text().splitlines() if path.is_file() else [word]:
            if match := re.match(r"([A-Za-z0-9][\w.-]*)(?:==(\S+))?", line.strip()):
                found[match[1]] = match[2]
    return found


def read_pins(constraints: str) -> dict[str, str]:
    """Package -> version, from the lines `name==version` of a constraints file."""
    return {canonical(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", constraints)}


def marker_values(python: str, machine: str) -> dict[str, str]:
    """What environment markers ask of a Linux machine."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "platform_machine": machine,
        "sys_platform": "linux",
        "os_name": "posix",
    }


def needed(
    requirements: Sequence[str],
    present: Mapping[str, str | None],
    environment: dict[str, str],
    requires: Callable[[str], list[str] | None],
) -> tuple[list[str], list[str]]:
    """The packages behind requirements, whatever they need in turn, without those present and what only they need.

    The second list has those present that are needed; one in a version that does not do is in the first. `present`:
    their versions; None: any does.

    `requires`: the requirements of an installed package (`importlib.metadata.requires`), which this reads, so that
    nothing is resolved anew. Raises SystemExit for a package that is not installed here.
    """
    from packaging.requirements import Requirement

    found: set[str] = set()
    expected: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = [("", text) for text in requirements]
    while waiting:
        extra, text = waiting.pop()
        one = Requirement(text)
        name = canonical(one.name)
        if one.marker and not one.marker.evaluate({**environment, "extra": extra}):
            continue
        if name in present:
            expected.add(name)
            version = present[name]
            if version is None or one.specifier.contains(version, prereleases=True):
                continue
        found.add(name)
        for chosen in {"", *one.extras} - {of for known, of in seen if known == name}:
            seen.add((name, chosen))
            try:
                waiting += [(chosen, inner) for inner in requires(name) or []]
            except metadata.PackageNotFoundError:
                raise SystemExit(
                    f'{name} is not installed here, so its needs are unknown: pip install -e ".[dev]"'
                ) from None
    return sorted(found), sorted(expected - found)


def download(wanted: Sequence[str], folder: Path, python: str, machine: str) -> None:
    """Fetch wheels for that machine by pip; raises SystemExit with what it says where one is missing."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    words += ["--disable-pip-version-check", "--implementation", "cp", "--python-version", python, "-d", str(folder)]
    for tag in (*(f"manylinux_2_{minor}" for minor in GLIBC), "manylinux2014", "manylinux2010", "manylinux1", "linux"):
        words += ["--platform", f"{tag}_{machine}"]
    done = subprocess.run([*words, *wanted], capture_output=True, text=True)
    if done.returncode:
        wrong = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-500:]]
        raise SystemExit(f"pip found no wheel for Python {python} on {machine}: {wrong[-1]}")


def this_python() -> str:
    """The version of this Python, as `--python` names it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def this_machine() -> str:
    """The processor of this machine."""
    return platform.machine()
