"""Trainers: thin subclasses of TRL's, with their configs, early checks and exact resume.

Each trainer has a package of its own: `rlkd`, `async_grpo`, `validity_kd` and `gsrm`. `evaluation` measures held-out
accuracy. `common` holds what they share (arguments, run files, checkpoints, and the one module for TRL's private
surface), `teachers` what those with a teacher share, `vllm` what concerns rollout servers. TRL and torch are imported
when a trainer is first asked for, not with this package.
"""

import importlib
from typing import Any

from rlkd.installation import check_trl_version

_MODULES = {
    "RLKDAsyncConfig": "trainers.async_grpo.config",
    "RLKDAsyncTrainer": "trainers.async_grpo.trainer",
    "RLKDConfig": "trainers.rlkd.config",
    "RLKDTrainer": "trainers.rlkd.trainer",
    "RunSFTTrainer": "trainers.common.sft",
    "StructureSFTTrainer": "trainers.gsrm.trainer",
    "ValidityKDConfig": "trainers.validity_kd.config",
    "ValidityKDTrainer": "trainers.validity_kd.trainer",
}
__all__ = [
    "RLKDAsyncConfig",
    "RLKDAsyncTrainer",
    "RLKDConfig",
    "RLKDTrainer",
    "RunSFTTrainer",
    "StructureSFTTrainer",
    "ValidityKDConfig",
    "ValidityKDTrainer",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        check_trl_version(asynchronous=name.startswith("RLKDAsync"))
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
