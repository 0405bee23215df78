"""Finds the checkpoint that a run resumes from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError


def find_checkpoint(wanted: str | Path | bool | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; None if there is none yet.

    `wanted`: a folder; or true (the bare flag), `latest` for the newest complete checkpoint of `output_dir`; or
    None/false for none. A checkpoint that a kill left incomplete is skipped: the trainer state is written last.
    Raises `UsageError` for a named folder that is not a complete checkpoint.
    """
    if wanted is None or str(wanted).lower() in ("false", "none", "no", ""):
        return None
    if str(wanted).lower() not in ("true", "latest", "yes"):
        folder = Path(str(wanted)).expanduser()
        if not _is_complete(folder):
            raise UsageError(
                f"--resume_from_checkpoint {wanted}: no complete checkpoint there (no readable trainer_state.json). "
                f"Give a folder checkpoint-N, or the bare flag for the newest one in {output_dir}."
            )
        return folder
    numbered = [(int(m[1]), p) for p in Path(output_dir).glob("checkpoint-*") if (m := re.search(r"-(\d+)$", p.name))]
    return next((path for _, path in sorted(numbered, reverse=True) if _is_complete(path)), None)


def is_finished(args: Any) -> bool:
    """Whether a run with these training arguments resumes at its last step, so that nothing is left to train.

    Prints why, and where there is no checkpoint to resume from. For a start, before anything is loaded.
    """
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    first = args.process_index == 0
    if checkpoint is None and args.resume_from_checkpoint and first:
        print(f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir} yet, so a new run starts.")
    # transformers would train one step more.
    finished = checkpoint is not None and 0 < _last_step(checkpoint, args.max_steps) <= step_of(checkpoint)
    if finished and first:
        print(f"{checkpoint} is at the last step already: nothing is left to train. --max_steps adds steps.")
    return finished


def _last_step(checkpoint: Path, max_steps: int) -> int:
    """The step at which the run ends: from its arguments, or, for a run by epochs, from its checkpoint."""
    return max_steps if max_steps > 0 else json.loads((checkpoint / "trainer_state.json").read_text())["max_steps"]


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done when a checkpoint was written."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def _is_complete(folder: Path) -> bool:
    try:
        return step_of(folder) >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
