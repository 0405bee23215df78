"""A teacher's top-k log-probabilities on disk, so that training needs no teacher.

Damaged data are never used: sizes are compared when a cache is opened, a row's checksum when it is read, SHA-256 of
whole shards by `check_cache` and before each build. The bytes depend on the traces, the teacher and the shard size,
not on interruptions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.files import lock_file, write_atomically
from rlkd.teachers.coding import CodedTopK, bytes_per_token, decode, encode
from rlkd.teachers.shards import (
    INDEX,
    VERSION,
    CachedTrace,
    CacheError,
    Shard,
    altered,
    build_command,
    read_index,
    require_vocabulary,
    row_key,
    size_problem,
    write_shard,
)
from rlkd.teachers.topk import TopK
from rlkd.teachers.vocabulary import vocabulary_fingerprint

if TYPE_CHECKING:
    from rlkd.teachers.topk import TopKTeacher

__all__ = ["CacheBuild", "CacheError", "CachedTeacher", "CachedTrace", "build_cache", "check_cache"]

log = logging.getLogger(__name__)

_BATCH_TOKENS = 32768  # traces per call of the teacher: its output lies in memory uncoded


class CachedTeacher:
    """The teacher of a cache folder, a `rlkd.teachers.topk.TopKTeacher` without a model.

    A `tokenizer` or `k` other than the cache's is refused. Opening reads the index and the lists of rows; the rest is
    mapped into memory and read on demand. Raises `CacheError` where the folder has no cache, or a shard is missing or
    has another size. Pickles as its arguments.
    """

    def __init__(self, folder: str | Path, *, tokenizer: Any = None, k: int | None = None) -> None:
        self.folder = Path(folder)
        self._tokenizer = tokenizer
        self._expected_k = k
        self.index = read_index(self.folder)
        self.name: str = self.index["teacher"]
        self.k: int = self.index["k"]
        self.vocabulary: str = self.index["vocabulary"]
        if k is not None and k != self.k:
            raise CacheError(
                f"{self.folder}: the cache has k = {self.k} tokens per position, this run expects k = {k}. Set k to "
                f"{self.k}, or build another folder: {build_command(self.index)}"
            )
        if tokenizer is not None:
            require_vocabulary(self.folder, self.vocabulary, vocabulary_fingerprint(tokenizer))
        self._id_bits: int = self.index["id_bits"]
        self._shards: list[Shard] = []
        self._rows: dict[bytes, tuple[int, int]] = {}
        for number, entry in enumerate(self.index["shards"]):
            if problem := size_problem(self.folder, entry):
                raise CacheError(_rebuild(problem, entry))
            shard = Shard(self.folder / entry["file"])
            if shard.directory_digest() != entry["directory_sha256"]:
                raise CacheError(_rebuild(altered(self.folder, entry), entry))
            self._shards.append(shard)
            for row, key in enumerate(shard.row_keys()):
                self._rows[key] = number, row

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.folder, tokenizer=self._tokenizer, k=self._expected_k), ()

    def __repr__(self) -> str:
        return f"<top-{self.k} teacher {self.name} from {self.folder}>"

    def __len__(self) -> int:
        """The number of traces."""
        return len(self._rows)

    def __bool__(self) -> bool:
        return True

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`. Raises `CacheError` for a sequence that has no row, and for a damaged one."""
        if len(sequences) != len(starts):
            raise ValueError(f"{len(sequences)} sequences and {len(starts)} starts: expected one start each")
        return [self._read(*pair, index) for index, pair in enumerate(zip(sequences, starts, strict=True))]

    def _read(self, ids: Sequence[int], start: int, index: int) -> TopK:
        found = self._rows.get(row_key(ids))
        if found is None:
            raise CacheError(self._missing(ids, start, f"has no row for sequence {index}"))
        number, row = found
        shard = self._shards[number]
        stored = int(shard.starts[row])
        if not stored <= start < len(ids):
            reason = f"has tokens {stored} to {len(ids) - 1} of sequence {index}, but not from {start} on"
            raise CacheError(self._missing(ids, start, reason))
        try:
            coded = shard.read(row)
        except ValueError:
            entry = self.index["shards"][number]
            raise CacheError(_rebuild(f"{altered(self.folder, entry)}, at its row {row}", entry)) from None
        top, skipped = decode(coded, self._id_bits), start - stored
        return TopK(top.ids[skipped:], top.logprobs[skipped:], top.taken[skipped:]) if skipped else top

    def require(self, traces: Iterable[CachedTrace]) -> None:
        """Raise `CacheError` unless each trace has a row."""
        total, missing, first = 0, 0, None
        for trace in traces:  # there may be far more than fit into memory
            total += 1
            if trace.key not in self._rows:
                missing += 1
                first = first or trace
        if first is not None:
            reason = f"has no row for {missing} of {total} traces, the first is {first.name}"
            raise CacheError(self._missing(first.ids, first.start, reason))

    def _missing(self, ids: Sequence[int], start: int, reason: str) -> str:
        shown = f"{len(ids)} tokens, the trace from {start} on"
        if self._tokenizer is not None:
            shown += f": {self._tokenizer.decode(list(ids[start : start + 40]))!r}"
        commands = dict.fromkeys(map(build_command, [*self.index["shards"], self.index]))
        settings = ", ".join(f"{key} {value}" for key, value in self.index["made_by"].items() if key != "command")
        return (
            f"{self.folder} {reason} ({shown}; hash {row_key(ids).hex()}; the cache has {len(self)} traces of "
            f"{self.name}). Rows are found by their exact ids: data, prompt, chat template and maximum completion "
            f"length must be those it was built with ({settings}). To add what is missing: {' or '.join(commands)}"
        )


