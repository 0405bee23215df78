"""The public functions: divergence and statistics of each token from hidden states and heads, with input checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rlkd.divergence.autograd import compare
from rlkd.divergence.formulas import Divergence
from rlkd.divergence.targets import LogitsTarget, entropy_of, finite, topk_target
from rlkd.divergence.tiles import (
    Head,
    fill_log_softmax,
    minus_expectation,
    new_tile,
    product_dtype_of,
    project,
    slices,
    sum_dtype_of,
    tiling_of,
)


class DivergenceKernel(Protocol):
    """Another implementation behind `chunked_divergence`, such as a fused one for a GPU.

    Takes its tensors after the checks, those of the teacher detached. Returns divergence [N], whose backward pass must
    honour any upstream gradient, and entropy [N]. Raises ValueError for an unsupported divergence.
    """

    def __call__(
        self, student_hidden: Tensor, student: Head, teacher_hidden: Tensor, teacher: Head, divergence: Divergence, /
    ) -> tuple[Tensor, Tensor]:
        """Compare."""


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the tokens of a trace under two models, each [N], in nats, at the sampling temperature, detached.

    Log-probability of the token in the trace and entropy of the distribution, for teacher and student; `cross_entropy`
    is -sum_v p_S(v) log p_T(v), `kl` KL(S || T). All but the teacher's are None without a student.
    """

    teacher_logprob: Tensor
    teacher_entropy: Tensor
    student_logprob: Tensor | None = None
    student_entropy: Tensor | None = None
    cross_entropy: Tensor | None = None
    kl: Tensor | None = None


