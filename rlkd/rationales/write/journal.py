"""The journal: the teacher's answers on disk, which is the only state of a run.

An answer is safe once `Journal.add` has returned: a process killed at any moment loses none. It is found by the digest
of its own request (`RationaleTeacher`). A failed request is sent again by the next start. If the run continued without
it, the journal records that (`passed_over`): an answer that comes later is marked as late, so that the bank from which
later requests were made stays as it was. `docs/rationales.md` describes what a new start sends again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd.engines import Completion
from rlkd.errors import UsageError
from rlkd.files import lock_file

# The two kinds of lines, and the check of a value: digest to answer, digest to reason.
_ANSWER = {"text": str, "finish_reason": str, "n_tokens": int}
_KINDS = {
    "answers": lambda value: isinstance(value, dict) and {name: type(each) for name, each in value.items()} == _ANSWER,
    "passed_over": lambda value: isinstance(value, str),
}
_DIGEST = re.compile("[0-9a-f]{64}")


class JournalError(UsageError):
    """A journal that cannot be used: the file, its fault, and the way out."""


class Journal:
    """Answers by the digest of their request, in a file of JSON lines that only grows.

    Memory holds the digests and the offsets of their lines, not the texts. A truncated last line is removed. Raises
    `JournalError`, and leaves the file as it is, if another line is damaged, or if another process has it open.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        lock = lock_file(self.path.with_name(f".{self.path.name}.lock"))
        if lock is None:
            raise JournalError(
                f"{self.path} is being written by another process. Wait for it, or name another output_dir"
            )
        self._lock = lock
        self._offsets: dict[str, int] = {}
        self.passed_over: dict[str, str] = {}
        """Requests without which an earlier start continued, and why."""
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        self._file = self.path.open("a+b")
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()
        self._lock.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, digest: str) -> bool:
        return digest in self._offsets

    def get(self, digest: str) -> Completion | None:
        """The answer to a request; None if there is none."""
        offset = self._offsets.get(digest)
        if offset is None:
            return None
        if self._last[0] != offset:
            self._file.seek(offset)
            self._last = offset, json.loads(self._file.readline())["answers"]
        return Completion(**self._last[1][digest])

    def add(self, answers: Mapping[str, Completion]) -> None:
        """Record the answers of one call, in one line."""
        if answers:
            offset = self._append({"answers": {digest: vars(answer) for digest, answer in answers.items()}})
            self._offsets.update(dict.fromkeys(answers, offset))

    def pass_over(self, failures: Mapping[str, str]) -> None:
        """Record that the run continues without these requests, digest to reason."""
        new = {digest: reason for digest, reason in failures.items() if digest not in self.passed_over}
        if new:
            self._append({"passed_over": new})
            self.passed_over.update(new)

    def _append(self, record: Mapping[str, Any]) -> int:
        offset = self._file.seek(0, os.SEEK_END)
        # One write: a kill leaves the whole line, none of it, or a truncated one at the very end.
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        return offset

    def _read(self) -> None:
        offset = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            starts = [b'{"%s": {' % kind.encode() for kind in _KINDS]
            if not line.endswith(b"\n") and any(line.startswith(start[: len(line)]) for start in starts):
                self._file.truncate(offset)
                return
            try:
                kind, entries = _parsed(line)
            except ValueError as error:
                raise JournalError(
                    f"{self.path}, line {number}: not a line of a journal ({error}). Delete that line, and its "
                    f"requests are sent again; or name another output_dir"
                ) from error
            if kind == "answers":
                self._offsets.update(dict.fromkeys(entries, offset))
            else:
                self.passed_over.update(entries)
            offset += len(line)


def _parsed(line: bytes) -> tuple[str, dict[str, Any]]:
    """The kind and the entries of a line; raises ValueError for a line of another form."""
    record = json.loads(line) if line.endswith(b"\n") else None
    if isinstance(record, dict) and len(record) == 1:
        [(kind, entries)] = record.items()
        if kind in _KINDS and isinstance(entries, dict) and all(map(_DIGEST.fullmatch, entries)):
            if not all(map(_KINDS[kind], entries.values())):
                raise ValueError(f"found {str(entries)[:80]}")
            return kind, entries
    raise ValueError("neither answers nor passed-over requests")
