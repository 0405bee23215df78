"""Controls: weights that lack one ingredient of the method, to show which of them matters.

| control        | weights                                              | what beating it shows                 |
| -------------- | ---------------------------------------------------- | ------------------------------------- |
| `uniform`      | 1                                                    | weighting helps at all                |
| `shuffled`     | the method's own, shuffled within the batch          | it matters which step gets which      |
| `teacher_only` | the map with V_S held at the median V_T              | the comparison matters                |
| `position`     | the method's mean weight at that relative position   | it is not "early steps count more"    |
| `entropy`      | the map on -entropy of teacher and student           | it is more than uncertainty           |
| `divergence`   | the map on the step's KL(S||T)                       | it is more than weighting by the loss |

`shuffled` and `position` need the method's weights, `teacher_only` its validities; `entropy` and `divergence` need the
models' distributions and no scorer. `rlkd.validity.weighting` applies them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal, get_args

Control = Literal["uniform", "shuffled", "teacher_only", "position", "entropy", "divergence"]
CONTROLS: tuple[Control, ...] = get_args(Control)

Validities = Sequence[float | None]
Pair = tuple[list[float | None], list[float | None]]


def shuffled(weights: Sequence[float], valid: Sequence[bool], *, seed: int, step: int) -> list[float]:
    """The weights of the valid steps in an order drawn from `seed` and the training `step`; the others stay.

    `valid`: whether the step has a validity. Sum and distribution of the weights of a batch do not change.
    """
    indices = [index for index, is_valid in enumerate(valid) if is_valid]
    order = indices.copy()
    random.Random(f"validity/shuffled/{seed}/{step}").shuffle(order)
    result = list(weights)
    for index, source in zip(indices, order, strict=True):
        result[index] = weights[source]
    return result


def teacher_only(teacher: Validities) -> Pair:
    """V_T against the median V_T of the batch, as (teacher, student) for the map.

    Our choice: with V_S = 0 the weights would be larger than the method's overall, so that the control would also
    differ in the effective learning rate.
    """
    known = [value for value in teacher if value is not None and math.isfinite(value)]
    middle = median(known) if known else None
    return list(teacher), [None if value is None else middle for value in teacher]


def entropy(teacher_entropy: Validities, student_entropy: Validities) -> Pair:
    """-H_T against -H_S, each a step's mean in nats per token: (teacher, student) for the map on the scale `log`."""
    return _negative(teacher_entropy), _negative(student_entropy)


def divergence(teacher_entropy: Validities, kl: Validities) -> Pair:
    """The step's mean KL(S||T) in nats per token as margin: (teacher, student) for the map on the scale `log`.

    V_T is -H_T as in `expected_margins` on-policy, whose margin is in expectation KL(S||T) + H_S - H_T: there the
    control differs from the method by the entropy term alone. Off-policy the method also has a floor (`v_0`).
    """
    teacher = _negative(teacher_entropy)
    student = [None if v is None or d is None else v - d for v, d in zip(teacher, kl, strict=True)]
    return teacher, student


class PositionProfile:
    """The method's mean weight in each of `bins` equal parts of the trace, over all steps so far.

    In a run of several processes, give each the steps of all, so that all have the same profile.
    """

    def __init__(self, bins: int = 5) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins}: expected at least 1")
        self.bins = bins
        self._sums = [0.0] * bins
        self._counts = [0] * bins

    def __call__(self, weights: Sequence[float], positions: Sequence[float], valid: Sequence[bool]) -> list[float]:
        """Add the weights of the valid steps, and return the mean weight at each step's position.

        `positions`: 0 for the first step of a trace to 1 for its last. A step that is not valid keeps its weight.
        """
        bins = [min(self.bins - 1, int(position * self.bins)) for position in positions]
        for weight, index, is_valid in zip(weights, bins, valid, strict=True):
            if is_valid:
                self._sums[index] += weight
                self._counts[index] += 1
        return [
            self._sums[index] / self._counts[index] if is_valid else weight
            for weight, index, is_valid in zip(weights, bins, valid, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: plain numbers."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's `state_dict`. Raises ValueError for another number of bins."""
        if len(state["sums"]) != self.bins:
            raise ValueError(f"the checkpoint has {len(state['sums'])} bins of position, this run {self.bins}")
        self._sums, self._counts = list(map(float, state["sums"])), list(map(int, state["counts"]))


def _negative(values: Validities) -> list[float | None]:
    return [None if value is None else -value for value in values]
