"""Free space in the folders that rlkd writes to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlkd.doctor.findings import GIB, Finding, size
from rlkd.models import cache_folder

# Below it, a folder is a warning: one checkpoint of a model with a billion parameters takes more.
SPARE = 5 * GIB


def check_disk(output: Path) -> Iterator[Finding]:
    """The cache folders and the output folder of runs: whether they can be written, and their free space."""
    yield check_folder("cache", cache_folder(), "RLKD_CACHE=FOLDER names another one.")
    yield check_folder("hub cache", hub_cache(), "HF_HOME=FOLDER names another one.")
    yield check_folder("output", output, "output_dir (here: --output) names another one.")


def check_folder(name: str, folder: Path, way_out: str) -> Finding:
    """A folder, which need not exist yet."""
    above = next((path for path in (folder, *folder.resolve().parents) if path.exists()), Path("/"))
    label = f"{name}: {folder}"
    if not above.is_dir():
        return Finding("disk", "problem", f"{label}: {above} is a file", way_out)
    if not os.access(above, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{label}: no right to write to {above}", way_out)
    free = shutil.disk_usage(above).free
    if free < SPARE:
        return Finding("disk", "warning", f"{label}: {size(free)} free", f"Checkpoints are large. {way_out}")
    return Finding("disk", "ok", f"{label}: {size(free)} free")


def hub_cache() -> Path:
    """Where models and datasets of the hub are stored, as huggingface_hub finds it."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(given).expanduser() if given else Path(home).expanduser() / "hub"
