"""Settings of an evaluation from elsewhere: the config of a training recipe, and what a run recorded of its own.

`evaluation.json` in a run's output folder has the settings with which its training evaluates held-out rows, under the
names of the recipes' keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlkd.errors import UsageError
from rlkd.registry import suggestion

RECORD = "evaluation.json"
# Of the recipes' data keys, those that an evaluation depends on.
DATA_KEYS = (
    "dataset_name",
    "dataset_config",
    "dataset_test_name",
    "dataset_test_split",
    "columns",
    "skip_bad_rows",
    "eval_rows",
    "eval_samples",
    "system_prompt",
    "few_shot_examples",
)


def settings_of_run(run: Path) -> dict[str, Any]:
    """The settings that a run evaluates with, and its model; raises `UsageError` where it recorded none."""
    if not run.is_dir():
        raise UsageError(f"--run {run}: there is no such folder. Give the output_dir of a run")
    if not any((run / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise UsageError(
            f"--run {run}: the run has saved no model yet. Let it end, or evaluate a checkpoint: "
            f"--model_name_or_path {run}/checkpoint-N --config CONFIG"
        )
    try:
        recorded: dict[str, Any] = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--run {run}: no readable {RECORD} there ({error}), which a recipe writes that evaluates "
            f"(dataset_test_split, eval_rows). Name the rows: --model_name_or_path {run} --dataset_name NAME"
        ) from error
    return recorded | {"model_name_or_path": str(run)}


def settings_of_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The keys of a YAML file that are `known`; those of training alone are left out.

    Raises `UsageError` for a file that is no mapping, and for a key that no recipe has.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(found, Mapping):
        raise UsageError(f"--config {path}: expected keys and values, found {type(found).__name__}")
    others = {str(key) for key in found} - set(known)
    if others and (unknown := sorted(others - training_keys())):
        raise UsageError(f"--config {path}: no key {unknown[0]!r}.{suggestion(unknown[0], known)}")
    return {key: value for key, value in found.items() if key in known}


def training_keys() -> set[str]:
    """The keys of all training recipes."""
    from trl import ModelConfig, SFTConfig

    from trainers import RLKDAsyncConfig, RLKDConfig, ValidityKDConfig
    from trainers.common.data_arguments import DataArguments

    kinds = (DataArguments, ModelConfig, SFTConfig, RLKDConfig, RLKDAsyncConfig, ValidityKDConfig)
    # Keys of the recipes themselves.
    own = {"similar_lengths", "curriculum", "weight_column", "weight_temperature", "adapter", "round_adapter"}
    own |= {"shuffle_teachers", "shuffle_steps", "shuffle_weights", "shuffle_stages"}
    return own | {each.name for kind in kinds for each in dataclasses.fields(kind)}
