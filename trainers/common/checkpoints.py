"""Finds the checkpoint that a run resumes from, and tells a whole checkpoint from a damaged one.

A checkpoint is saved under another name and gets its own once it is whole (`trainers.common.saving`). Its `files.json`
has the size and the hash of every file, so that a file that was truncated or changed later is noticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.files import write_atomically

logger = logging.getLogger(__name__)

LIST = "files.json"
STATE = "run_state"
"""The folder of a checkpoint for what the trainers of rlkd keep."""
LARGEST_HASHED = 2 * 2**30
"""Bytes of a file above which its size alone tells whether it is whole (our choice: some seconds of hashing)."""
_known: dict[tuple[Any, ...], str | None] = {}


def find_checkpoint(wanted: str | Path | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; None if there is none yet.

    `wanted`: a folder; or true (the bare flag), `latest` for the newest whole checkpoint of `output_dir`; or
    None/false for none. A damaged checkpoint is named in a warning and skipped. The first process looks; all processes
    are to call this, and get its answer. Raises `UsageError` for a named folder that is not a whole checkpoint.
    """
    if wanted is None or str(wanted).lower() in ("false", "none", "no", ""):
        return None
    if str(wanted).lower() in ("true", "latest", "yes"):
        return _by_first_process(lambda: newest_checkpoint(output_dir))
    return _by_first_process(lambda: _named_checkpoint(str(wanted), output_dir))


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a folder; logs a warning for each damaged one, once."""
    for _, path in sorted(numbered_checkpoints(output_dir), reverse=True):
        known = len(_known)
        problem = damage(path)
        if problem is None:
            return path
        if len(_known) > known:
            logger.warning("%s is damaged and not used (%s); the one before it is looked at", path, problem)
    return None


def numbered_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder, whole or not, each with its step."""
    found = [(re.search(r"-(\d+)$", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    return [(int(match[1]), path) for match, path in found if match]


def is_finished(args: Any) -> bool:
    """Whether a run with these training arguments resumes at its last step, so that nothing is left to train.

    Prints why, and where there is no checkpoint to resume from. For a start, before anything is loaded.
    """
    first = args.process_index == 0  # sets the processes up, too
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if checkpoint is None and args.resume_from_checkpoint and first:
        print(f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir} yet, so a new run starts.")
    # transformers would train one step more.
    if checkpoint is None or not is_at_its_end(checkpoint, args):
        return False
    if first:
        more = "--max_steps" if getattr(args, "max_rollouts", None) is None else "--max_rollouts (or --max_steps)"
        print(f"{checkpoint} is at the last step already: nothing is left to train. {more} adds steps.")
        if not any(Path(args.output_dir).glob("*.safetensors")):
            print(
                f"{args.output_dir} has no final model, as the run ended before it was saved: it is in {checkpoint}."
            )
    return True


def is_at_its_end(checkpoint: Path, args: Any) -> bool:
    """Whether a run with these training arguments has no step left after a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if (most := getattr(args, "max_rollouts", None)) is not None:
        kept = checkpoint / STATE / "rank0.json"
        parts = json.loads(kept.read_text())["parts"] if kept.exists() else {}
        if parts.get("rollouts", {"total": 0})["total"] >= most:
            return True
    if args.max_steps > 0:
        return int(state["global_step"]) >= args.max_steps
    if args.num_train_epochs > state.get("num_train_epochs", args.num_train_epochs):
        return False  # there are further epochs now
    return 0 < state["max_steps"] <= state["global_step"]


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done when a checkpoint was written."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def list_files(folder: Path) -> None:
    """Write the size and the SHA-256 of every file of a checkpoint into its `files.json`.

    Of files above `LARGEST_HASHED` only the size, as all processes wait meanwhile.
    """
    # The hub leaves the arguments out, which may hold a token; no resume needs them.
    files = [path for path in _files(folder) if path.name not in (LIST, "training_args.bin")]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda path: None if path.stat().st_size > LARGEST_HASHED else _hash(path), files))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
        for path, found in zip(files, hashes, strict=True)
    }
    write_atomically(folder / LIST, json.dumps(listed, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing, truncated or changed; None if it is whole.

    Of a checkpoint without `files.json`, which others write, only the trainer's state is looked at.
    """
    folder = folder.resolve()
    state = tuple((str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in _files(folder))
    if (key := (str(folder), state)) not in _known:  # hashing a large checkpoint takes a while
        _known[key] = _damage(folder)
    return _known[key]


def _damage(folder: Path) -> str | None:
    if (folder / LIST).exists():
        try:
            listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in _read(folder / LIST).items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{LIST} is not readable"
        if not (folder / STATE).exists():  # as from the hub, where it does not go
            listed = {name: entry for name, entry in listed.items() if not name.startswith(f"{STATE}/")}
        for name, (size, _) in listed.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (found := (folder / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes, {size:,} were saved"
        with ThreadPoolExecutor() as pool:
            hashed = {name: expected for name, (_, expected) in listed.items() if expected is not None}
            hashes = list(pool.map(_hash, [folder / name for name in hashed]))
        for (name, expected), found_hash in zip(hashed.items(), hashes, strict=True):
            if found_hash != expected:
                return f"{name} is not what was saved"
    try:
        step_of(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable trainer_state.json"
    return None


def _named_checkpoint(wanted: str, output_dir: str | Path) -> Path:
    folder = Path(wanted).expanduser()
    problem = damage(folder)
    if problem is not None:
        raise UsageError(
            f"--resume_from_checkpoint {wanted}: no complete checkpoint there ({problem}). "
            f"Give a folder checkpoint-N, or the bare flag for the newest one in {output_dir}."
        )
    return folder


def _by_first_process(look: Callable[[], Path | None]) -> Path | None:
    """The first process's result, or `UsageError`, on all processes."""
    import torch.distributed as processes

    if not (processes.is_available() and processes.is_initialized()):
        return look()
    answer: list[Any] = [None, None]
    if processes.get_rank() == 0:
        try:
            answer[0] = look()
        except UsageError as error:
            answer[1] = str(error)
    processes.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise UsageError(answer[1])
    found: Path | None = answer[0]
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
