"""Adapters that travel as files in a weight update, and the folder in which a server finds each of them.

vLLM loads an adapter from a folder that it can read. Where trainer and server share none, a weight update brings the
files, as bytes: `rlkd-1a2b3c4d-v3/adapter_config.json` names a file of the third adapter of a run.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FILES = ("adapter_config.json", "adapter_model.safetensors")
ADAPTER = re.compile(r"(rlkd-[0-9a-f]{8})-v\d+")
"""The name of an adapter; its group is the run."""

# A request in progress may have vLLM read its adapter again, which is that of the version before at the oldest.
KEPT = 2


def server_folder(adapter: str) -> Path:
    """Where a server stores an adapter that it has received. Both sides know it, so it does not depend on TMPDIR."""
    return Path("/tmp") / adapter


def are_files(names: Sequence[str]) -> bool:
    """Whether the names of an update are those of files; names of weights have no slash."""
    return bool(names) and all("/" in name for name in names)


class ReceivedAdapters:
    """The adapters of one worker's updates, of which the last ones are kept, and none at the end of the process."""

    def __init__(self) -> None:
        self._names: list[str] = []
        atexit.register(self.clear)

    def store(self, files: Iterable[tuple[str, Any]]) -> None:
        """Write files, each a name and a tensor of bytes; raises `ValueError` for a name that is none of an adapter.

        `PermissionError`: another user has made the folder. All users of a machine may write to /tmp.
        The workers of one machine write the same files, so each is written aside and renamed.
        """
        for name, content in files:
            adapter, _, file = name.partition("/")
            if not ADAPTER.fullmatch(adapter) or file not in FILES:
                raise ValueError(f"{name!r} is no file of an adapter")
            folder = server_folder(adapter)
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to another user")
            written = folder / f".{file}.{os.getpid()}"
            written.write_bytes(content.cpu().numpy().tobytes())
            written.replace(folder / file)
            if adapter not in self._names:
                self._names.append(adapter)
        while len(self._names) > KEPT:
            shutil.rmtree(server_folder(self._names.pop(0)), ignore_errors=True)

    def clear(self) -> None:
        """Remove all of them."""
        while self._names:
            shutil.rmtree(server_folder(self._names.pop()), ignore_errors=True)