@dataclass(frozen=True)
class CacheBuild:
    """A build: traces cached before and computed, problems of damaged shards, and the cache's tokens and bytes."""

    cached: int
    computed: int
    damaged: list[str]
    tokens: int
    bytes: int


def build_cache(
    folder: str | Path,
    teacher: TopKTeacher,
    traces: Iterable[CachedTrace],
    *,
    vocabulary_size: int,
    made_by: Mapping[str, Any],
    shard_bytes: int = 16 * 2**20,
    report: Callable[[str], None] = log.info,
) -> CacheBuild:
    """Run the teacher on every trace that the folder has no row for, shard by shard; equal traces have one row.

    Args:
        vocabulary_size: ids of the teacher's head, which determine the bits of an id.
        made_by: shown where a row is missing: `command`, which builds it, and the settings that the ids depend on.
        shard_bytes: size limit of a shard, and the work that is lost at most when a build is killed.
        report: gets a line for each shard.

    Raises `CacheError` where the folder is another teacher's, tokenizer's or k's, another process builds it, or a
    damaged shard was built of other traces: nothing is deleted then. Shards before an error of the teacher stay.
    """
    traces, folder = list(traces), Path(folder)
    id_bits = max(16, (vocabulary_size - 1).bit_length())
    head: dict[str, Any] = {
        "version": VERSION,
        "teacher": teacher.name,
        "vocabulary": teacher.vocabulary,
        "k": teacher.k,
        "id_bits": id_bits,
    }
    lock = lock_file(folder / ".lock")
    if lock is None:
        raise CacheError(f"{folder} is being built by another process. Wait for it, or name another cache_dir")
    with lock:
        index = read_index(folder) if (folder / INDEX).exists() else {**head, "shards": []}
        _require_same(folder, index, head)
        index = {**head, "made_by": dict(made_by), "shards": index["shards"]}
        problems, lost_rows = _drop_damaged(folder, index, {trace.key for trace in traces}, report)
        listed = {entry["file"] for entry in index["shards"]}
        keys = {key for entry in index["shards"] for key in Shard(folder / entry["file"]).row_keys()}
        cached = len(keys)
        missing = []
        for trace in traces:
            if trace.key not in keys:
                keys.add(trace.key)
                missing.append(trace)
        if lost_rows > len(missing):
            report(
                f"{lost_rows - len(missing)} traces or more of the damaged shards are not given again, and are lost."
            )
        names = (name for number in range(10**9) if (name := f"shard-{number:05d}.safetensors") not in listed)
        done = 0
        for group in _groups(missing, shard_bytes, bytes_per_token(teacher.k, id_bits)):
            entry = write_shard(folder, next(names), group, _coded(teacher, group, id_bits))
            index["shards"].append(entry | {"made_by": dict(made_by)})
            index["shards"].sort(key=lambda entry: entry["file"])
            _write_index(folder, index)
            done += len(group)
            report(
                f"{folder / entry['file']}: {len(group)} traces, {entry['tokens']} tokens "
                f"({done} of {len(missing)} traces)"
            )
    return CacheBuild(
        cached=cached,
        computed=len(missing),
        damaged=problems,
        tokens=sum(entry["tokens"] for entry in index["shards"]),
        bytes=sum(entry["bytes"] for entry in index["shards"]),
    )


