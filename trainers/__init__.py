"""Trainers: thin subclasses of TRL's, with their configs, early checks and exact resume.

TRL and torch are imported when a trainer is first asked for, not when this package is.
"""

import importlib
from typing import Any

_HOMES = {
    "RLKDConfig": "trainers.rlkd",
    "RLKDTrainer": "trainers.rlkd",
    "ValidityKDConfig": "trainers.kd_config",
    "ValidityKDTrainer": "trainers.validity_kd",
}
__all__ = ["RLKDConfig", "RLKDTrainer", "ValidityKDConfig", "ValidityKDTrainer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
