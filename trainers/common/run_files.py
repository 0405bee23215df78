"""The files of a run, which survive its interruption: metrics and rollouts as JSON Lines.

When a run resumes from a checkpoint, lines of later steps are removed first, because these steps are run again, and
later checkpoints are moved aside. When a new run starts in the folder of an earlier one, everything of the earlier one
is moved aside first.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rlkd.files import atomic_file, read_records, write_atomically
from trainers.common.card_facts import ModelCards
from trainers.common.checkpoints import find_checkpoint, numbered_checkpoints, step_of
from trainers.common.model_card import CARD
from trainers.common.models import keep_gradients
from trainers.common.run_state import RunState
from trainers.common.saving import UNFINISHED
from trainers.common.sharding import ShardedTraining

logger = logging.getLogger(__name__)

# The files of a run in its output folder.
_TRACES = (
    "metrics.jsonl",
    "eval.jsonl",
    "evaluation.json",
    "evaluation",
    "rollouts",
    "checkpoint-*",
    "adapter_*",
    "model*.safetensors*",
    "curve.*",
    CARD,
)
# What of an output folder does not go to the hub: texts of the data, and arguments with the token in them.
_NOT_PUSHED = (
    "rollouts/\ncompletions/\nrun_state/\neval.jsonl\nevaluation/\nearlier-*/\nlabelled.jsonl\nlabels.sqlite\n"
    "report.html\ntraining_args.bin\n"
)


class StepLog:
    """A file of JSON lines, each with a `step`."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def cut(self, step: int) -> None:
        """Remove the records of steps after `step`, and a last line that a kill truncated."""
        if not self.path.exists():
            return
        with atomic_file(self.path) as file:
            file.writelines(json.dumps(record) + "\n" for record in read_records(self.path) if record["step"] <= step)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add records; they survive a kill of this process once this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(_finite(record), default=str) + "\n" for record in records)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The complete records of a file, all at once."""
    return list(read_records(path))


def last_steps(path: Path, count: int) -> list[dict[str, Any]]:
    """The records of the last `count` steps in a file; none if the file is missing or empty."""
    kept: dict[int, list[dict[str, Any]]] = {}
    for record in read_records(path) if path.exists() else ():
        kept.setdefault(record["step"], []).append(record)
        if len(kept) > count:
            del kept[min(kept)]
    return [record for step in sorted(kept) for record in kept[step]]


def resume_logs(output_dir: Path, step: int) -> None:
    """Cut the files of all processes to a run that continues after `step`."""
    for path in [
        output_dir / "metrics.jsonl",
        output_dir / "eval.jsonl",
        *(output_dir / "rollouts").glob("rank*.jsonl"),
    ]:
        StepLog(path).cut(step)


def set_earlier_run_aside(output_dir: Path) -> Path | None:
    """Move the files of an earlier run in an output folder to `earlier-N` there; None where there are none.

    Otherwise this run could resume from a checkpoint of the earlier one, or add to its records.
    """
    return _set_aside(output_dir, [path for pattern in _TRACES for path in sorted(output_dir.glob(pattern))])


def set_later_checkpoints_aside(output_dir: Path, step: int) -> Path | None:
    """Move the checkpoints after `step` to `earlier-N`: a later resume must not take one that was not run again."""
    return _set_aside(output_dir, [path for number, path in numbered_checkpoints(output_dir) if number > step])


def _set_aside(output_dir: Path, found: list[Path]) -> Path | None:
    if not found:
        return None
    number = 1
    while (aside := output_dir / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to `metrics.jsonl` in the output folder, from the main process."""

    def __init__(self, path: Path):
        self.log = StepLog(path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add a line; leaves out the closing summary of a run (`train_runtime` ...), which is not a step."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.log.append([{"step": state.global_step, **logs}])


class RunFiles(ModelCards, RunState, ShardedTraining):
    """Mixin for a TRL trainer, first among its bases: the files of a run, and a `train` that resumes them exactly.

    `open_run_files` is to be called once the trainer is built. `metrics_path` is `metrics.jsonl` in the output folder,
    and `rollouts` this process's file in `rollouts/`.
    """

    metrics_path: Path
    rollouts: StepLog

    def open_run_files(self, rollouts: str | None = None, *, student: Any = None) -> None:
        """Set the paths and log metrics.

        `rollouts`: name of the rollouts file, by default one for each process. `student`: the student as the user
        named it; a model given as an object has no name.
        """
        self.student_name = student if isinstance(student, str) else None
        keep_gradients(self.model)  # type: ignore[attr-defined]
        output = Path(self.args.output_dir or ".").resolve()
        self.metrics_path = output / "metrics.jsonl"
        self.rollouts = StepLog(output / "rollouts" / (rollouts or f"rank{self.args.process_index}.jsonl"))
        self.add_callback(MetricsCallback(self.metrics_path))  # type: ignore[attr-defined]
        self.open_run_state()

    @property
    def rollouts_path(self) -> Path:
        """The file of this process's rollouts."""
        return self.rollouts.path

    def recent_rollouts(self, steps: int = 10) -> list[dict[str, Any]]:
        """The rollouts of the last steps of this process."""
        return last_steps(self.rollouts_path, steps)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does, with the files of the run cut back to the checkpoint.

        `resume_from_checkpoint`: a folder, or True for the newest whole checkpoint in the output folder.
        """
        output = self.metrics_path.parent
        checkpoint = find_checkpoint(resume_from_checkpoint, output)
        # The first process changes the files, after all have looked for the checkpoint and before any continues.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(output / UNFINISHED, ignore_errors=True)
            if checkpoint is not None:
                resume_logs(output, step := step_of(checkpoint))
                if (aside := set_later_checkpoints_aside(output, step)) is not None:
                    logger.warning(
                        "checkpoints after step %d were moved to %s: these steps are run again", step, aside
                    )
            elif (aside := set_earlier_run_aside(output)) is not None:
                logger.warning("%s held an earlier run; it was moved to %s", output, aside)
            if self.args.push_to_hub and not (output / ".gitignore").exists():
                write_atomically(output / ".gitignore", _NOT_PUSHED)
        self.accelerator.wait_for_everyone()
        self.restore(checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)  # type: ignore[misc]


def _finite(value: Any) -> Any:
    """NaN, which JSON lacks, becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
