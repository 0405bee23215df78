"""From two validities to a weight, and how sharp that map is.

    w = [w_min + (w_max - w_min) * sigmoid((V_T - V_S) / tau)] * min(1, V_T / v_0)

The first factor compares the proposals: a student that is worse than the teacher at this step is pulled harder. The
second looks at the teacher alone: towards a step that is probably wrong nobody is to be pulled hard. It is left out
where no step of the teacher is judged: an expected V_T is -H_T, its uncertainty (`rlkd.validity.weigher`). All of it
is our choice, with the defaults of the project's reference design: a tie gives 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

from rlkd.validity.contract import Scale


@dataclass(frozen=True)
class WeightMap:
    """The weight of each step from the validity of both proposals.

    On the scale `probability`, V lies in [0, 1]. On the scale `log`, V is a log-probability in nats a token: the
    margin is their difference, `tau` is in nats, and the second factor uses exp(V_T).

    What holds (tested as properties): the weight lies in [0, w_max], and in [w_min, w_max] where V_T reaches v_0; it
    never falls as V_T grows and never grows as V_S grows; equal validities give 1 exactly where V_T reaches v_0 and
    w_min + w_max = 2, and only there is a constant validity plain distillation.

    Args:
        w_min: the least weight of a valid teacher step.
        w_max: the largest weight.
        tau: the margin that moves the sigmoid from 1/2 to 0.73, in the units of V.
        v_0: the validity, as a probability, below which the teacher's step loses weight in proportion; 0 for never.
        scale: of the validities, which is that of the scorer.

    Raises ValueError for values outside their ranges.
    """

    w_min: float = 0.2
    w_max: float = 1.8
    tau: float = 0.2
    v_0: float = 0.2
    scale: Scale = "probability"

    def __post_init__(self) -> None:
        if not (0 <= self.w_min <= self.w_max < math.inf):
            raise ValueError(f"w_min={self.w_min}, w_max={self.w_max}: expected 0 <= w_min <= w_max")
        _check_tau(self.tau)
        if not 0 <= self.v_0 <= 1:
            raise ValueError(f"v_0={self.v_0}: expected a probability, from 0 (no floor) to 1")
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale={self.scale!r}: expected {' or '.join(map(repr, get_args(Scale)))}")

    def __call__(
        self, teacher: Sequence[float | None], student: Sequence[float | None], *, tau: float | None = None
    ) -> list[float]:
        """One weight a step; exactly 1 where a validity is None (or nan or infinite): the scorer failed there.

        Args:
            teacher, student: V_T and V_S, one a step, in order.
            tau: in the place of the map's own (`AdaptiveTau`).

        Raises ValueError for lists of different length, for a V outside [0, 1] on the scale `probability`, and for a
        `tau` that is not above 0.
        """
        if len(teacher) != len(student):
            raise ValueError(f"{len(teacher)} validities of the teacher and {len(student)} of the student: one each")
        tau = self.tau if tau is None else _check_tau(tau)
        return [self._weight(t, s, tau) for t, s in zip(teacher, student, strict=True)]

    def is_floored(self, teacher: float | None) -> bool:
        """Whether the second factor takes weight from a step with this V_T."""
        return teacher is not None and math.isfinite(teacher) and self._trust(teacher) < 1

    def _weight(self, teacher: float | None, student: float | None, tau: float) -> float:
        if teacher is None or student is None or not (math.isfinite(teacher) and math.isfinite(student)):
            return 1.0
        if self.scale == "probability" and not (0 <= teacher <= 1 and 0 <= student <= 1):
            raise ValueError(
                f"validities {teacher} and {student} on the scale 'probability': expected 0 to 1. A scorer of "
                f"log-probabilities says scale = 'log'."
            )
        # The same as with a sigmoid, sigmoid(x) = (1 + tanh(x / 2)) / 2, but a tie is the exact middle.
        middle, half = (self.w_min + self.w_max) / 2, (self.w_max - self.w_min) / 2
        compared = middle + half * math.tanh((teacher - student) / tau / 2)
        return min(max(compared, self.w_min), self.w_max) * self._trust(teacher)

    def _trust(self, teacher: float) -> float:
        if self.v_0 == 0:
            return 1.0
        if self.scale == "log":
            return math.exp(min(0.0, teacher - math.log(self.v_0)))
        return min(1.0, teacher / self.v_0)


class AdaptiveTau:
    """A `tau` that follows the margins: `factor` times the running median of their sizes.

    A fixed `tau` suits one scorer and one pair of models: where margins are far larger, every weight is at an end of
    the range; where they are far smaller, all are 1. With `factor` 1, half of the margins move the sigmoid beyond
    0.27 to 0.73. Our choice. Margins of exactly 0 are left out: they give the same weight under any `tau`, and
    scorers with few values (`rollout`) have many of them.

    The median is over the last `window` margins, so it depends on their order alone, not on how they were batched.
    Deterministic. In a run of several processes, give every process the margins of all, in the order of the ranks.

    Args:
        start: until there is a margin.
        factor: above 0.
        window: how many margins are remembered.
        floor: the least `tau`, in the units of V.
    """

    def __init__(self, start: float = 0.2, *, factor: float = 1.0, window: int = 2048, floor: float = 1e-3) -> None:
        for name, value in (("start", start), ("factor", factor), ("floor", floor)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a number above 0")
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1")
        self.start = start
        self.factor = factor
        self.floor = floor
        self._sizes: deque[float] = deque(maxlen=window)

    @property
    def value(self) -> float:
        """The present `tau`."""
        return max(self.floor, self.factor * median(self._sizes)) if self._sizes else self.start

    def update(self, margins: Sequence[float | None]) -> float:
        """Take in the margins V_T - V_S of a batch (None, nan and infinite ones are passed over); the new `tau`."""
        self._sizes.extend(abs(m) for m in margins if m is not None and math.isfinite(m) and m != 0)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers."""
        return {"sizes": list(self._sizes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state_dict`."""
        self._sizes = deque(map(float, state["sizes"]), maxlen=self._sizes.maxlen)


def _check_tau(tau: float) -> float:
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau={tau}: expected a number above 0, in the units of the validity")
    return tau
