"""Puts what a machine lacks on the path of the parts, from a bundle and without network.

pip decides what is missing or too old (`--dry-run`), and unpacks just that into a folder: the machine's own packages
are not touched. Where pip finds no solution, whatever is not there at all is unpacked, and its message is recorded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu.bundle import EXTRAS, canonical, this_python


def install(bundle: Path, site: Path) -> dict[str, Any]:
    """Unpack what is missing into `site`; returns the wheels, and pip's message where it found no solution.

    Raises SystemExit where the folder is no bundle, one for another Python, or pip cannot unpack a wheel.
    """
    try:
        made_for = json.loads((bundle / "bundle.json").read_text())["python"]
    except OSError:
        raise SystemExit(
            f"{bundle} holds no bundle (bundle.json): make one by gpu_day.py bundle --out {bundle}"
        ) from None
    if made_for != this_python():
        raise SystemExit(
            f"{bundle} is for Python {made_for}, this is {this_python()}: gpu_day.py bundle --python {this_python()}"
        )
    wheels = {canonical(path.name.split("-")[0]): path for path in sorted((bundle / "wheels").glob("*.whl"))}
    chosen, conflict = missing(bundle)
    if conflict:
        chosen = [name for name in wheels if not is_installed(name)]
    chosen += [name for name in EXTRAS if name in wheels and name not in chosen and not is_installed(name)]
    if chosen:
        pip("install", "--no-deps", "--no-compile", "--target", str(site), *(str(wheels[name]) for name in chosen))
    return {"wheels": sorted(wheels[name].name for name in chosen)} | ({"conflict": conflict} if conflict else {})


def missing(bundle: Path) -> tuple[list[str], str | None]:
    """The packages that pip would install from the bundle, or its message where it finds no solution."""
    words = ["install", "--dry-run", "--report", "-", "--find-links", str(bundle / "wheels")]
    try:
        report = json.loads(pip(*words, "-r", str(bundle / "requirements.txt")))
    except SystemExit as error:
        return [], str(error)
    return [canonical(item["metadata"]["name"]) for item in report["install"]], None


def is_installed(name: str) -> bool:
    """Whether this Python finds a package, in whatever version."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pip(*words: str) -> str:
    """What pip prints; raises SystemExit with its errors where it fails."""
    command = [
        sys.executable,
        "-m",
        "pip",
        words[0],
        "--quiet",
        "--isolated",
        "--no-index",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*command, *words[1:]], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match("ERROR|.*No module named", line)]
        raise SystemExit("pip: " + (" ".join(lines[:3]) or done.stderr[-500:]))
    return done.stdout