def check_cache(folder: str | Path) -> list[str]:
    """The problems of a cache, one for each shard that is missing, truncated or altered. Reads all of it."""
    folder = Path(folder)
    return [problem for entry in read_index(folder)["shards"] if (problem := _problem(folder, entry))]


def _drop_damaged(
    folder: Path, index: dict[str, Any], given: set[bytes], report: Callable[[str], None]
) -> tuple[list[str], int]:
    """Take damaged shards out of the index, and delete files that it does not list; problems, and rows of these."""
    problems = {entry["file"]: problem for entry in index["shards"] if (problem := _problem(folder, entry))}
    damaged = [entry for entry in index["shards"] if entry["file"] in problems]
    for entry in damaged:
        if not _covers(folder, entry, given, index["made_by"]):
            raise CacheError(
                f"{problems[entry['file']]}, and it was built of other traces than these. Rebuild it first: "
                f"{build_command(entry)}"
            )
    for problem in problems.values():
        report(f"{problem}. It is rebuilt.")
    index["shards"] = [entry for entry in index["shards"] if entry["file"] not in problems]
    # Files outside the index are incomplete, or were not listed yet; damaged shards leave it before they are deleted.
    _write_index(folder, index)
    listed = {entry["file"] for entry in index["shards"]}
    for path in [*folder.glob("shard-*.safetensors"), *folder.glob(".*.part")]:
        if path.name not in listed:
            path.unlink()
    return list(problems.values()), sum(entry["rows"] for entry in damaged)


def _coded(teacher: TopKTeacher, traces: Sequence[CachedTrace], id_bits: int) -> list[CodedTopK]:
    coded = []
    for batch in _groups(traces, _BATCH_TOKENS, 1):
        tops = teacher.top_k([trace.ids for trace in batch], [trace.start for trace in batch])
        for trace, top in zip(batch, tops, strict=True):
            try:
                coded.append(encode(top, id_bits))
            except ValueError as error:
                raise CacheError(f"the teacher {teacher.name} on {trace.name}: {error}") from error
    return coded


def _groups(traces: Sequence[CachedTrace], limit: int, per_token: int) -> Iterator[list[CachedTrace]]:
    group: list[CachedTrace] = []
    size = 0
    for trace in traces:
        needed = (len(trace.ids) - trace.start) * per_token
        if group and size + needed > limit:
            yield group
            group, size = [], 0
        group.append(trace)
        size += needed
    if group:
        yield group


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    write_atomically(folder / INDEX, json.dumps(index, indent=1))


def _problem(folder: Path, entry: Mapping[str, Any]) -> str | None:
    if problem := size_problem(folder, entry):
        return problem
    with (folder / entry["file"]).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == entry["sha256"] else altered(folder, entry)


def _rebuild(problem: str, entry: Mapping[str, Any]) -> str:
    return f"{problem}. This command rebuilds it, alone: {build_command(entry)}"


def _covers(folder: Path, entry: Mapping[str, Any], given: set[bytes], made_by: Mapping[str, Any]) -> bool:
    """Whether a damaged shard can be rebuilt of the given traces: they hold its rows, or its own command gave them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        shard = Shard(folder / entry["file"])
        if shard.directory_digest() == entry["directory_sha256"]:
            return given.issuperset(shard.row_keys())
    return entry.get("made_by", made_by) == made_by


def _require_same(folder: Path, index: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    require_vocabulary(folder, index["vocabulary"], head["vocabulary"])
    for key, what in (("teacher", "the teacher is"), ("k", "k is"), ("id_bits", "the number of bits of an id is")):
        if index[key] != head[key]:
            raise CacheError(
                f"{folder}: {what} {index[key]} in the cache and {head[key]} in this run. One folder holds one "
                f"teacher and k: name another cache_dir, or delete this one"
            )
