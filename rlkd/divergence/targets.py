"""The teacher's distribution as the target of a comparison: whole, or its top k and one bucket for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlkd.divergence.formulas import Divergence, terms_and_q
from rlkd.divergence.tiles import Head, Tiling, log_sum_exp, project, slices

SMALLEST_TAIL = 1e-7
"""Lower bound on the teacher's probability outside its top k: 1 minus a float32 sum resolves no less, and log 0 is
infinite. It changes a forward KL by about 1e-6. It keeps a reverse KL finite, and lowers it where the teacher's true
rest is smaller still."""


class Target(Protocol):
    """A teacher's distributions over N tokens."""

    @property
    def extra(self) -> int:
        """Scratch columns of a tile after the vocabulary."""

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn the logits `s` [n, V] into log-probabilities, and fill `q` [n, V].

        Returns four [n]: the divergence, the sum of `q`, the student's entropy, and the logarithm of the softmax's
        denominator.
        """


@dataclass(frozen=True)
class LogitsTarget:
    """The whole distribution, from hidden states and a head."""

    hidden: Tensor
    head: Head
    dtype: torch.dtype
    extra: int = 0

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `Target.compare`."""
        # The teacher's logits lie where q will: each column is read before it is overwritten.
        project(q, self.hidden[rows], self.head, divergence.temperature, self.dtype, tiling)
        student_normaliser, teacher_normaliser = log_sum_exp(s, tiling), log_sum_exp(q, tiling)
        values, sum_q, entropy = (torch.zeros_like(student_normaliser) for _ in range(3))
        for columns in slices(s.shape[1], tiling.columns):
            log_p = s[:, columns].sub_(student_normaliser.unsqueeze(1))
            log_t = q[:, columns].sub_(teacher_normaliser.unsqueeze(1))
            p = log_p.exp()
            terms, part = terms_and_q(log_p, log_t, p, divergence)
            values.add_(terms.sum(1))
            sum_q.add_(part.sum(1))
            log_t.copy_(part)
            entropy.sub_(p.mul_(log_p).sum(1))
        return values, sum_q, entropy, student_normaliser


@dataclass(frozen=True)
class TopKTarget:
    """The top k tokens, `ids` [N, k], and one outcome for all others; `logprobs` [N, k + 1] in float64 sum to 1.

    -inf is padding, whose id is the first after the vocabulary, or the rest where k = V.
    """

    ids: Tensor
    logprobs: Tensor
    extra: int = 1

    def outcomes(self, rows: slice, padded: Tensor, tiling: Tiling) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the k + 1 outcomes, [n, k + 1] in float64, and of the softmax's denominator, [n].

        `padded`: the student's logits [n, V + 1]; the last column is scratch.
        """
        ids, logits = self.ids[rows], padded[:, :-1]
        padded[:, -1] = -math.inf
        support = padded.gather(1, ids)
        # The rest has its own sum: 1 minus the others would lose a small one.
        padded.scatter_(1, ids, -math.inf)
        rest = log_sum_exp(logits, tiling)
        padded.scatter_(1, ids, support)
        outcomes = torch.cat([support, rest.unsqueeze(1)], 1).double()
        log_normaliser = outcomes.logsumexp(1)
        return outcomes - log_normaliser.unsqueeze(1), log_normaliser.to(padded.dtype)

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `Target.compare`."""
        log_p, log_normaliser = self.outcomes(rows, s, tiling)
        log_t = self.logprobs[rows]
        p = log_p.exp()
        terms, part = terms_and_q(finite(log_p), finite(log_t), p, divergence)
        # Padding, and a rest where k = V, are no outcomes.
        real = log_t != -math.inf
        terms, part = (torch.where(real, values, 0) for values in (terms, part))
        entropy = torch.zeros_like(log_normaliser)
        rest, of_rest = log_p[:, -1:].to(s.dtype), part[:, -1:].to(s.dtype)
        for columns in slices(s.shape[1] - 1, tiling.columns):
            log_v = s[:, columns].sub_(log_normaliser.unsqueeze(1))
            entropy.sub_((log_v.exp() * log_v).sum(1))
            # Each token of the rest has its share of the rest's q. Tokens of the support get theirs below.
            torch.sub(log_v, rest, out=q[:, columns]).exp_().mul_(of_rest)
        q.scatter_(1, self.ids[rows], part[:, :-1].to(q.dtype))
        return terms.sum(1).to(s.dtype), part.sum(1).to(s.dtype), entropy, log_normaliser


def finite(values: Tensor) -> Tensor:
    """The values with 0 for -inf, to be multiplied by a probability of 0."""
    return torch.where(values == -math.inf, 0, values)


def entropy_of(logprobs: Tensor) -> Tensor:
    """The entropy of each row."""
    return -(logprobs.exp() * finite(logprobs)).sum(1)


def topk_target(ids: Tensor, logprobs: Tensor, count: int, vocabulary: int | None) -> TopKTarget:
    """The target of a checked top k; ids are checked only with a `vocabulary`. Raises ValueError."""
    if ids.dim() != 2 or ids.shape != logprobs.shape or len(ids) != count:
        raise ValueError(
            f"ids and logprobs must have shape [N, k] with N = {count}, got {list(ids.shape)} and "
            f"{list(logprobs.shape)}"
        )
    logprobs = logprobs.detach().double()
    real = logprobs != -math.inf
    mass = torch.where(real, logprobs, -math.inf).exp().sum(1)
    if bool(((mass > 1.01) | mass.isnan()).any()):
        row = int(((mass > 1.01) | mass.isnan()).int().argmax())
        raise ValueError(
            f"the {ids.shape[1]} log-probabilities of token {row} sum to a probability of {float(mass[row]):.4g}, "
            "which must be 1 or less: expected natural logarithms after the softmax, at temperature 1"
        )
    ids = ids.long()
    full = torch.zeros(count, dtype=torch.bool, device=ids.device)
    if vocabulary is not None:
        outside = real & ((ids < 0) | (ids >= vocabulary))
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(
                f"token {row} of the teacher's top k has id {int(ids[row, column])}, but the student's vocabulary has "
                f"{vocabulary} tokens: teacher and student must share one vocabulary"
            )
        ids = torch.where(real, ids, vocabulary)
        ordered = ids.sort(1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != vocabulary)
        if bool(twice.any()):
            row, column = twice.nonzero()[0].tolist()
            raise ValueError(f"token {row} of the teacher's top k has id {int(ordered[row, column])} twice")
        full = real.sum(1) == vocabulary
    rest = torch.where(full, 0, (1 - mass).clamp(min=SMALLEST_TAIL))
    logs = torch.cat([logprobs, rest.log().unsqueeze(1)], 1)
    return TopKTarget(ids, logs - (mass + rest).log().unsqueeze(1))
