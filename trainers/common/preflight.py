"""Checks of a run before any model loads that all trainers share; each trainer's `preflight` adds its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlkd.data.rows import RESERVED_COLUMNS
from rlkd.errors import UsageError


def check_unused_columns(args: Any, needed: str) -> None:
    """Raise `UsageError` where TRL would remove the columns of the data that are `needed`."""
    if args.remove_unused_columns:
        raise UsageError(f"remove_unused_columns=True removes {needed}; leave it at False")


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Any]]:
    """Each dataset of a run with its name in errors; `eval_dataset` may be a dictionary of datasets."""
    parts = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    named = {"train_dataset": train_dataset, **{f"eval_dataset {name}".strip(): part for name, part in parts.items()}}
    yield from ((name, dataset) for name, dataset in named.items() if dataset is not None)


def check_columns(dataset: Any, part: str) -> list[str] | None:
    """The columns of a dataset, None for a stream of unknown features; raises `UsageError`."""
    columns: list[str] | None = getattr(dataset, "column_names", None)
    if columns is None:
        return None
    for name in RESERVED_COLUMNS:
        if name in columns:
            raise UsageError(f"{part}: the column name {name!r} is reserved by TRL; rename the column")
    if "prompt" not in columns:
        raise UsageError(f"{part} has no column 'prompt'; the columns are {', '.join(columns)}")
    return columns


def check_size(dataset: Any, part: str, needed: int, factors: str, also: str = "") -> None:
    """Raise `UsageError` where a dataset has fewer prompts than one generation batch.

    `factors`: explains the size of the batch; `also`: a further way out.
    """
    if hasattr(dataset, "__len__") and len(dataset) < needed:
        raise UsageError(
            f"{part} has {len(dataset)} prompts, but one generation batch takes {needed} ({factors}). TRL would train "
            f"zero steps without an error. Give more prompts, or lower per_device_train_batch_size or "
            f"gradient_accumulation_steps{also}."
        )


def check_save_steps(args: Any, window: int) -> None:
    """Raise `UsageError` where a checkpoint would fall between two batches of rollouts, `window` steps apart."""
    if args.save_strategy == "steps" and window > 1 and args.save_steps >= 1 and args.save_steps % window:
        raise UsageError(
            f"save_steps ({args.save_steps:g}) must be a multiple of {window}, the optimizer steps per batch of "
            f"rollouts (steps_per_generation {args.steps_per_generation} x num_iterations {args.num_iterations} / "
            f"gradient_accumulation_steps {args.gradient_accumulation_steps}): a run resumed in between would not "
            f"repeat the interrupted one. Set save_steps: {window * max(1, round(args.save_steps / window))}"
        )
