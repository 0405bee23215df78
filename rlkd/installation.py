"""Where this distribution's recipes and studies are, in a checkout and after `pip install`.

Found by path and not by import: other distributions have packages called "recipes", too.
"""

from __future__ import annotations

from pathlib import Path

import rlkd

HOME = Path(rlkd.__file__).resolve().parent.parent


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted((HOME / "recipes").glob("*.py")) if not path.stem.startswith("_")}


def studies() -> dict[str, Path]:
    """The files of the included studies by name."""
    return {path.stem: path for path in sorted((HOME / "recipes" / "studies").glob("*.yaml"))}