def chunked_divergence(
    student_hidden: Tensor,
    student: Head,
    teacher_hidden: Tensor,
    teacher: Head,
    divergence: Divergence,
    *,
    anticipated_weights: Tensor | None = None,
    kernel: DivergenceKernel | None = None,
    token_chunk: int | None = None,
    vocabulary_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The divergence of each token, [N], and the student's entropy at the divergence's temperature, [N], detached.

    Any upstream gradient is honoured, so per-token weights may multiply the result. The gradient of a trained head
    needs these weights: with `anticipated_weights` [N], what the result will be multiplied by up to a common factor,
    it is made in the forward pass and the logits are computed once. Without, or if the upstream gradient differs, the
    backward pass computes the logits again: the same gradient for half as much work again.

    Heads are read during the call, and later only where logits are computed again. So a sharded head may be gathered
    around the call.

    Hidden states are [N, H_s] and [N, H_t], only rows that count; heads are [V, H_s] and [V, H_t]. `kernel` replaces
    the computation. Tiles have `token_chunk` rows, by default 64 MiB in float32 (256 MiB on a GPU), in blocks of
    `vocabulary_chunk` columns. Raises ValueError for shapes that do not match.
    """
    _check(student_hidden, student, "student")
    _check(teacher_hidden, teacher, "teacher")
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(f"student's hidden states have {len(student_hidden)} tokens, teacher's {len(teacher_hidden)}")
    if len(student.weight) != len(teacher.weight):
        raise ValueError(
            f"student's head has {len(student.weight)} tokens, teacher's {len(teacher.weight)}. If one vocabulary "
            "only pads the other, cut both heads to the common width; otherwise the models do not match"
        )
    teacher_hidden = teacher_hidden.detach()
    bias = None if teacher.bias is None else teacher.bias.detach()
    teacher = replace(teacher, weight=teacher.weight.detach(), bias=bias)
    if kernel is not None:
        per_token, entropy = kernel(student_hidden, student, teacher_hidden, teacher, divergence)
        return per_token, entropy.detach()
    target = LogitsTarget(teacher_hidden, teacher, product_dtype_of(teacher_hidden))
    tiling = tiling_of(token_chunk, vocabulary_chunk, student)
    return compare(student_hidden, student, target, divergence, tiling, anticipated_weights)


def topk_divergence(
    student_hidden: Tensor,
    student: Head,
    ids: Tensor,
    logprobs: Tensor,
    divergence: Divergence,
    *,
    anticipated_weights: Tensor | None = None,
    token_chunk: int | None = None,
    vocabulary_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `chunked_divergence`, from the log-probabilities of the teacher's `k` likeliest tokens.

    Both sides are distributions over k + 1 outcomes: these tokens and "any other". That is a lower bound of the
    divergence over the whole vocabulary (data processing inequality), equal to it where k = V. The teacher's mass of
    "any other" is 1 minus that of the k, at least `SMALLEST_TAIL`; where rounding leaves the k more than that, they
    are scaled down to fit. The student's is summed from its own logits, and so exact however small it is.

    `ids` [N, k] are distinct in a row; `logprobs` [N, k] natural, at temperature 1, -inf for padding. Raises
    ValueError for another temperature, ids outside the student's vocabulary or twice in a row, and log-probabilities
    that sum to more than 1.01 or are not numbers.
    """
    _check(student_hidden, student, "student")
    if divergence.temperature != 1:
        raise ValueError(
            f"temperature={divergence.temperature}: a teacher's top-k log-probabilities can only be compared at "
            "temperature 1, since softening them needs the logits of the whole vocabulary; set temperature to 1 or "
            "use a teacher in memory"
        )
    target = topk_target(ids, logprobs, len(student_hidden), len(student.weight))
    tiling = tiling_of(token_chunk, vocabulary_chunk, student)
    return compare(student_hidden, student, target, divergence, tiling, anticipated_weights)


@torch.no_grad()
def token_statistics(
    student_hidden: Tensor | None,
    student: Head | None,
    teacher_hidden: Tensor,
    teacher: Head,
    taken: Tensor,
    temperature: float = 1.0,
    *,
    token_chunk: int | None = None,
    vocabulary_chunk: int | None = None,
) -> TokenStatistics:
    """The statistics of the tokens `taken` [N] under the teacher and, if given, the student; tiled as the divergence.

    Shapes as in `chunked_divergence`. Raises ValueError for shapes that do not match, and ids outside the vocabulary.
    """
    if (student_hidden is None) != (student is None):
        raise ValueError("student_hidden and student go together: give both or none")
    _check(teacher_hidden, teacher, "teacher")
    count, vocabulary = len(teacher_hidden), len(teacher.weight)
    _check_taken(taken, count, vocabulary)
    if student_hidden is not None and student is not None:
        _check(student_hidden, student, "student")
        if len(student_hidden) != count or len(student.weight) != vocabulary:
            raise ValueError(
                f"student: {len(student_hidden)} tokens and a vocabulary of {len(student.weight)}; teacher: {count} "
                f"and {vocabulary}; both must be equal"
            )
    tiling = tiling_of(token_chunk, vocabulary_chunk, teacher)
    sum_dtype = sum_dtype_of(teacher_hidden)
    names = [
        name for name in TokenStatistics.__dataclass_fields__ if name.startswith("teacher") or student is not None
    ]
    values = {name: teacher_hidden.new_empty(count, dtype=sum_dtype) for name in names}
    teacher_tile = new_tile(teacher_hidden, teacher, tiling, sum_dtype)
    student_tile = teacher_tile if student is None else torch.empty_like(teacher_tile)
    for rows in slices(count, tiling.tokens):
        t, at = teacher_tile[: rows.stop - rows.start], taken[rows].unsqueeze(1)
        fill_log_softmax(t, teacher_hidden[rows], teacher, temperature, tiling)
        values["teacher_logprob"][rows] = t.gather(1, at).squeeze(1)
        values["teacher_entropy"][rows] = minus_expectation(t, t, tiling)
        if student_hidden is not None and student is not None:
            s = student_tile[: rows.stop - rows.start]
            fill_log_softmax(s, student_hidden[rows], student, temperature, tiling)
            values["student_logprob"][rows] = s.gather(1, at).squeeze(1)
            values["student_entropy"][rows] = minus_expectation(s, s, tiling)
            values["cross_entropy"][rows] = minus_expectation(s, t, tiling)
            # Not the difference of the last two, which would lose digits where the models agree.
            values["kl"][rows] = -minus_expectation(s, s, tiling, minus=t)
    return TokenStatistics(**values)


@torch.no_grad()
def topk_statistics(
    ids: Tensor,
    logprobs: Tensor,
    taken_logprob: Tensor,
    student_hidden: Tensor | None = None,
    student: Head | None = None,
    taken: Tensor | None = None,
    *,
    token_chunk: int | None = None,
    vocabulary_chunk: int | None = None,
) -> TokenStatistics:
    """As `token_statistics` at temperature 1, from a teacher's top k (see `topk_divergence`).

    `teacher_logprob` (`taken_logprob` [N], in the top k or not) and the student's own statistics are exact.
    `teacher_entropy`, `cross_entropy` and `kl` are taken over k + 1 outcomes and therefore lower bounds.
    `student_hidden`, `student` and `taken` are given together or not at all.
    """
    count = len(taken_logprob)
    if student_hidden is None or student is None or taken is None:
        if not (student_hidden is None and student is None and taken is None):
            raise ValueError("student_hidden, student and taken go together: give all or none")
        target = topk_target(ids, logprobs, count, None)
        return TokenStatistics(taken_logprob.float(), entropy_of(target.logprobs).float())
    _check(student_hidden, student, "student")
    _check_taken(taken, count, len(student.weight))
    target = topk_target(ids, logprobs, count, len(student.weight))
    if len(student_hidden) != count:
        raise ValueError(f"{count} tokens of the teacher, but student_hidden has {len(student_hidden)}")
    tiling = tiling_of(token_chunk, vocabulary_chunk, student)
    sum_dtype = sum_dtype_of(student_hidden)
    tile = new_tile(student_hidden, student, tiling, sum_dtype, extra=1)
    values = {
        name: torch.empty(count, dtype=sum_dtype, device=student_hidden.device)
        for name in ("student_logprob", "student_entropy", "cross_entropy", "kl")
    }
    for rows in slices(count, tiling.tokens):
        padded = tile[: rows.stop - rows.start]
        s = padded[:, :-1]
        project(s, student_hidden[rows], student, 1.0, product_dtype_of(student_hidden), tiling)
        outcomes, log_normaliser = target.outcomes(rows, padded, tiling)
        s.sub_(log_normaliser.unsqueeze(1))
        p, own, teacher = outcomes.exp(), finite(outcomes), finite(target.logprobs[rows])
        values["student_logprob"][rows] = s.gather(1, taken[rows].unsqueeze(1)).squeeze(1)
        values["student_entropy"][rows] = minus_expectation(s, s, tiling)
        values["cross_entropy"][rows] = -(p * teacher).sum(1).to(sum_dtype)
        values["kl"][rows] = (p * (own - teacher)).sum(1).to(sum_dtype)
    return TokenStatistics(taken_logprob.to(sum_dtype), entropy_of(target.logprobs).to(sum_dtype), **values)


def weighted_mean(per_token: Tensor, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum(weights * per_token) / denominator, a scalar with a graph wherever `per_token` has one.

    No gradient flows through the weights, of the shape of `per_token`, which may hold anything where a weight is 0. A
    denominator of 0 (nothing to average over) counts as 1.
    """
    if per_token.shape != weights.shape:
        raise ValueError(f"per_token has shape {list(per_token.shape)}, weights {list(weights.shape)}")
    weights = weights.detach().to(per_token.dtype)
    total = (torch.where(weights != 0, per_token, 0) * weights).sum()
    whole = torch.as_tensor(denominator, dtype=per_token.dtype, device=per_token.device).detach()
    return total / torch.where(whole == 0, 1, whole)


def _check(hidden: Tensor, head: Head, whose: str) -> None:
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{whose}'s hidden states have shape {list(hidden.shape)}, and its head {list(head.weight.shape)}; "
            "expected [N, H] and [V, H]"
        )
    if hidden.device != head.weight.device:
        raise ValueError(f"{whose}'s hidden states are on {hidden.device}, its head on {head.weight.device}")


def _check_taken(taken: Tensor, count: int, vocabulary: int) -> None:
    if taken.shape != (count,):
        raise ValueError(f"taken has shape {list(taken.shape)}, expected [{count}]")
    if count and not bool(((taken >= 0) & (taken < vocabulary)).all()):
        wrong = taken[(taken < 0) | (taken >= vocabulary)][0]
        raise ValueError(f"taken holds id {int(wrong)}, but the vocabulary has {vocabulary} tokens")
