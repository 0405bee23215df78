"""Prints constraints that keep what is installed: each installed version, and CONSTRAINTS for all other packages.

python3 pins.py CONSTRAINTS > pins.txt
"""

import re
import sys
from importlib import metadata
from pathlib import Path


def canonical(name: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str, installed: dict[str, str]) -> list[str]:
    """Lines NAME==VERSION, sorted. `installed`: versions by name; they win."""
    found = {}
    for line in constraints.splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if version:
            found[canonical(name)] = version
    found |= {canonical(name): version for name, version in installed.items()}
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    versions = {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}
    print(*pins(Path(sys.argv[1]).read_text(), versions), sep="\n")
