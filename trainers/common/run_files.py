"""Files that grow with a run and survive its interruption: metrics and rollouts, a JSON object a line.

When a run resumes from a checkpoint, lines of later steps are taken out first, because these steps are run again. When
a run starts afresh in a folder that holds an earlier run, all that belongs to the earlier one is set aside first.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from trainers.common.checkpoints import find_checkpoint, step_of

logger = logging.getLogger(__name__)

# What a run leaves in its output folder.
_TRACES = ("metrics.jsonl", "eval.jsonl", "rollouts", "checkpoint-*", "adapter_*", "model*.safetensors*")


class StepLog:
    """A file of JSON lines, each with a `step`."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def cut(self, step: int) -> None:
        """Take out the records of steps after `step`, and a last line that a kill cut short."""
        if not self.path.exists():
            return
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as sink:
            for record in iterate_steps(self.path):
                if record["step"] <= step:
                    sink.write(json.dumps(record) + "\n")
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(self.path)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add records; a kill of this process no longer loses them when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(_finite(record), default=str) + "\n" for record in records)


def iterate_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The complete records of a file, one by one; a last line that a kill cut short is passed over."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The complete records of a file, all at once."""
    return list(iterate_steps(path))


def last_steps(path: Path, count: int) -> list[dict[str, Any]]:
    """The records of the last `count` steps in a file; none where the file is missing or empty."""
    kept: dict[int, list[dict[str, Any]]] = {}
    for record in iterate_steps(path) if path.exists() else ():
        kept.setdefault(record["step"], []).append(record)
        if len(kept) > count:
            del kept[min(kept)]
    return [record for step in sorted(kept) for record in kept[step]]


def resume_logs(output_dir: Path, step: int) -> None:
    """Bring the files of all processes in line with a run that goes on after `step`."""
    for path in [
        output_dir / "metrics.jsonl",
        output_dir / "eval.jsonl",
        *(output_dir / "rollouts").glob("rank*.jsonl"),
    ]:
        StepLog(path).cut(step)


def prepare_folder(accelerator: Any, output_dir: Path, step: int | None) -> Path | None:
    """Bring the logs in line with a run that goes on after `step`, or set aside what an earlier run left (None).

    To be called on every process; the first one moves, when all have looked, and the others wait. Returns where an
    earlier run went, on the first process.
    """
    aside = None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if step is not None:
            resume_logs(output_dir, step)
        else:
            aside = set_earlier_run_aside(output_dir)
    accelerator.wait_for_everyone()
    return aside


def begin(accelerator: Any, output_dir: Path, wanted: str | bool | None) -> Path | None:
    """The checkpoint that a run goes on from, with the logs of the folder brought in line; None for a new run.

    `wanted`: as `find_checkpoint` takes it. To be called on every process.
    """
    checkpoint = find_checkpoint(wanted, output_dir)
    aside = prepare_folder(accelerator, output_dir, None if checkpoint is None else step_of(checkpoint))
    if aside is not None:
        logger.warning("%s held an earlier run; it was moved to %s", output_dir, aside)
    return checkpoint


def set_earlier_run_aside(output_dir: Path) -> Path | None:
    """Move what an earlier run left in its output folder into `earlier-N` there; None where there was nothing.

    Otherwise its checkpoints would be taken for this run's when this one resumes, and its records for this one's.
    """
    found = [path for pattern in _TRACES for path in sorted(output_dir.glob(pattern))]
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
        """Add a line; the closing summary of a run (`train_runtime` ...) is no step and is left out."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.log.append([{"step": state.global_step, **logs}])


class StepLine(ProgressCallback):
    """The progress bar, with one readable line a step in place of the whole dictionary of metrics.

    A line tells each reward's mean, the share of groups in which all completions earn the same (no signal there), the
    shares of missing and of failed rewards, and the share of completions cut off at the length limit.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line; `metrics.jsonl` has everything."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "reward" in logs:
            self.training_bar.write(step_line(state.global_step, state.max_steps, logs))


def step_line(step: int, max_steps: int, logs: Mapping[str, Any]) -> str:
    """The line of a step, from what TRL logs."""
    parts = [f"step {step}/{max_steps}"]
    for name in [key.split("/")[1] for key in logs if key.startswith("rewards/") and key.endswith("/mean")]:
        parts.append(f"{name} {_shown(logs[f'rewards/{name}/mean'])}")
        failed, absent = (logs.get(f"rewards/{name}/{status}", 0.0) for status in ("failed", "not_applicable"))
        if failed or absent:
            parts[-1] += f" (failed {failed:.0%}, not applicable {absent:.0%})"
    if not any("(" in part for part in parts):
        parts.append("none missing")
    parts.append(f"flat groups {logs.get('frac_reward_zero_std', 0.0):.0%}")
    parts.append(f"cut off {logs.get('completions/clipped_ratio', 0.0):.0%}")
    parts.append(f"{logs.get('step_time', 0.0):.0f} s")
    return " | ".join(parts)


def _shown(mean: float | None) -> str:
    return "n/a" if mean is None or not math.isfinite(mean) else f"{mean:.3f}"


def _finite(value: Any) -> Any:
    """JSON knows no NaN: a mean over nothing is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
