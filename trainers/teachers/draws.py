"""Random draws of a run: functions of seed, step and row alone, the same on all processes and after a resume."""

from __future__ import annotations

import hashlib
import json
import random


def draw(seed: int, step: int, *what: str) -> random.Random:
    """A source of random numbers for one purpose of one step."""
    return random.Random(hashlib.sha256(json.dumps(["validity-kd", seed, step, *what]).encode()).digest())
