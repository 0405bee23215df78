"""Validities of steps from both models' distributions at each token, without generating a step.

`expected_margins` compares the step in the trace with what the other model would write there *on average*. All
validities are log-probabilities under the teacher, in nats per token, at the sampling temperature (our choice: in
probability space a margin is bounded by exp(-H), and an uncertain teacher would look like an invalid one).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from rlkd.divergence import TokenStatistics

Reduction = Literal["mean", "max", "quantile"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)

Span = tuple[int, int]


@dataclass(frozen=True)
class StepValidities:
    """V_T and V_S of each step, on the scale `log`; None for a step without tokens or with a value not finite."""

    teacher: list[float | None]
    student: list[float | None]

    @property
    def margins(self) -> list[float | None]:
        """V_T - V_S of each step, in nats per token."""
        pairs = zip(self.teacher, self.student, strict=True)
        return [None if t is None or s is None else t - s for t, s in pairs]


def expected_margins(
    statistics: TokenStatistics,
    spans: Sequence[Span],
    *,
    on_policy: bool,
    reduction: Reduction = "mean",
    quantile: float = 0.9,
) -> StepValidities:
    """The validities of each step, where one of the two proposals is an expectation over a model's distribution.

    On-policy the trace has the student's step: V_S = log p_T(token), V_T = -H_T. Off-policy it has the teacher's:
    V_T = log p_T(token), V_S = -cross entropy(S, T). `reduction` (`reduce_tokens`) turns the margins of a step's
    tokens into that of the step. V_T is always the mean over the step, since the map's floor applies to the teacher's
    step as a whole; V_S is V_T minus the margin.

    `statistics`: of N tokens, each field [N] in nats (`rlkd.divergence.token_statistics`). `spans`: the tokens of each
    step, [start, stop) in 0..N.

    Raises ValueError for a span outside the tokens, an unknown reduction, and off-policy without `cross_entropy`.
    """
    check_reduction(reduction, quantile)
    taken = _listed(statistics.teacher_logprob)
    if on_policy:
        expected = [-value for value in _listed(statistics.teacher_entropy)]
        teacher, student = expected, taken
    else:
        if statistics.cross_entropy is None:
            raise ValueError("statistics without cross_entropy: off-policy margins need the student's distribution")
        expected = [-value for value in _listed(statistics.cross_entropy)]
        teacher, student = taken, expected
    margins = [t - s for t, s in zip(teacher, student, strict=True)]
    v_teacher = step_means(teacher, spans)
    reduced = [reduce_tokens(margins[start:stop], reduction, quantile) for start, stop in spans]
    v_student = [None if t is None or m is None else t - m for t, m in zip(v_teacher, reduced, strict=True)]
    return StepValidities(v_teacher, v_student)


def step_means(values: Any, spans: Sequence[Span]) -> list[float | None]:
    """The mean over the tokens of each step; None for a step without tokens or with a value that is not finite.

    `values`: a tensor [N] or a list. Raises ValueError for a span outside of it.
    """
    listed = _listed(values)
    for start, stop in spans:
        if not 0 <= start <= stop <= len(listed):
            raise ValueError(f"a step has the tokens {start} to {stop}, but there are {len(listed)} tokens")
    return [reduce_tokens(listed[start:stop], "mean") for start, stop in spans]


def reduce_tokens(values: Sequence[float], reduction: Reduction = "mean", quantile: float = 0.9) -> float | None:
    """One number for the tokens of a step: their mean, maximum, or a quantile.

    A wrong digit is one token among many and hardly moves the mean; `max` sees only the worst token, and so every
    rare name; `quantile` lies between (linear interpolation between neighbours). None for no tokens, and where a value
    is not finite. Raises ValueError for an unknown reduction, and a quantile outside 0 to 1.
    """
    check_reduction(reduction, quantile)
    if not values or not all(map(math.isfinite, values)):
        return None
    if reduction == "mean":
        return math.fsum(values) / len(values)
    ordered = sorted(values)
    if reduction == "max":
        return ordered[-1]
    index = quantile * (len(ordered) - 1)
    below = int(index)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (index - below) * (ordered[above] - ordered[below])


def check_reduction(reduction: str, quantile: float) -> None:
    """Raise ValueError for an unknown reduction, and a quantile outside 0 to 1."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: expected {', '.join(map(repr, REDUCTIONS))}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile}: expected 0 to 1, such as 0.9 for the ninth of ten tokens")


def _listed(values: Any) -> list[float]:
    """A tensor's values in one transfer, or those of any other sequence."""
    listed: Iterable[float] = values.tolist() if hasattr(values, "tolist") else values
    return [float(value) for value in listed]
