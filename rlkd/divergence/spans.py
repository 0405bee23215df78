"""Divergence of a student from a teacher with another tokenizer, on spans of the same text.

Both models split one completion into tokens, each in its own way. A span is a shortest piece of text that begins and
ends at a token boundary of both:

    student   | The| answ|er| is|
    teacher   | The| answer | is|        spans: " The", " answer", " is"

At the start of a span both models have a distribution of the next token after the same text. They are compared over

- the span itself: the product of its tokens' probabilities (chain rule), plus those of tokens with its whole text;
- each shared token: a pair of tokens of the same text. The first token of a span counts without the span. A token
  without a partner counts with the shared token that its text begins with: " Ben has" with " Ben", after which the
  other side goes on with " has";
- the others, for which there is none: the k likeliest of each side, matched by rank, whatever their texts (ULD,
  Boizard et al., 2402.12030), and one outcome for the rest.

The probabilities of each side sum to 1, so all of `rlkd.divergence.Divergence` applies. With one tokenizer all tokens
are shared and each span is one of them: the result is `chunked_divergence`. Matching shared tokens by id and sorting
the rest is the idea of GOLD; the others are our choices: taking the span out of its first token, joining tokens by how
they begin, and one divergence for all outcomes.

Without the joining, models that agree would differ wherever one side has longer tokens, and the student would lose its
longer tokens for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlkd.divergence.api import TokenStatistics
from rlkd.divergence.formulas import Divergence, terms_and_q
from rlkd.divergence.targets import SMALLEST_TAIL
from rlkd.divergence.tiles import Head, add_product, product_dtype_of, slices, tiling_of

_IMPOSSIBLE = -1e4
"""The log-probability of a token whose mass the span has taken, finite so that 0 times it is 0."""
_SMALLEST = 1e-30
"""Probability of joined tokens whose own is 0, so that its logarithm is finite."""


@dataclass(frozen=True)
class SharedTokens:
    """Which tokens of two vocabularies have the same text.

    `student`, `teacher` [M]: the ids of each pair. `student_only`, `teacher_only`: ids without a partner.
    `pair_of_student` [V_S], `pair_of_teacher` [V_T]: the place of an id's pair, -1 without. `student_prefixed`,
    `teacher_prefixed` [2, F]: ids without a partner that begin with the text of a pair, and the place of that pair;
    they are not in `student_only` and `teacher_only`.
    """

    student: Tensor
    teacher: Tensor
    student_only: Tensor
    teacher_only: Tensor
    pair_of_student: Tensor
    pair_of_teacher: Tensor
    student_prefixed: Tensor
    teacher_prefixed: Tensor

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[int, int]],
        student_size: int,
        teacher_size: int,
        device: Any,
        prefixed: Sequence[Mapping[int, int]] = ({}, {}),
    ) -> SharedTokens:
        """From pairs of ids and the number of rows of both heads; ids beyond them are left out.

        `prefixed`: for each side, ids without a partner and the place of the pair that they begin with.
        """
        sizes = (student_size, teacher_size)
        places = [place for place, (one, other) in enumerate(pairs) if one < student_size and other < teacher_size]
        kept, now = [pairs[place] for place in places], {place: new for new, place in enumerate(places)}
        student, teacher = torch.tensor(kept, dtype=torch.long).reshape(-1, 2).unbind(1)
        of_pairs = torch.full((student_size,), -1), torch.full((teacher_size,), -1)
        of_pairs[0][student], of_pairs[1][teacher] = torch.arange(len(kept)), torch.arange(len(kept))
        joined = [
            torch.tensor([(i, now[place]) for i, place in side.items() if i < size and place in now], dtype=torch.long)
            for side, size in zip(prefixed, sizes, strict=True)
        ]
        joined = [ids.reshape(-1, 2).t() for ids in joined]
        only = []
        for own, ids in zip(of_pairs, joined, strict=True):
            alone = own < 0
            alone[ids[0]] = False
            only.append(alone.nonzero().squeeze(1))
        return cls(*(ids.to(device) for ids in (student, teacher, *only, *of_pairs, *joined)))


@dataclass(frozen=True)
class SpannedTokens:
    """One side of a batch: hidden states [N, H], their head, the tokens [N], and the spans among them, [S, 2]."""

    hidden: Tensor
    head: Head
    taken: Tensor
    spans: Tensor


def span_divergence(
    student: SpannedTokens, teacher: SpannedTokens, shared: SharedTokens, divergence: Divergence, k: int
) -> tuple[Tensor, Tensor]:
    """Divergence and student's entropy of each token of the student, [N]; entropy detached.

    The divergence of a span is that of its first token; further ones, and tokens outside spans, have 0. Gradients
    flow to the student, through the start of each span and the tokens inside. The logits of a few spans are in memory
    at a time, and are computed again in the backward pass.
    """
    temperature = divergence.temperature
    rest, _ = _rests(student, temperature)
    with torch.no_grad():
        teacher_rest, _ = _rests(teacher, temperature)
        _, entropy = _tokens(student.hidden, student.head, student.taken, temperature)
    per_token = student.hidden.new_zeros(len(student.hidden), dtype=torch.float32)
    values = []
    for rows in _parts(student, teacher, shared):

        def part(hidden: Tensor, rest: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = rows) -> Tensor:
            head = Head(weight, bias, student.head.scale, student.head.softcap)
            s = _outcomes(hidden, head, rest, rows, student, teacher, shared, temperature, k, is_student=True)
            with torch.no_grad():
                starts = teacher.spans[rows, 0]
                t = _outcomes(
                    teacher.hidden[starts],
                    teacher.head,
                    teacher_rest[rows],
                    rows,
                    student,
                    teacher,
                    shared,
                    temperature,
                    k,
                    is_student=False,
                )
            return _Divergence.apply(s, t, divergence)

        inputs = (student.hidden[student.spans[rows, 0]], rest[rows], student.head.weight, student.head.bias)
        values.append(checkpoint(part, *inputs, use_reentrant=False))
    if values:
        per_token = per_token.index_put((student.spans[:, 0],), torch.cat(values))
    return per_token + 0 * student.hidden.sum(), entropy  # a graph, also without spans


@torch.no_grad()
def span_statistics(
    student: SpannedTokens, teacher: SpannedTokens, shared: SharedTokens, temperature: float, k: int, *, full: bool
) -> TokenStatistics:
    """Statistics of the student's tokens; NaN outside spans. `full`: with those that need the student's states.

    The teacher's log-probability and entropy of a span, sums over its own tokens, are spread evenly over the
    student's. `cross_entropy` and `kl`, over the outcomes at the start of a span, count for each of its tokens.
    """
    count = len(student.taken)
    starts, stops = student.spans.unbind(1)
    lengths = stops - starts
    own_logprob, own_entropy = _tokens(teacher.hidden, teacher.head, teacher.taken, temperature)
    owner = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths)
    within = torch.arange(len(owner), device=starts.device) - torch.repeat_interleave(
        lengths.cumsum(0) - lengths, lengths
    )
    places = starts[owner] + within

    def spread(values: Tensor) -> Tensor:
        result = torch.full((count,), torch.nan, device=values.device)
        result[places] = values.float()[owner]
        return result

    sums = (torch.stack([_sums(v, teacher.spans) for v in (own_logprob, own_entropy)]) / lengths).unbind(0)
    found = {"teacher_logprob": spread(sums[0]), "teacher_entropy": spread(sums[1])}
    if not full:
        return TokenStatistics(**found)
    logprob, entropy = _tokens(student.hidden, student.head, student.taken, temperature)
    rests = [_rests(side, temperature)[0] for side in (student, teacher)]
    crossed, divergences = [], []
    for rows in _parts(student, teacher, shared):
        s, t = (
            _outcomes(
                side.hidden[side.spans[rows, 0]],
                side.head,
                rest[rows],
                rows,
                student,
                teacher,
                shared,
                temperature,
                k,
                is_student=side is student,
            )
            for side, rest in zip((student, teacher), rests, strict=True)
        )
        crossed.append(-(s.exp() * t).sum(1))
        divergences.append((s.exp() * (s - t)).sum(1))
    nothing = logprob.new_zeros(0)
    return TokenStatistics(
        **found,
        student_logprob=logprob,
        student_entropy=entropy,
        cross_entropy=spread(torch.cat([nothing, *crossed])),
        kl=spread(torch.cat([nothing, *divergences])),
    )


class _Divergence(torch.autograd.Function):
    """The divergence of rows of log-probabilities [n, K] that sum to 1, with the gradient of `terms_and_q`."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, divergence: Divergence) -> Tensor:
        terms, q = terms_and_q(s, t, s.exp(), divergence)
        ctx.save_for_backward(q)
        return terms.sum(1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        [q] = ctx.saved_tensors
        return q * upstream[0].unsqueeze(1), None, None


class _Product(torch.autograd.Function):
    """hidden [n, H] @ weight.T in float32 [n, V], also for half-precision weights: sums are not rounded to theirs.

    `dtype`: of the factors, as in the divergences over tokens (`product_dtype_of`).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype = dtype
        made = hidden.new_empty((len(hidden), len(weight)), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for columns in slices(len(weight), tiling_of(None, None, Head(weight)).columns):
                add_product(made[:, columns], hidden.to(dtype), weight[columns].to(dtype).t(), keep=False)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        made = [
            torch.zeros(inputs.shape, dtype=torch.float32, device=inputs.device) if needed else None
            for inputs, needed in zip((hidden, weight), ctx.needs_input_grad[:2], strict=True)
        ]
        with torch.autocast(hidden.device.type, enabled=False):
            for columns in slices(len(weight), tiling_of(None, None, Head(weight)).columns):
                if made[0] is not None:
                    add_product(made[0], upstream[:, columns], weight[columns].to(ctx.dtype))
                if made[1] is not None:
                    add_product(made[1][columns], upstream[:, columns].t(), hidden.to(ctx.dtype))
        return *(None if g is None else g.to(i.dtype) for g, i in zip(made, (hidden, weight), strict=True)), None


def _outcomes(
    hidden: Tensor,
    head: Head,
    rest: Tensor,
    rows: slice,
    student: SpannedTokens,
    teacher: SpannedTokens,
    shared: SharedTokens,
    temperature: float,
    k: int,
    *,
    is_student: bool,
) -> Tensor:
    """Log-probabilities of the outcomes at the starts of some spans, [n, 1 + M + k + 1], in the same order for both.

    `rest` [n]: log-probability of the span's tokens after the first. `is_student`: whose they are.
    """
    own, other = (student, teacher) if is_student else (teacher, student)
    ids, only = (shared.student, shared.student_only) if is_student else (shared.teacher, shared.teacher_only)
    prefixed = shared.student_prefixed if is_student else shared.teacher_prefixed
    first = own.taken[own.spans[rows, 0]]
    logprobs = _logits(hidden, head, temperature).log_softmax(-1)
    start = logprobs.gather(1, first.unsqueeze(1)).squeeze(1)
    several = (own.spans[rows, 1] - own.spans[rows, 0]) > 1
    safe = torch.where(several, rest.clamp(max=-1e-6), -1.0)
    left = torch.where(several, start + torch.log1p(-safe.exp()), _IMPOSSIBLE)
    # A token with the whole text of the span, the partner of the other side's only token.
    alone = (other.spans[rows, 1] - other.spans[rows, 0]) == 1
    pair = (shared.pair_of_teacher if is_student else shared.pair_of_student)[other.taken[other.spans[rows, 0]]]
    whole = torch.where(alone & (pair >= 0), ids[pair.clamp(min=0)], -1)
    apart = (whole >= 0) & (whole != first)
    at = whole.clamp(min=0).unsqueeze(1)
    further = torch.where(apart, logprobs.gather(1, at).squeeze(1), _IMPOSSIBLE)
    span = torch.logaddexp(start + torch.where(several, rest, 0.0), further)
    logprobs = logprobs.scatter(1, first.unsqueeze(1), left.unsqueeze(1))
    kept = logprobs.gather(1, at).squeeze(1)
    logprobs = logprobs.scatter(1, at, torch.where(apart, _IMPOSSIBLE, kept).unsqueeze(1))
    paired = logprobs[:, ids]
    if shared.student_prefixed.numel() or shared.teacher_prefixed.numel():
        paired = _joined(paired, logprobs[:, prefixed[0]], prefixed[1])
        # Where the whole span is one token of a pair, what begins as that token begins as the span. Two pairs may have
        # the text of the span, one token of each side: both count with it, on both sides.
        own_pair = (shared.pair_of_student if is_student else shared.pair_of_teacher)[first]
        for begun in (torch.where(several, -1, own_pair), torch.where(alone, pair, -1)):
            at = begun.clamp(min=0).unsqueeze(1)
            inside = paired.gather(1, at).squeeze(1)
            span = torch.logaddexp(span, torch.where(begun >= 0, inside, _IMPOSSIBLE))
            paired = paired.scatter(1, at, torch.where(begun >= 0, _IMPOSSIBLE, inside).unsqueeze(1))
    outcomes = [span.unsqueeze(1), paired]
    if len(shared.student_only) or len(shared.teacher_only):
        lowest = math.log(SMALLEST_TAIL)
        free = logprobs[:, only]
        top = free.topk(min(k, len(shared.student_only), len(shared.teacher_only)), dim=1).values
        tail = (free.exp().sum(1) - top.exp().sum(1)).clamp(min=SMALLEST_TAIL).log()
        outcomes += [top.clamp(min=lowest), tail.unsqueeze(1)]
    return torch.cat(outcomes, dim=1)


def _joined(shared: Tensor, prefixed: Tensor, places: Tensor) -> Tensor:
    """Log-probabilities [n, M] of shared tokens with those of the tokens [n, F] that count with them."""
    if not len(places):
        return shared
    further = torch.zeros_like(shared).index_add(1, places, prefixed.exp())
    reached = torch.zeros(shared.shape[1], dtype=torch.bool, device=shared.device)
    reached[places] = True
    return torch.where(reached, torch.logaddexp(shared, further.clamp(min=_SMALLEST).log()), shared)


def _rests(side: SpannedTokens, temperature: float) -> tuple[Tensor, Tensor]:
    """For each span the log-probability of its tokens after the first, [S], and the places of these tokens."""
    starts, stops = side.spans.unbind(1)
    further = (stops - starts - 1).clamp(min=0)
    owner = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), further)
    before = torch.repeat_interleave(further.cumsum(0) - further, further)
    places = starts[owner] + 1 + torch.arange(len(owner), device=starts.device) - before
    logprobs, _ = _tokens(side.hidden[places], side.head, side.taken[places], temperature)
    return logprobs.new_zeros(len(starts)).index_add(0, owner, logprobs), places


def _tokens(hidden: Tensor, head: Head, taken: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, with its graph, and entropy of its distribution, detached; [N] each."""

    def part(hidden: Tensor, weight: Tensor, bias: Tensor | None, taken: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = _logits(hidden, Head(weight, bias, head.scale, head.softcap), temperature).log_softmax(-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(1)
        return logprobs.gather(1, taken.unsqueeze(1)).squeeze(1), entropy

    made = [
        checkpoint(part, hidden[rows], head.weight, head.bias, taken[rows], use_reentrant=False)
        for rows in slices(len(hidden), tiling_of(None, None, head).tokens)
    ]
    nothing = torch.zeros(0, device=hidden.device)
    logprobs, entropies = (torch.cat([nothing, *(pair[index] for pair in made)]) for index in (0, 1))
    return logprobs, entropies.detach()


def _logits(hidden: Tensor, head: Head, temperature: float) -> Tensor:
    logits = _Product.apply(hidden, head.weight, product_dtype_of(hidden))
    if head.bias is not None:
        logits = logits + head.bias.float()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * (logits / head.softcap).tanh()
    return logits / temperature


def _sums(values: Tensor, spans: Tensor) -> Tensor:
    """The sum of the values [N] in each span, [S]."""
    running = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    return (running[spans[:, 1]] - running[spans[:, 0]]).float()


def _parts(student: SpannedTokens, teacher: SpannedTokens, shared: SharedTokens) -> list[slice]:
    """Slices of the spans whose logits are in memory together: half as many where tokens are joined, which copies."""
    size = min(tiling_of(None, None, side.head).tokens for side in (student, teacher))
    joins = shared.student_prefixed.numel() or shared.teacher_prefixed.numel()
    return list(slices(len(student.spans), max(1, size // (4 if joins else 2))))
