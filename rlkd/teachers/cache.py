"""A teacher's top-k log-probabilities on disk, so that training needs no teacher.

`recipes/teacher_cache.py` writes such a folder, `CachedTeacher` reads it:

    >>> teacher = CachedTeacher("runs/teacher-cache", tokenizer=student_tokenizer)  # doctest: +SKIP
    >>> [top] = teacher.top_k([prompt_ids + completion_ids], [len(prompt_ids)])  # doctest: +SKIP

The folder:

    index.json              whose log-probabilities, of which ids, and for each shard: bytes, SHA-256, rows, command
    shard-00000.safetensors a few thousand traces: their rows in arrays that are mapped into memory, never read whole

What holds:

1. A row is found under the hash of its exact ids, in time that does not depend on the number of rows. Any number of
   processes may read.
2. A shard appears under its name when it is whole, and counts when it stands in the index. A build that was killed
   goes on where the index ends; a shard that was cut or altered is named and built again, alone, by the command that
   built it. A build of other traces refuses, and takes nothing away.
3. What is damaged is never taken for a teacher's word: sizes are compared when a cache is opened, a row's checksum
   when it is read, SHA-256 of whole shards by `check` and before each build.
4. The bytes depend on the traces, the teacher and the size of a shard, not on interruptions.

**The coding** (our choice, by measurement: `docs/teacher_cache.md`). An id takes 16 bits, and those above them, where
the vocabulary needs any, lie packed in a plane of their own. A log-probability takes 16 bits: its place between the
lowest and the highest of its position, which are kept in 32. Both are then shifted so that the k probabilities sum to
what they summed to before, since the tail's mass is what is missing from 1, and a small tail has a large say in a
reverse KL. The error of a log-probability is at most (highest - lowest) / 65,535, a range that is cut at 64: below
1e-3, in practice 2e-4. The log-probability of the token that stands there is kept in 32 bits, exactly.
Of k = 64 that is 268 bytes a token where the vocabulary has up to 65,536 ids, 284 where it has up to 262,144.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlkd.errors import UsageError
from rlkd.files import write_atomically
from rlkd.teachers.topk import TopK, vocabulary_fingerprint

if TYPE_CHECKING:
    from rlkd.teachers.topk import TopKTeacher

log = logging.getLogger(__name__)

LARGEST_RANGE = 64.0
"""Log-probabilities further than this below the likeliest of their position are kept as so far: e**-64 is no mass."""

_INDEX = "index.json"
_VERSION = 1
_LEVELS = 65535
_BATCH_TOKENS = 32768  # traces that a teacher is asked for at once: what it answers lies in memory uncoded
# The arrays of a shard that have a row for each token, and those that have one for each trace.
_OF_TOKENS = ("codes", "high_ids", "highest", "low_ids", "lowest", "taken")
_OF_ROWS = ("checksums", "keys", "offsets", "starts")
_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F32": np.float32}


class CacheError(UsageError):
    """A cache is not what was asked for, is damaged, or lacks a row; the message says which, and the command."""


@dataclass(frozen=True)
class Trace:
    """What a cache has a row for: the ids of prompt and trace, where the trace starts, and a name for messages."""

    name: str
    ids: Sequence[int]
    start: int


@dataclass(frozen=True)
class Built:
    """What a build did: traces that were there, traces that the teacher was asked for, what was found damaged.

    `tokens` and `bytes` are those of the whole cache: tokens of traces, and bytes of its shards.
    """

    kept: int
    computed: int
    damaged: list[str]
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Coded:
    """`TopK` as it lies in a shard, n tokens.

    `low_ids` [n, k] uint16 and `high_ids` [n, ...] uint8, packed; `codes` [n, k] uint16, 0 for the highest; `highest`,
    `lowest`, `taken` [n] float32.
    """

    low_ids: np.ndarray
    high_ids: np.ndarray
    codes: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    taken: np.ndarray


def encode(top: TopK, id_bits: int) -> Coded:
    """Code what a teacher said; `id_bits` is the number of bits that its largest id needs, at least 16.

    Raises `ValueError` for an id that needs more, and for log-probabilities that are no numbers or above 0.
    """
    ids, logprobs = top.ids.numpy(), top.logprobs.numpy().astype(np.float64)
    if ids.size and not (ids.min() >= 0 and int(ids.max()) < 2**id_bits):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: expected 0 to {2**id_bits - 1} ({id_bits} bits)")
    if not (np.isfinite(logprobs).all() and (logprobs <= 1e-6).all() and np.isfinite(top.taken.numpy()).all()):
        raise ValueError("a log-probability is no number or above 0")
    n, k = ids.shape
    extra = id_bits - 16
    planes = (ids[:, :, None] >> np.arange(16, id_bits)) & 1
    high_ids = np.packbits(planes.astype(np.uint8).reshape(n, k * extra), axis=1)

    highest = logprobs.max(1, keepdims=True, initial=-np.inf)
    logprobs = np.maximum(logprobs, highest - LARGEST_RANGE)
    lowest = logprobs.min(1, keepdims=True, initial=np.inf)
    spread = np.where(highest > lowest, highest - lowest, 1.0)
    codes = np.rint((highest - logprobs) / spread * _LEVELS).astype(np.uint16)
    decoded = _decoded(codes, highest[:, 0].astype(np.float32), lowest[:, 0].astype(np.float32)).astype(np.float64)
    shift = np.log(np.exp(logprobs).sum(1) / np.exp(decoded).sum(1))
    return Coded(
        low_ids=(ids & 0xFFFF).astype(np.uint16),
        high_ids=high_ids,
        codes=codes,
        highest=np.minimum(highest[:, 0] + shift, 0).astype(np.float32),
        lowest=np.minimum(lowest[:, 0] + shift, 0).astype(np.float32),
        taken=top.taken.numpy().astype(np.float32),
    )


def decode(coded: Coded, id_bits: int) -> TopK:
    """What `encode` coded, as near as the coding is."""
    import torch

    n, k = coded.low_ids.shape
    ids = coded.low_ids.astype(np.int32)
    extra = id_bits - 16
    if extra:
        planes = np.unpackbits(coded.high_ids, axis=1, count=k * extra).reshape(n, k, extra)
        for plane in range(extra):
            ids |= planes[:, :, plane].astype(np.int32) << (16 + plane)
    logprobs = _decoded(coded.codes, coded.highest, coded.lowest)
    return TopK(torch.from_numpy(ids), torch.from_numpy(logprobs), torch.from_numpy(np.array(coded.taken)))


def quantised(top: TopK) -> TopK:
    """What a cache would give back for this: so a live teacher can be compared with its cache, bit for bit."""
    id_bits = max(16, int(top.ids.max()).bit_length()) if top.ids.numel() else 16
    return decode(encode(top, id_bits), id_bits)


def _decoded(codes: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """In float32, one operation after the other: the same bits on every machine."""
    step = (highest - lowest) / np.float32(_LEVELS)
    return highest[:, None] - codes.astype(np.float32) * step[:, None]


def bytes_per_token(k: int, id_bits: int) -> int:
    """Bytes that a shard has for each token of a trace, apart from the 32 or so for each trace."""
    return k * (2 + 2) + math.ceil(k * (id_bits - 16) / 8) + 3 * 4


class CachedTeacher:
    """The teacher of a cache folder, a `rlkd.teachers.topk.TopKTeacher` without a model.

    Args:
        folder: where `recipes/teacher_cache.py` wrote it.
        tokenizer: of the ids that will be asked for; another than the cache's is refused.
        k: how many tokens of each position are expected; any number where it is not given.

    Opening reads the index and the lists of rows; the rest is mapped into memory and read where it is needed. Raises
    `CacheError` where the folder has no cache, a shard is missing or has another size, or tokenizer or k differ.
    Pickles as its arguments.
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
                f"{self.folder}: the cache has k = {self.k} tokens of each position, this run expects k = {k}. Set k "
                f"to {self.k}, or build another folder: {self._command}"
            )
        if tokenizer is not None:
            _require_vocabulary(self.folder, self.vocabulary, vocabulary_fingerprint(tokenizer))
        self._id_bits: int = self.index["id_bits"]
        self._shards: list[_Shard] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for number, entry in enumerate(self.index["shards"]):
            if problem := _size_problem(self.folder, entry):
                raise CacheError(f"{problem}. It is built again, alone, by: {_command(entry)}")
            shard = _Shard(self.folder / entry["file"])
            if shard.directory_digest() != entry["directory_sha256"]:
                raise CacheError(f"{_altered(self.folder, entry)}. It is built again, alone, by: {_command(entry)}")
            self._shards.append(shard)
            for row, key in enumerate(shard.row_keys()):
                self._places[key] = number, row

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self.folder, tokenizer=self._tokenizer, k=self._expected_k), ()

    def __repr__(self) -> str:
        return f"<top-{self.k} teacher {self.name} from {self.folder}>"

    def __len__(self) -> int:
        """The number of traces."""
        return len(self._places)

    def __bool__(self) -> bool:
        return True

    @property
    def _command(self) -> str:
        return self.index["made_by"].get("command", "python recipes/teacher_cache.py")

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`. Raises `CacheError` for a sequence that has no row, and for a damaged one."""
        if len(sequences) != len(starts):
            raise ValueError(f"{len(sequences)} sequences and {len(starts)} starts: expected one start each")
        found = []
        for place, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
            where = self._places.get(row_key(ids))
            if where is None:
                raise CacheError(self._missing(ids, start, f"has no row for sequence {place}"))
            number, row = where
            shard = self._shards[number]
            stored = int(shard.starts[row])
            if not stored <= start < len(ids):
                reason = f"holds tokens {stored} to {len(ids) - 1} of sequence {place}, and {start} on is asked for"
                raise CacheError(self._missing(ids, start, reason))
            try:
                coded = shard.read(row)
            except ValueError:
                entry = self.index["shards"][number]
                raise CacheError(
                    f"{_altered(self.folder, entry)}, at its row {row}. It is built again, alone, by: "
                    f"{_command(entry)}"
                ) from None
            top = decode(coded, self._id_bits)
            skipped = start - stored
            if skipped:
                top = TopK(top.ids[skipped:], top.logprobs[skipped:], top.taken[skipped:])
            found.append(top)
        return found

    def require(self, traces: Iterable[Trace]) -> None:
        """Raise `CacheError` unless there is a row for each trace: how many have none, and which is the first."""
        total, lacking, first = 0, 0, None
        for trace in traces:  # which may be far more than fit into memory
            total += 1
            if row_key(trace.ids) not in self._places:
                lacking += 1
                first = first or trace
        if first is not None:
            reason = f"has no row for {lacking} of {total} traces, the first is {first.name}"
            raise CacheError(self._missing(first.ids, first.start, reason))

    def _missing(self, ids: Sequence[int], start: int, reason: str) -> str:
        shown = f"{len(ids)} tokens, the trace from {start} on"
        if self._tokenizer is not None:
            shown += f": {self._tokenizer.decode(list(ids[start : start + 40]))!r}"
        commands = dict.fromkeys([*map(_command, self.index["shards"]), self._command])
        made = ", ".join(f"{key} {value}" for key, value in self.index["made_by"].items() if key != "command")
        return (
            f"{self.folder} {reason} ({shown}; hash {row_key(ids).hex()}; the cache has {len(self)} traces of "
            f"{self.name}). Rows are found by their exact ids: data, prompt, chat template and the longest completion "
            f"must be those it was built with ({made}). To add what is missing: {' or '.join(commands)}"
        )


def row_key(ids: Sequence[int]) -> bytes:
    """What a row is found under: 16 bytes of a hash of its ids."""
    return hashlib.blake2b(np.asarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()


def build(
    folder: str | Path,
    teacher: TopKTeacher,
    traces: Iterable[Trace],
    *,
    vocabulary_size: int,
    made_by: Mapping[str, Any],
    shard_bytes: int = 16 * 2**20,
    say: Callable[[str], None] = log.info,
) -> Built:
    """Ask the teacher for every trace that the folder has no row for, shard by shard.

    Args:
        vocabulary_size: ids of the teacher's head, so that their bits are known.
        made_by: what is told where a row is missing: `command`, which builds it, and what the ids depend on.
        shard_bytes: a shard ends before its traces take more; so much work at most is lost when a build is killed.
        say: gets a line for each shard.

    Equal traces have one row. Raises `CacheError` where the folder is another teacher's, tokenizer's or k's, where
    another process builds it, and where a damaged shard was built of other traces: nothing is removed then. What the
    teacher raises ends the build, and the shards before it stay.
    """
    traces = list(traces)
    folder = Path(folder)
    id_bits = max(16, (vocabulary_size - 1).bit_length())
    head: dict[str, Any] = {
        "version": _VERSION,
        "teacher": teacher.name,
        "vocabulary": teacher.vocabulary,
        "k": teacher.k,
        "id_bits": id_bits,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        index = read_index(folder) if (folder / _INDEX).exists() else {**head, "shards": []}
        _require_same(folder, index, head)
        index = {**head, "made_by": dict(made_by), "shards": index["shards"]}
        problems = {entry["file"]: problem for entry in index["shards"] if (problem := _problem(folder, entry))}
        given = {row_key(trace.ids) for trace in traces}
        for entry in index["shards"]:
            if entry["file"] in problems and not _covers(folder, entry, given, made_by):
                raise CacheError(
                    f"{problems[entry['file']]}, and it was built of other traces than these. Build it again first: "
                    f"{_command(entry)}"
                )
        for problem in problems.values():
            say(f"{problem}. It is built again.")
        damaged = [entry for entry in index["shards"] if entry["file"] in problems]
        index["shards"] = [entry for entry in index["shards"] if entry["file"] not in problems]
        # What is not in the index was cut off, or not counted yet; damaged shards are out of it before they go.
        _write_index(folder, index)
        counted = {entry["file"] for entry in index["shards"]}
        for path in [*folder.glob("shard-*.safetensors"), *folder.glob(".*.part")]:
            if path.name not in counted:
                path.unlink()

        known = {key for entry in index["shards"] for key in _Shard(folder / entry["file"]).row_keys()}
        kept, missing = len(known), []
        for trace in traces:
            key = row_key(trace.ids)
            if key not in known:
                known.add(key)
                missing.append(trace)
        lost = sum(entry["rows"] for entry in damaged) - len(missing)
        if lost > 0:
            say(f"{lost} traces or more of the damaged shards are not among those given, and are lost.")
        numbers = (number for number in range(10**9) if _file_name(number) not in counted)
        total = len(missing)
        done = 0
        for group in _groups(missing, shard_bytes, bytes_per_token(teacher.k, id_bits)):
            entry = _write_shard(folder, _file_name(next(numbers)), group, teacher, id_bits) | {
                "made_by": dict(made_by)
            }
            index["shards"] = sorted([*index["shards"], entry], key=lambda entry: entry["file"])
            _write_index(folder, index)
            done += len(group)
            say(f"{folder / entry['file']}: {len(group)} traces, {entry['tokens']} tokens ({done} of {total} traces)")
    return Built(
        kept=kept,
        computed=total,
        damaged=list(problems.values()),
        tokens=sum(entry["tokens"] for entry in index["shards"]),
        bytes=sum(entry["bytes"] for entry in index["shards"]),
    )


def check(folder: str | Path) -> list[str]:
    """What is wrong with the shards of a cache: a line for each that is missing, cut or altered. Reads all of it."""
    folder = Path(folder)
    return [problem for entry in read_index(folder)["shards"] if (problem := _problem(folder, entry))]


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache folder. Raises `CacheError` where there is none, or one of another kind."""
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
    except FileNotFoundError:
        raise CacheError(
            f"{folder} has no teacher cache ({_INDEX} is missing). Build one: python recipes/teacher_cache.py "
            f"--cache_dir {folder}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{path} is not the index of a teacher cache ({error!r}). Build another folder") from None
    if version != _VERSION:
        raise CacheError(f"{path} has version {version}; this rlkd reads version {_VERSION}. Build another folder")
    return index


class _Shard:
    """One file, mapped into memory. The layout is that of safetensors, so its own tools read it, too."""

    def __init__(self, path: Path) -> None:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        self.arrays = {}
        for name, about in header.items():
            first, last = (8 + length + offset for offset in about["data_offsets"])
            # A plain array over the same memory: memmap's own bookkeeping costs more than the reading.
            flat = np.asarray(raw[first:last]).view(_TYPES[about["dtype"]])
            self.arrays[name] = flat.reshape(about["shape"])
        self.starts, self.offsets = self.arrays["starts"], self.arrays["offsets"]

    def row_keys(self) -> list[bytes]:
        """The keys of the rows, in their order."""
        return [key.tobytes() for key in self.arrays["keys"]]

    def directory_digest(self) -> str:
        """The SHA-256 of the arrays that say which rows there are and where."""
        digest = hashlib.sha256()
        for name in _OF_ROWS:
            digest.update(self.arrays[name].tobytes())
        return digest.hexdigest()

    def read(self, row: int) -> Coded:
        """What is kept of one trace. Raises `ValueError` where its checksum does not fit."""
        first, last = int(self.offsets[row]), int(self.offsets[row + 1])
        coded = Coded(**{name: self.arrays[name][first:last] for name in _OF_TOKENS})
        if _checksum(coded) != int(self.arrays["checksums"][row]):
            raise ValueError("the checksum does not fit")
        return coded


def _checksum(coded: Coded) -> int:
    value = 0
    for name in _OF_TOKENS:
        value = zlib.crc32(getattr(coded, name).tobytes(), value)
    return value


def _groups(traces: Sequence[Trace], most: int, per_token: int) -> Iterator[list[Trace]]:
    """Traces in order, cut into runs that take at most so many bytes; one that takes more is alone."""
    group: list[Trace] = []
    size = 0
    for trace in traces:
        needed = (len(trace.ids) - trace.start) * per_token
        if group and size + needed > most:
            yield group
            group, size = [], 0
        group.append(trace)
        size += needed
    if group:
        yield group


def _write_shard(
    folder: Path, name: str, traces: Sequence[Trace], teacher: TopKTeacher, id_bits: int
) -> dict[str, Any]:
    from safetensors.numpy import save

    coded: list[Coded] = []
    for batch in _groups(traces, _BATCH_TOKENS, 1):
        tops = teacher.top_k([trace.ids for trace in batch], [trace.start for trace in batch])
        for trace, top in zip(batch, tops, strict=True):
            try:
                coded.append(encode(top, id_bits))
            except ValueError as error:
                raise CacheError(f"the teacher {teacher.name} on {trace.name}: {error}") from error
    lengths = [len(item.taken) for item in coded]
    arrays = {part: np.concatenate([getattr(item, part) for item in coded]) for part in _OF_TOKENS}
    keys = b"".join(row_key(trace.ids) for trace in traces)
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
        "directory_sha256": _Shard(folder / name).directory_digest(),
        "rows": len(traces),
        "tokens": sum(lengths),
    }


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    write_atomically(folder / _INDEX, json.dumps(index, indent=1))


def _file_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _problem(folder: Path, entry: Mapping[str, Any]) -> str | None:
    if problem := _size_problem(folder, entry):
        return problem
    with (folder / entry["file"]).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == entry["sha256"] else _altered(folder, entry)


def _covers(folder: Path, entry: Mapping[str, Any], given: set[bytes], made_by: Mapping[str, Any]) -> bool:
    """Whether a damaged shard can be built of the given traces: they hold its rows, or its own command gave them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        shard = _Shard(folder / entry["file"])
        if shard.directory_digest() == entry["directory_sha256"]:
            return given.issuperset(shard.row_keys())
    return entry.get("made_by", made_by) == made_by


def _command(entry: Mapping[str, Any]) -> str:
    """What built a shard."""
    command: str = entry.get("made_by", {}).get("command", "python recipes/teacher_cache.py")
    return command


def _size_problem(folder: Path, entry: Mapping[str, Any]) -> str | None:
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is missing ({entry['rows']} traces)"
    if size != entry["bytes"]:
        what = "truncated" if size < entry["bytes"] else "altered"
        return f"{path} is {what}: {size} bytes of {entry['bytes']} ({entry['rows']} traces)"
    return None


def _altered(folder: Path, entry: Mapping[str, Any]) -> str:
    return f"{folder / entry['file']} is altered: its bytes are not those that were written ({entry['rows']} traces)"


def _require_same(folder: Path, index: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    _require_vocabulary(folder, index["vocabulary"], head["vocabulary"])
    for key, what in (("teacher", "is of the teacher"), ("k", "has k ="), ("id_bits", "has ids of so many bits:")):
        if index[key] != head[key]:
            raise CacheError(
                f"{folder}: the cache {what} {index[key]}, this run asks for {head[key]}. One folder holds one "
                f"teacher and k: name another cache_dir, or delete this one"
            )


def _require_vocabulary(folder: Path, cached: str, given: str) -> None:
    if cached != given:
        raise CacheError(
            f"{folder}: the cache was made with a tokenizer of fingerprint {cached}, this run's has {given}: their "
            f"ids mean different tokens. Take the tokenizer it was made with, or build another cache_dir"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock that its holder's death releases. Raises `CacheError` where another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CacheError(
            f"{folder} is being built by another process. Wait for it, or name another cache_dir"
        ) from None
    try:
        yield
    finally:
        lock.release()
