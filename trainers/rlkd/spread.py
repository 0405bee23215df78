"""Says once that a reward hardly ever tells the completions of a group apart: then nothing is learnt from it."""

from __future__ import annotations

import logging
import math
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

WINDOW = 20
MOST = 0.9
"""A reward has no spread if its scores are equal in more than this share of groups, in each of WINDOW batches."""

_WAYS_OUT = (
    "Ways out: questions that the student gets right sometimes, more completions per group (num_generations), a "
    "higher temperature; or remove the reward."
)
_OF_STRUCTURE = (
    "Ways out for a structure reward: alignment: ordered, which also pays for steps behind the first that differs; a "
    "judge that accepts other wordings; level: equation; a trace with fewer steps. `rlkd gsrm explain` shows what a "
    "completion earns and why."
)


class SpreadWatch:
    """Watches the share of groups in which all scores of a reward are equal, over the last generation batches.

    Args:
        structural: names of the structure rewards, which have ways out of their own.
    """

    def __init__(self, structural: frozenset[str] = frozenset()):
        self.structural = structural
        self._shares: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._said: set[str] = set()

    def add(self, shares: Mapping[str, float]) -> list[str]:
        """Count a batch (NaN: no group had two scores); returns the rewards that are now said to have no spread."""
        found = []
        for name, share in shares.items():
            if not math.isfinite(share):
                continue
            recent = self._shares[name]
            recent.append(share)
            if len(recent) == WINDOW and min(recent) > MOST and name not in self._said:
                self._said.add(name)
                found.append(name)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The shares in the window, and which rewards were said to have no spread."""
        return {"shares": {name: list(shares) for name, shares in self._shares.items()}, "said": sorted(self._said)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._shares.clear()
        for name, shares in state["shares"].items():
            self._shares[name].extend(shares)
        self._said = set(state["said"])

    def message(self, name: str) -> str:
        """What the log says about a reward."""
        return (
            f"reward {name!r}: in each of the last {WINDOW} generation batches, all its scores are equal in more than "
            f"{MOST:.0%} of the groups (rewards/{name}/frac_zero_std), so that next to nothing is learnt from it. "
            f"{_OF_STRUCTURE if name in self.structural else _WAYS_OUT}"
        )
