"""Whether the weight files of a model's folder are whole, from their sizes and headers; no weight is read.

A download or a copy that was interrupted leaves a file that is too short, and a clone without Git LFS leaves pointers.
Both show only when the weights load, after everything else; this finds them in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
AGAIN = "Save or download it again (hf download MODEL), or name another model"

# A repository of the hub cloned without Git LFS has such a text in place of each large file.
_POINTER = b"version https://git-lfs"
# In the order in which transformers looks for them: files of the second kind only where none of the first is there.
_KINDS = (("*.safetensors", "model.safetensors.index.json"), ("*.bin", "pytorch_model.bin.index.json"))
# A safetensors header is bounded by its library, too.
_LONGEST_HEADER = 100_000_000


def weights_fault(model: str, revision: str | None = None) -> str | None:
    """What is wrong with the weights of a model that has a config, in words; None where nothing is.

    `model`: the folder of a model or an adapter, or a hub id, whose files in the cache are looked at.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return next(_faults(folder), None) or _lack(folder)
    from huggingface_hub import constants, try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        return None
    snapshot = Path(cached).parent
    # Online, what is missing is fetched when the model loads.
    fetches = not constants.HF_HUB_OFFLINE
    return next(_faults(snapshot, fetches=fetches), None) or (None if fetches else _lack(snapshot))


def _lack(folder: Path) -> str | None:
    if any(any(folder.glob(kind)) for kind in WEIGHTS):
        return None
    started = any(folder.rglob("*.incomplete")) or any((folder.parent.parent / "blobs").glob("*.incomplete"))
    why = "; their download was interrupted" if started else ""
    return f"{folder} has a config and no weights ({', '.join(WEIGHTS)}){why}"


def _faults(folder: Path, *, fetches: bool = False) -> Iterator[str]:
    """The faults of the files that transformers would take; `fetches`: files that are missing are no fault."""
    for pattern, name in _KINDS:
        files = sorted(folder.glob(pattern))
        for path in files:
            if path.is_file():
                if fault := _fault(path):
                    yield f"{path.name} {fault}"
            elif not fetches:  # a link of the hub's cache to a file that is gone
                yield f"{path.name} is a link to a file that is not there"
        index = folder / name
        if not fetches and index.is_file() and (missing := _missing(index)):
            yield f"{name} names {missing[0]}, which is not there ({len(missing)} missing in all)"
        if files:
            return


def _fault(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            return "is a pointer of Git LFS, not the weights (git lfs pull)"
        if path.suffix != ".safetensors":
            return None if size else "is empty"
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size, _LONGEST_HEADER):
            return f"is no whole safetensors file ({size:,} bytes)"
        try:
            header = json.loads(file.read(length))
            last = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has no readable safetensors header"
    if size < 8 + length + last:
        return f"is truncated: {size:,} of {8 + length + last:,} bytes"
    return None


def _missing(index: Path) -> list[str]:
    """The shards of an index that are not in its folder."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return ["no shards"]
    return sorted(str(shard) for shard in shards if not (index.parent / str(shard)).is_file())
