"""The formulas of the divergences: their parameters, their terms, and the gradient of each term."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

DivergenceKind = Literal["jsd", "skewed_forward", "skewed_reverse"]


@dataclass(frozen=True)
class Divergence:
    """A divergence between the teacher's distribution T and the student's S, both softened by `temperature`.

    - `jsd`: beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S for 0 < beta < 1 (Agarwal et al.,
      2306.13649, in TRL's notation). The limits drop the vanishing factor: `beta=0` is the forward KL(T || S),
      `beta=1` the reverse KL(S || T).
    - `skewed_forward`: KL(T || skew T + (1 - skew) S). `skewed_reverse`: KL(S || (1 - skew) T + skew S). Both are
      from DistiLLM (Ko et al., 2402.03898), which sets the skew to 0.1; at 0 they are forward and reverse KL.

    `beta` applies to `jsd` only, `skew` to the others only.
    """

    kind: DivergenceKind = "jsd"
    beta: float = 1.0
    skew: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DivergenceKind):
            raise ValueError(f"unknown divergence kind={self.kind!r}; known: {', '.join(get_args(DivergenceKind))}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} must lie in [0, 1]: 0 is the forward KL, 1 the reverse KL")
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew={self.skew} must lie in [0, 1): at 1 a distribution is compared with itself")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature} must be above 0")


def terms_and_q(s: Tensor, t: Tensor, p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """The terms that sum to the divergence, and q = p * dD/dp (see `rlkd.divergence`); all tensors of one shape.

    With a mixture M = w T + (1 - w) S and u = log(w T / (1 - w) S), log(S / M) = -log(1 - w) - softplus(u) and
    log(T / M) = -log(w) - softplus(-u). A constant in dD/dp does not change the gradient. It is dropped where dD/dp
    then vanishes for tokens that the teacher rules out, which avoids rounding a difference of almost equal numbers.
    """
    kind, share = divergence.kind, divergence.beta if divergence.kind == "jsd" else divergence.skew
    if kind == "jsd" and 0 < share < 1:
        u = (t - s).add_(_logit(share))
        q = _softplus(u).mul_(p).mul_(share - 1)
        of_teacher = _softplus(u.neg_()).add_(math.log(share)).mul_(t.exp()).mul_(-share)
        return of_teacher.add_(q).sub_(p, alpha=(1 - share) * math.log1p(-share)), q
    if kind == "skewed_forward" and share > 0:
        minus_u = (s - t).sub_(_logit(share))
        p_teacher = t.exp()
        terms = _softplus(minus_u).add_(math.log(share)).mul_(p_teacher).neg_()
        return terms, minus_u.sigmoid_().mul_(p_teacher).neg_()
    if kind == "skewed_reverse" and share > 0:
        u = (t - s).sub_(_logit(share))
        surprise = _softplus(u)
        terms = (surprise + math.log(share)).mul_(p).neg_()
        return terms, u.sigmoid_().sub_(surprise).mul_(p)
    if kind == "skewed_forward" or (kind == "jsd" and share == 0):
        p_teacher = t.exp()
        return (t - s).mul_(p_teacher), p_teacher.neg()
    terms = (s - t).mul_(p)
    return terms, terms


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _softplus(values: Tensor) -> Tensor:
    """log(1 + exp(values)); torch's default threshold of 20 would show in float64."""
    return torch.nn.functional.softplus(values, threshold=40)
