"""Files that grow with a run and survive its interruption: metrics and rollouts, a JSON object a line.

When a run resumes from a checkpoint, lines of later steps are taken out first, because these steps are run again. When
a run starts afresh in a folder that holds an earlier run's file, that file is kept under a numbered name.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class StepLog:
    """A file of JSON lines, each with a `step`, that `begin` brings in line with the step where a run starts."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def begin(self, step: int) -> None:
        """Prepare for records after `step` (0: a fresh run)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        if step == 0:
            number = 1
            while (kept := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
                number += 1
            self.path.rename(kept)
            return
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as sink:
            for record in read_steps(self.path):
                if record["step"] <= step:
                    sink.write(json.dumps(record) + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(self.path)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add records; they are on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(_finite(record)) + "\n" for record in records)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The complete records of a file; a last line that a kill cut short is passed over."""
    records = []
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            if line.endswith("\n"):
                records.append(json.loads(line))
    return records


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to `metrics.jsonl` in the output folder, from the main process."""

    def __init__(self, path: Path):
        self.log = StepLog(path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut the file back to the step from which the run goes on."""
        if state.is_world_process_zero:
            self.log.begin(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add a line; the closing summary of a run (`train_runtime` ...) is no step and is left out."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.log.append([{"step": state.global_step, **logs}])


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a mean over nothing is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return value
