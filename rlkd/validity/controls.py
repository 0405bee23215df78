"""Controls: weights that lack one ingredient of the method, for telling what of it does the work.

| control        | weights                                              | what beating it shows                 |
| -------------- | ---------------------------------------------------- | ------------------------------------- |
| `uniform`      | 1                                                    | weighting helps at all                |
| `shuffled`     | the method's own, dealt out anew within the batch    | it matters which step gets which      |
| `teacher_only` | the map with V_S held at the median V_T              | the comparison matters                |
| `position`     | the method's mean weight at that place in the trace  | it is not "early steps count more"    |
| `entropy`      | the map on -entropy of teacher and student           | it is more than uncertainty           |
| `divergence`   | the map on the step's KL(S||T)                       | it is more than weighting by the loss |

`shuffled` and `position` need the method's weights, `teacher_only` its validities; `entropy` and `divergence` need the
teacher's distributions only, and no scorer is asked. `rlkd.validity.weigher` puts them to use.
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


def uniform(steps: int) -> list[float]:
    """Weight 1 for each of `steps` steps: plain distillation."""
    return [1.0] * steps


def shuffled(weights: Sequence[float], valid: Sequence[bool], *, seed: int, step: int) -> list[float]:
    """The weights of the valid steps in an order drawn from `seed` and the training `step`; the others stay.

    `valid`: whether the scorer answered for the step. Sum and distribution of the weights of a batch are kept.
    """
    places = [place for place, good in enumerate(valid) if good]
    order = places.copy()
    random.Random(f"validity/shuffled/{seed}/{step}").shuffle(order)
    dealt = list(weights)
    for place, source in zip(places, order, strict=True):
        dealt[place] = weights[source]
    return dealt


def teacher_only(teacher: Validities) -> Pair:
    """V_T against the median V_T of the batch, as (teacher, student) for the map.

    Our choice: with V_S = 0 the weights would be larger than the method's on the whole, and the control would differ
    in the learning rate too.
    """
    known = [value for value in teacher if value is not None and math.isfinite(value)]
    middle = median(known) if known else None
    return list(teacher), [None if value is None else middle for value in teacher]


def entropy(teacher_entropy: Validities, student_entropy: Validities) -> Pair:
    """-H_T against -H_S, each a step's mean in nats a token, as (teacher, student) for the map on the scale `log`."""
    return _negative(teacher_entropy), _negative(student_entropy)


def divergence(teacher_entropy: Validities, kl: Validities) -> Pair:
    """The step's mean KL(S||T) in nats a token as margin: (teacher, student) for the map on the scale `log`.

    V_T is -H_T as in `expected_margins` on-policy, whose margin is in expectation KL(S||T) + H_S - H_T: what differs
    from the method there is the entropy term alone. Off-policy the method has a floor (`v_0`), too.
    """
    teacher = _negative(teacher_entropy)
    student = [None if v is None or d is None else v - d for v, d in zip(teacher, kl, strict=True)]
    return teacher, student


class PositionProfile:
    """The method's mean weight by relative position in the trace, over all steps so far.

    Args:
        bins: parts of the trace, of equal length.

    At the beginning a bin holds few steps, and the control still knows their own weights; this passes within a few
    batches. In a run of several processes each is to be given the steps of all, so that all keep one profile.
    """

    def __init__(self, bins: int = 5) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins}: expected at least 1")
        self.bins = bins
        self._sums = [0.0] * bins
        self._counts = [0] * bins

    def __call__(self, weights: Sequence[float], positions: Sequence[float], valid: Sequence[bool]) -> list[float]:
        """Take in the weights of the valid steps, and return the mean weight at each step's position.

        `positions`: 0 for the first step of a trace to 1 for its last. A step that is not valid keeps its weight.
        """
        where = [min(self.bins - 1, int(position * self.bins)) for position in positions]
        for weight, place, good in zip(weights, where, valid, strict=True):
            if good:
                self._sums[place] += weight
                self._counts[place] += 1
        return [
            self._sums[place] / self._counts[place] if good else weight
            for weight, place, good in zip(weights, where, valid, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state_dict`. Raises ValueError for another number of bins."""
        if len(state["sums"]) != self.bins:
            raise ValueError(f"the checkpoint has {len(state['sums'])} bins of position, this run {self.bins}")
        self._sums, self._counts = list(map(float, state["sums"])), list(map(int, state["counts"]))


def _negative(values: Validities) -> list[float | None]:
    return [None if value is None else -value for value in values]
