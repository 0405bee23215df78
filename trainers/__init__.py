"""Trainers: thin subclasses of TRL's, with their configs, early checks and exact resume.

TRL and torch are imported when a trainer is first asked for, not when this package is.
"""

from typing import Any

__all__ = ["RLKDConfig", "RLKDTrainer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainers import rlkd

        return getattr(rlkd, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
