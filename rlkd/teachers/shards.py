"""The files of a teacher cache: `index.json`, and shards in the layout of safetensors that are mapped into memory.

A file appears under its name only when it is complete, and a shard counts only when the index lists it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkd.errors import UsageError
from rlkd.files import write_atomically
from rlkd.teachers.coding import CodedTopK

INDEX = "index.json"
VERSION = 1
# The arrays of a shard with a row per token, and those with a row per trace.
_TOKEN_ARRAYS = ("codes", "high_ids", "highest", "low_ids", "lowest", "taken")
_TRACE_ARRAYS = ("checksums", "keys", "offsets", "starts")
_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F32": np.float32}


class CacheError(UsageError):
    """A cache does not fit the run, is damaged, or lacks a row; the message says which, and the command to run."""


@dataclass(frozen=True)
class CachedTrace:
    """The key of a row: the ids of prompt and trace, the start of the trace, and a name for messages."""

    name: str
    ids: Sequence[int]
    start: int

    @property
    def key(self) -> bytes:
        """See `row_key`."""
        return row_key(self.ids)


def row_key(ids: Sequence[int]) -> bytes:
    """The key of a row: 16 bytes of a hash of its ids."""
    return hashlib.blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()


class Shard:
    """A shard file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        self.arrays = {}
        for name, entry in header.items():
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            # A plain array over the same memory: memmap's own bookkeeping costs more than the reading.
            flat = np.asarray(raw[first:last]).view(_TYPES[entry["dtype"]])
            self.arrays[name] = flat.reshape(entry["shape"])
        self.starts, self.offsets = self.arrays["starts"], self.arrays["offsets"]

    def row_keys(self) -> list[bytes]:
        """The keys of the rows, in order."""
        return [key.tobytes() for key in self.arrays["keys"]]

    def directory_digest(self) -> str:
        """The SHA-256 of the arrays that list the rows."""
        digest = hashlib.sha256()
        for name in _TRACE_ARRAYS:
            digest.update(self.arrays[name].tobytes())
        return digest.hexdigest()

    def read(self, row: int) -> CodedTopK:
        """The coded tokens of a trace. Raises `ValueError` where the checksum does not match."""
        first, last = int(self.offsets[row]), int(self.offsets[row + 1])
        coded = CodedTopK(**{name: self.arrays[name][first:last] for name in _TOKEN_ARRAYS})
        if _checksum(coded) != int(self.arrays["checksums"][row]):
            raise ValueError("the checksum does not match")
        return coded


def write_shard(folder: Path, name: str, traces: Sequence[CachedTrace], coded: Sequence[CodedTopK]) -> dict[str, Any]:
    """Write a shard, and return its entry for the index."""
    from safetensors.numpy import save

    lengths = [len(item.taken) for item in coded]
    arrays = {part: np.concatenate([getattr(item, part) for item in coded]) for part in _TOKEN_ARRAYS}
    keys = b"".join(trace.key for trace in traces)
    arrays |= {
        "checksums": np.array([_checksum(item) for item in coded], dtype=np.uint32),
        "keys": np.frombuffer(keys, dtype=np.uint8).reshape(len(traces), 16),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "starts": np.array([trace.start for trace in traces], dtype=np.int32),
    }
    content = save(arrays)
    write_atomically(folder / name, content)
    return {
        "file": name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "directory_sha256": Shard(folder / name).directory_digest(),
        "rows": len(traces),
        "tokens": sum(lengths),
    }


def _checksum(coded: CodedTopK) -> int:
    value = 0
    for name in _TOKEN_ARRAYS:
        value = zlib.crc32(getattr(coded, name).tobytes(), value)
    return value


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache folder. Raises `CacheError` where there is none, or one of another kind."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
    except FileNotFoundError:
        raise CacheError(
            f"{folder} has no teacher cache ({INDEX} is missing). Build one: python recipes/teacher_cache.py "
            f"--cache_dir {folder}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is not the index of a teacher cache ({error!r}). Build another folder") from None
    if version != VERSION:
        raise CacheError(f"{path} has version {version}; this rlkd reads version {VERSION}. Build another folder")
    return index


def size_problem(folder: Path, entry: Mapping[str, Any]) -> str | None:
    """The problem of a shard that is missing or has another size."""
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is missing ({entry['rows']} traces)"
    if size != entry["bytes"]:
        what = "truncated" if size < entry["bytes"] else "altered"
        return f"{path} is {what}: {size} bytes of {entry['bytes']} ({entry['rows']} traces)"
    return None


def altered(folder: Path, entry: Mapping[str, Any]) -> str:
    """The problem of a shard whose bytes differ from those that were written."""
    return f"{folder / entry['file']} is altered: its checksum does not match ({entry['rows']} traces)"


def build_command(entry: Mapping[str, Any]) -> str:
    """The command that built a shard or a cache."""
    return str(entry.get("made_by", {}).get("command", "python recipes/teacher_cache.py"))


def require_vocabulary(folder: Path, cached: str, given: str) -> None:
    """Raise `CacheError` where the ids of the cache and of the run are of different tokenizers."""
    if cached != given:
        raise CacheError(
            f"{folder}: the cache was built with a tokenizer of fingerprint {cached}, this run's has {given}: their "
            f"ids mean different tokens. Use the tokenizer it was built with, or build another cache_dir"
        )
