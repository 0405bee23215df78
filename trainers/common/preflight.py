"""Checks of settings and data before any model loads that all trainers share; each trainer's `preflight` adds its own.

`trainers.common.models` has those of models, `trainers.common.think_tags` those of a reasoning model's chat template.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlkd.data.rows import RESERVED_COLUMNS
from rlkd.errors import UsageError, first_line
from rlkd.registry import suggestion


def check_settings(args: Any, eval_dataset: Any) -> None:
    """Check what every run shares: precision, trackers, the hub, evaluation by the trainer; raises `UsageError`."""
    _check_precision(args)
    _check_output(args)
    if args.eval_strategy != "no" and eval_dataset is None:
        raise UsageError(
            f"eval_strategy {getattr(args.eval_strategy, 'value', args.eval_strategy)} without an eval_dataset. Set "
            f"eval_strategy: no. The recipes evaluate on held-out rows by dataset_test_split, eval_rows and eval_every"
        )
    _check_trackers(args.report_to)
    if args.push_to_hub and args.process_index == 0:
        _check_hub(args)


def _check_precision(args: Any) -> None:
    import torch

    if args.bf16 and args.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(
            f"bf16: true, but {torch.cuda.get_device_name()} does not compute in bfloat16. Set bf16: false and fp16: "
            "true"
        )


def _check_output(args: Any) -> None:
    """Raise `UsageError` where nothing can be written to the output folder: no rights, no space, a file there."""
    folder = Path(args.output_dir or ".").expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file")
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(2**20))
    except OSError as error:
        raise UsageError(
            f"output_dir {args.output_dir}: nothing can be written there ({error}). Name another folder, or free space"
        ) from error


def _check_trackers(names: Sequence[str]) -> None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    available = get_available_reporting_integrations() if names else []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"report_to {name!r} is no tracker.{suggestion(name, ('none', *INTEGRATION_TO_CALLBACK))}"
            )
        if name not in available and name != "flyte":  # which has no test in transformers
            raise UsageError(
                f"report_to {name}: the package is not installed. Run  pip install {name.replace('_', '-')}  or set "
                f"report_to: none (metrics.jsonl has the same figures)"
            )


def _check_hub(args: Any) -> None:
    from huggingface_hub import HfApi

    try:
        user = HfApi().whoami(token=args.hub_token)
    except Exception as error:  # no connection, no token, or offline mode: each has its own class
        raise UsageError(
            f"push_to_hub: the hub cannot be used ({first_line(error)}). Connect and run  hf auth login  or set "
            f"push_to_hub: false and upload {args.output_dir} later:  hf upload REPO {args.output_dir}"
        ) from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UsageError(
            f"push_to_hub: the token of {user.get('name')} can only read. Make one that can write "
            f"(huggingface.co/settings/tokens) and run  hf auth login  or set push_to_hub: false"
        )


def check_unused_columns(args: Any, needed: str) -> None:
    """Raise `UsageError` where TRL would remove the columns of the data that are `needed`."""
    if args.remove_unused_columns:
        raise UsageError(f"remove_unused_columns=True removes {needed}; leave it at False")


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Any]]:
    """Each dataset of a run with its name in errors; `eval_dataset` may be a dictionary of datasets."""
    parts = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    named = {"train_dataset": train_dataset, **{f"eval_dataset {name}".strip(): part for name, part in parts.items()}}
    yield from ((name, dataset) for name, dataset in named.items() if dataset is not None)


def check_columns(dataset: Any, part: str, *, needs_prompt: bool = True) -> list[str] | None:
    """The columns of a dataset, None for a stream of unknown features; raises `UsageError`."""
    columns: list[str] | None = getattr(dataset, "column_names", None)
    if columns is None:
        return None
    for name in RESERVED_COLUMNS:
        if name in columns:
            raise UsageError(f"{part}: the column name {name!r} is reserved by TRL; rename the column")
    if needs_prompt and "prompt" not in columns:
        raise UsageError(f"{part} has no column 'prompt'; the columns are {', '.join(columns)}")
    return columns


def has_images(dataset: Any, name: str) -> bool:
    """Whether a column exists and holds a value; lists without elements are none. A stream's values are not read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in (getattr(dataset, "column_names", None) or ()):
        return False
    if not hasattr(dataset, "data"):
        return True
    column = dataset.data.column(name)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return bool(pc.sum(pc.list_value_length(column)).as_py())
    return column.null_count < len(column)


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
