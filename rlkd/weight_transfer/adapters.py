"""Adapters that travel as files in a weight update, and the folder in which a server finds each of them.

vLLM loads an adapter from a folder that it can read. Where trainer and server share none, a weight update brings the
files, as bytes: `rlkd-1a2b3c4d-v3-5e6f7a8b/adapter_config.json` names a file of the third adapter of a run. The last
part belongs to one server, since servers of a machine get the same adapters, and each removes its own.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FILES = ("adapter_config.json", "adapter_model.safetensors")
ADAPTER = re.compile(r"(rlkd-[0-9a-f]{8})-v\d+")
"""The name of an adapter; its group is the run."""
_FOLDER = re.compile(rf"{ADAPTER.pattern}-[0-9a-f]{{8}}")

# A request in progress may have vLLM read its adapter again, which is that of the version before at the oldest.
KEPT = 2


def server_folder(adapter: str, server: str) -> Path:
    """Where a server stores an adapter that it has received. Both sides know it, so it does not depend on TMPDIR.

    `server`: eight hexadecimal digits that no other server of the machine has.
    """
    return Path("/tmp") / f"{adapter}-{server}"


def are_files(names: Sequence[str]) -> bool:
    """Whether the names of an update are those of files; names of weights have no slash."""
    return bool(names) and all("/" in name for name in names)


class ReceivedAdapters:
    """The adapters of one worker's updates, of which the last ones are kept, and none at the end of the process."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        atexit.register(self.clear)

    def store(self, files: Iterable[tuple[str, Any]]) -> None:
        """Write files, each a name and a tensor of bytes; raises `ValueError` for a name that is none of an adapter.

        `PermissionError`: the folder is not this user's alone. All users of a machine may write to /tmp.
        The workers of one server write the same files, so each is written aside and renamed.
        """
        for name, content in files:
            place, _, file = name.partition("/")
            if not _FOLDER.fullmatch(place) or file not in FILES:
                raise ValueError(f"{name!r} is no file of an adapter")
            folder = Path("/tmp") / place
            with suppress(FileExistsError):  # a file, or a link to nowhere
                folder.mkdir(mode=0o700, exist_ok=True)
            _check_private(folder)
            written = folder / f".{file}.{os.getpid()}"
            written.write_bytes(content.cpu().numpy().tobytes())
            written.replace(folder / file)
            if folder not in self._folders:
                self._folders.append(folder)
        while len(self._folders) > KEPT:
            shutil.rmtree(self._folders.pop(0), ignore_errors=True)

    def clear(self) -> None:
        """Remove all of them."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{folder} is not a folder of this user alone ({stat.filemode(found.st_mode)}, user {found.st_uid}), so "
            f"that others could change the adapter there. Remove it"
        )
