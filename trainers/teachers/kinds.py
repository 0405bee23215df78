"""The kinds of teachers, as a config names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkd.engines import is_engine_spec

WITH_WEIGHTS = ("model", "self")
"""The kinds of teachers whose weights are in this process."""


def kind_of_teacher(teacher: Any) -> str:
    """The kind of a run's teacher: `engine`, `cache`, `top_k` (an object of that protocol), `self` or `model`."""
    if not isinstance(teacher, str):
        return "top_k" if hasattr(teacher, "top_k") and hasattr(teacher, "vocabulary") else "model"
    if teacher == "self":
        return "self"
    # A cache has an index, a folder of `save_pretrained` a config.
    folder = Path(teacher).expanduser()
    if (folder / "index.json").is_file() and not (folder / "config.json").is_file():
        return "cache"
    return "engine" if is_engine_spec(teacher) and not folder.is_dir() else "model"
