"""How far a student's next-token distribution is from its teacher's, token by token, for vocabularies of any size.

The logits of a batch, [N, V], are never built: two tiles of `token_chunk` rows are, over and over, and what they are
needed for is taken from them before the next rows overwrite them. So the peak does not grow with the tokens.

    per_token, entropy = chunked_divergence(
        student_hidden[mask],  # (N, H_s), rows that count, and only those: the others may hold anything
        Head(student.lm_head.weight),  # (V, H_s)
        teacher_hidden[mask],  # (N, H_t)
        Head(teacher.lm_head.weight),  # (V, H_t)
        Divergence("jsd", beta=1.0),  # reverse KL
        anticipated_weights=weights,  # (N,)
    )
    weighted_mean(per_token, weights, denominator=len(weights)).backward()

What holds for all functions here:

1. Gradients flow to the student's hidden states and to its head (weight and bias, tied or not) where they need one; a
   head that needs none costs nothing. Never to the teacher, to log-probabilities, or through weights.
2. Sums are in float32 whatever the inputs are (float64 if the student's hidden states are). Under autocast, hidden
   states and heads are rounded to autocast's dtype first, as the model's own forward does it.
3. Logits have to be finite. Values and gradients do not depend on the chunk sizes but for rounding.
4. No tokens are a case like any other: empty results, with a graph.

The gradient with respect to the logits of one token is, for each divergence D here, with p the student's distribution,

    p * (a - <p, a>)    with a = dD/dp    which is    q - p * sum(q)    with q = p * a

so that each divergence is two formulas, its terms and its q (`_terms`), and everything else is shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Kind = Literal["jsd", "skewed_forward", "skewed_reverse"]

SMALLEST_TAIL = 1e-7
"""Probability. What a teacher leaves outside of its top k is at least that: a difference to 1 tells no more, and the
logarithm of nothing is infinite. It changes a forward KL by some 1e-6; a reverse KL, which counts what the student has
there, it keeps finite, and lower where the teacher's true rest is smaller still."""

# Entries of one tile (there are two), and columns that are worked on at a time. On a CPU the columns of a tile should
# stay in its cache from one operation to the next; on a GPU large products count. Our choice, by
# benchmarks/kd_loss_memory.py.
_TILE = {"cpu": 2**24, "other": 2**26}
_COLUMNS = {"cpu": 2**12, "other": 2**15}
# Products of half precision with sums in float32, on a GPU: since torch 2.8.
_HALF_PRODUCTS = hasattr(torch.ops.aten.addmm, "dtype_out")


@dataclass(frozen=True)
class Head:
    """A model's last layer: logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    Args:
        weight: [V, H].
        bias: [V], or None.
        scale: what logits are multiplied by (Cohere's `logit_scale`, Granite's 1 / `logits_scaling`).
        softcap: where logits are bent to stay below in size (Gemma's `final_logit_softcapping`); None leaves them.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ValueError(f"a head's weight has shape [V, H], got {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"a head of {self.weight.shape[0]} tokens has a bias of that length, got {list(self.bias.shape)}"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap={self.softcap} has to be above 0; None stands for no cap")


@dataclass(frozen=True)
class Divergence:
    """Which divergence of the teacher's distribution T and the student's S, both softened by `temperature`.

    - `jsd`: beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S for 0 < beta < 1 (Agarwal et al.,
      2306.13649, in the notation of TRL); its limits are taken without the factor that vanishes, so `beta=0` is the
      forward KL(T || S), `beta=1` the reverse KL(S || T).
    - `skewed_forward`: KL(T || skew T + (1 - skew) S). `skewed_reverse`: KL(S || (1 - skew) T + skew S). Both are
      DistiLLM's (Ko et al., 2402.03898), whose choice for the skew is 0.1; at 0 they are forward and reverse KL.

    `beta` counts for `jsd` only, `skew` for the others only.
    """

    kind: Kind = "jsd"
    beta: float = 1.0
    skew: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is no divergence; there are {', '.join(get_args(Kind))}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} has to lie in [0, 1]: 0 is the forward KL, 1 the reverse KL")
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew={self.skew} has to lie in [0, 1): at 1 a distribution is compared with itself")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature} has to be above 0")


class DivergenceKernel(Protocol):
    """Another implementation behind `chunked_divergence`, such as a fused one for a GPU.

    Gets the tensors as `chunked_divergence` gets them, after its checks, with teacher's tensors detached. Returns the
    divergence per token, [N], whose backward has to honour any upstream gradient, and the student's entropy, [N].
    Raises ValueError for a divergence that it does not have.
    """

    def __call__(
        self, student_hidden: Tensor, student: Head, teacher_hidden: Tensor, teacher: Head, divergence: Divergence, /
    ) -> tuple[Tensor, Tensor]:
        """Compare."""


@dataclass(frozen=True)
class TokenStatistics:
    """What two models say about the tokens of a trace; everything [N], in nats, at the sampling temperature, detached.

    Attributes:
        teacher_logprob: of the token that stands there.
        teacher_entropy: of the teacher's distribution.
        student_logprob: the same for the student; None, as all that follows, where no student was given.
        student_entropy: of the student's distribution.
        cross_entropy: -sum_v p_S(v) log p_T(v), the surprise that the teacher expects of the student's tokens.
        kl: KL(S || T).
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

    Any upstream gradient is honoured, so per-token weights may multiply the result. Where the student's head is
    trained, its gradient needs them: if `anticipated_weights` says beforehand what the result will be multiplied by
    (up to a common factor), the gradient is made in the forward pass and the logits are computed once. Otherwise, or
    if something else comes back, they are computed again in the backward pass: the same gradient for half as much
    work again.

    Heads are read during the call; after it, only where logits are computed again. So a sharded head may be gathered
    around the call.

    Args:
        student_hidden: [N, H_s], the rows that count (`hidden[mask]`).
        student: its head, [V, H_s].
        teacher_hidden: [N, H_t].
        teacher: its head, [V, H_t].
        divergence: which one, at which temperature.
        anticipated_weights: [N], never applied to the result.
        kernel: computes instead of this module, which then only checks; the other arguments have no meaning then.
        token_chunk: rows of a tile; by default as many as 64 MiB hold in float32 (256 MiB on a GPU).
        vocabulary_chunk: columns that are worked on at a time.

    Raises:
        ValueError: for shapes that do not belong together.
    """
    _check(student_hidden, student, "student")
    _check(teacher_hidden, teacher, "teacher")
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(
            f"student's hidden states are of {len(student_hidden)} tokens, teacher's of {len(teacher_hidden)}"
        )
    if len(student.weight) != len(teacher.weight):
        raise ValueError(
            f"student's head has {len(student.weight)} tokens, teacher's {len(teacher.weight)}. If one vocabulary is "
            "the other one, padded, cut both heads to the common width; otherwise the models do not fit together"
        )
    teacher_hidden = teacher_hidden.detach()
    teacher = _detached(teacher)
    if kernel is not None:
        per_token, entropy = kernel(student_hidden, student, teacher_hidden, teacher, divergence)
        return per_token, entropy.detach()
    target = _Logits(teacher_hidden, teacher, _product_dtype(teacher_hidden))
    tiling = _tiling(token_chunk, vocabulary_chunk, student)
    return _compare(student_hidden, student, target, divergence, tiling, anticipated_weights)


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
    """As `chunked_divergence`, for a teacher of whom the `k` log-probabilities of its likeliest tokens are known.

    Compared are distributions over k + 1 outcomes, these tokens and "any other one", on both sides. That is a lower
    bound of the divergence over the whole vocabulary (data processing inequality), equal to it where k = V. The
    teacher's mass for "any other one" is what the k leave, at least `SMALLEST_TAIL`; where rounding made the k sum to
    more than that leaves, they are scaled down to fit. The student's is summed from its own logits, and so exact
    however small it is.

    Args:
        student_hidden: [N, H_s], the rows that count.
        student: its head, [V, H_s].
        ids: [N, k], distinct in a row. An entry with log-probability -inf is padding, whatever its id.
        logprobs: [N, k], natural, at temperature 1.
        divergence: which one; its temperature has to be 1, since softening needs all logits.
        anticipated_weights: as in `chunked_divergence`.
        token_chunk: as in `chunked_divergence`.
        vocabulary_chunk: as in `chunked_divergence`.

    Raises:
        ValueError: for another temperature, ids outside of the student's vocabulary or twice in a row, and
            log-probabilities that sum to more than 1.01 or are no numbers.
    """
    _check(student_hidden, student, "student")
    if divergence.temperature != 1:
        raise ValueError(
            f"temperature={divergence.temperature}: a teacher's top-k log-probabilities can only be compared at "
            "temperature 1, since softening them needs the logits of the whole vocabulary; set temperature to 1 or "
            "use a teacher in memory"
        )
    target = _topk(ids, logprobs, len(student_hidden), len(student.weight))
    tiling = _tiling(token_chunk, vocabulary_chunk, student)
    return _compare(student_hidden, student, target, divergence, tiling, anticipated_weights)


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
    """What teacher and, if given, student say about the tokens `taken` [N]; chunked as `chunked_divergence`.

    Args:
        student_hidden: [N, H_s], or None.
        student: its head, [V, H_s], or None.
        teacher_hidden: [N, H_t].
        teacher: its head, [V, H_t].
        taken: [N], ids of the tokens that stand there.
        temperature: of the softmax on both sides.
        token_chunk: as in `chunked_divergence`.
        vocabulary_chunk: as in `chunked_divergence`.

    Raises:
        ValueError: for shapes that do not belong together, and ids outside of the vocabulary.
    """
    if (student_hidden is None) != (student is None):
        raise ValueError("student_hidden and student belong together: give both or none")
    _check(teacher_hidden, teacher, "teacher")
    count, vocabulary = len(teacher_hidden), len(teacher.weight)
    _check_taken(taken, count, vocabulary)
    if student_hidden is not None and student is not None:
        _check(student_hidden, student, "student")
        if len(student_hidden) != count or len(student.weight) != vocabulary:
            raise ValueError(
                f"student: {len(student_hidden)} tokens and a vocabulary of {len(student.weight)}; teacher: {count} "
                f"and {vocabulary}; both have to be equal"
            )
    tiling = _tiling(token_chunk, vocabulary_chunk, teacher)
    sum_dtype = _sum_dtype(teacher_hidden)
    names = [
        name for name in TokenStatistics.__dataclass_fields__ if name.startswith("teacher") or student is not None
    ]
    found = {name: teacher_hidden.new_empty(count, dtype=sum_dtype) for name in names}
    teacher_tile = _tile(teacher_hidden, teacher, tiling, sum_dtype)
    student_tile = teacher_tile if student is None else torch.empty_like(teacher_tile)
    for rows in _slices(count, tiling.tokens):
        t, at = teacher_tile[: rows.stop - rows.start], taken[rows].unsqueeze(1)
        _log_softmax(t, teacher_hidden[rows], teacher, temperature, tiling)
        found["teacher_logprob"][rows] = t.gather(1, at).squeeze(1)
        found["teacher_entropy"][rows] = _minus_expectation(t, t, tiling)
        if student_hidden is not None and student is not None:
            s = student_tile[: rows.stop - rows.start]
            _log_softmax(s, student_hidden[rows], student, temperature, tiling)
            found["student_logprob"][rows] = s.gather(1, at).squeeze(1)
            found["student_entropy"][rows] = _minus_expectation(s, s, tiling)
            found["cross_entropy"][rows] = _minus_expectation(s, t, tiling)
            # The difference of the two before would lose digits where the models agree.
            found["kl"][rows] = -_minus_expectation(s, s, tiling, minus=t)
    return TokenStatistics(**found)


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

    `teacher_logprob` and what concerns the student alone are exact. What needs the teacher's whole distribution is
    taken over k + 1 outcomes and therefore a lower bound: `teacher_entropy`, `cross_entropy` and `kl`.

    Args:
        ids: [N, k].
        logprobs: [N, k].
        taken_logprob: [N], the teacher's log-probability of the token that stands there, in its top k or not.
        student_hidden: [N, H_s]; student, hidden states and taken tokens belong together.
        student: its head, [V, H_s].
        taken: [N], ids of the tokens that stand there.
        token_chunk: as in `chunked_divergence`.
        vocabulary_chunk: as in `chunked_divergence`.

    Raises:
        ValueError: as `topk_divergence`, and for ids outside of the vocabulary.
    """
    count = len(taken_logprob)
    if student_hidden is None or student is None or taken is None:
        if not (student_hidden is None and student is None and taken is None):
            raise ValueError("student_hidden, student and taken belong together: give all or none")
        target = _topk(ids, logprobs, count, None)
        return TokenStatistics(taken_logprob.float(), _entropy(target.logprobs).float())
    _check(student_hidden, student, "student")
    _check_taken(taken, count, len(student.weight))
    target = _topk(ids, logprobs, count, len(student.weight))
    if len(student_hidden) != count:
        raise ValueError(f"{count} tokens of the teacher, but student_hidden has {len(student_hidden)}")
    tiling = _tiling(token_chunk, vocabulary_chunk, student)
    sum_dtype = _sum_dtype(student_hidden)
    tile = _tile(student_hidden, student, tiling, sum_dtype, extra=1)
    found = {
        name: torch.empty(count, dtype=sum_dtype, device=student_hidden.device)
        for name in ("student_logprob", "student_entropy", "cross_entropy", "kl")
    }
    for rows in _slices(count, tiling.tokens):
        padded = tile[: rows.stop - rows.start]
        s = padded[:, :-1]
        _project(s, student_hidden[rows], student, 1.0, _product_dtype(student_hidden), tiling)
        outcomes, log_normaliser = target.outcomes(rows, padded, tiling)
        s.sub_(log_normaliser.unsqueeze(1))
        p, own, teacher = outcomes.exp(), _finite(outcomes), _finite(target.logprobs[rows])
        found["student_logprob"][rows] = s.gather(1, taken[rows].unsqueeze(1)).squeeze(1)
        found["student_entropy"][rows] = _minus_expectation(s, s, tiling)
        found["cross_entropy"][rows] = -(p * teacher).sum(1).to(sum_dtype)
        found["kl"][rows] = (p * (own - teacher)).sum(1).to(sum_dtype)
    return TokenStatistics(taken_logprob.to(sum_dtype), _entropy(target.logprobs).to(sum_dtype), **found)


def weighted_mean(per_token: Tensor, weights: Tensor, denominator: float | Tensor) -> Tensor:
    """sum(weights * per_token) / denominator: a scalar that has a graph if `per_token` has one, if only to give zeros.

    No gradient flows through the weights. Where a weight is 0, `per_token` may hold anything. A denominator of 0
    (there was nothing to average over) counts as 1.

    Args:
        per_token: [N], or any shape.
        weights: of the same shape.
        denominator: how many tokens the whole batch has, over all micro-batches and processes, or the sum of weights.
    """
    if per_token.shape != weights.shape:
        raise ValueError(f"per_token has shape {list(per_token.shape)}, weights {list(weights.shape)}")
    weights = weights.detach().to(per_token.dtype)
    total = (torch.where(weights != 0, per_token, 0) * weights).sum()
    whole = torch.as_tensor(denominator, dtype=per_token.dtype, device=per_token.device).detach()
    return total / torch.where(whole == 0, 1, whole)


# Everything below works on tiles: [n, V], n rows of the logits of one model, in columns of `_Tiling.columns`.


@dataclass(frozen=True)
class _Tiling:
    tokens: int
    columns: int


def _tiling(token_chunk: int | None, vocabulary_chunk: int | None, head: Head) -> _Tiling:
    for name, size in (("token_chunk", token_chunk), ("vocabulary_chunk", vocabulary_chunk)):
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} has to be 1 or more")
    kind = "cpu" if head.weight.device.type == "cpu" else "other"
    tokens = token_chunk or max(1, _TILE[kind] // max(1, len(head.weight)))
    return _Tiling(tokens, vocabulary_chunk or _COLUMNS[kind])


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _tile(hidden: Tensor, head: Head, tiling: _Tiling, dtype: torch.dtype, extra: int = 0) -> Tensor:
    return hidden.new_empty((min(len(hidden), tiling.tokens), len(head.weight) + extra), dtype=dtype)


def _sum_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _add_product(out: Tensor, left: Tensor, right: Tensor, *, keep: bool = True) -> None:
    """out (+)= left @ right, summed in `out`'s dtype. `right` comes from a model and may be in half precision."""
    if right.is_cuda and right.element_size() == 2 and out.dtype == torch.float32 and _HALF_PRODUCTS:
        # As TRL's kernel does: all three tensors in float32 would leave a GPU's fast units idle.
        left = left.to(right.dtype)
        if keep:
            torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
        else:
            torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(left.to(out.dtype), right.to(out.dtype), beta=1 if keep else 0)


def _project(out: Tensor, hidden: Tensor, head: Head, temperature: float, dtype: torch.dtype, tiling: _Tiling) -> None:
    """Fill `out` [n, V] with the logits of `hidden` [n, H], divided by the temperature."""
    hidden = hidden.to(dtype)
    for columns in _slices(out.shape[1], tiling.columns):
        z = out[:, columns]
        _add_product(z, hidden, head.weight[columns].to(dtype).t(), keep=False)
        if head.bias is not None:
            z.add_(head.bias[columns])
        if head.softcap is not None:
            z.mul_(head.scale / head.softcap).tanh_().mul_(head.softcap / temperature)
        elif head.scale != temperature:
            z.mul_(head.scale / temperature)


def _log_sum_exp(z: Tensor, tiling: _Tiling) -> Tensor:
    """[n], over the columns of `z` [n, V]; torch's own would copy all of `z`."""
    return torch.logsumexp(
        torch.stack([torch.logsumexp(z[:, columns], 1) for columns in _slices(z.shape[1], tiling.columns)], 1), 1
    )


def _log_softmax(out: Tensor, hidden: Tensor, head: Head, temperature: float, tiling: _Tiling) -> None:
    _project(out, hidden, head, temperature, _product_dtype(hidden), tiling)
    out.sub_(_log_sum_exp(out, tiling).unsqueeze(1))


def _minus_expectation(log_p: Tensor, values: Tensor, tiling: _Tiling, minus: Tensor | None = None) -> Tensor:
    """-sum_v p(v) (values(v) - minus(v)), [n]."""
    total = log_p.new_zeros(len(log_p))
    for columns in _slices(log_p.shape[1], tiling.columns):
        value = values[:, columns] if minus is None else values[:, columns] - minus[:, columns]
        total.sub_((log_p[:, columns].exp() * value).sum(1))
    return total


def _terms(s: Tensor, t: Tensor, p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence's terms, whose sum over outcomes it is, and q = p * dD/dp (module's docstring).

    Args: log-probabilities of student `s` and teacher `t`, and `p` = exp(s); all of one shape.

    With a mixture M = w T + (1 - w) S and u = log(w T / (1 - w) S), log(S / M) = -log(1 - w) - softplus(u) and
    log(T / M) = -log(w) - softplus(-u). A constant in dD/dp has no effect on the gradient; it is left out where that
    makes dD/dp vanish for tokens that the teacher rules out, instead of rounding a difference of almost equals.
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
    """log(1 + exp(values)), not cut off at 20 as torch's is by default: that would be seen in float64."""
    return torch.nn.functional.softplus(values, threshold=40)


class _Target(Protocol):
    """What the student is compared with: `_Logits` or `_TopK`."""

    @property
    def extra(self) -> int:
        """How many columns a tile has behind the vocabulary, for what is to be lost."""

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: _Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn the logits `s` [n, V] into log-probabilities, and fill `q` [n, V].

        Returns four [n]: the divergence, the sum of `q`, the student's entropy, and the logarithm of the softmax's
        denominator.
        """


@dataclass(frozen=True)
class _Logits:
    """A teacher of whom everything is known."""

    hidden: Tensor
    head: Head
    dtype: torch.dtype
    extra: int = 0

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: _Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The teacher's logits lie where q will: each column is read before it is overwritten.
        _project(q, self.hidden[rows], self.head, divergence.temperature, self.dtype, tiling)
        student_normaliser, teacher_normaliser = _log_sum_exp(s, tiling), _log_sum_exp(q, tiling)
        found, sum_q, entropy = (torch.zeros_like(student_normaliser) for _ in range(3))
        for columns in _slices(s.shape[1], tiling.columns):
            log_p = s[:, columns].sub_(student_normaliser.unsqueeze(1))
            log_t = q[:, columns].sub_(teacher_normaliser.unsqueeze(1))
            p = log_p.exp()
            terms, part = _terms(log_p, log_t, p, divergence)
            found.add_(terms.sum(1))
            sum_q.add_(part.sum(1))
            log_t.copy_(part)
            entropy.sub_(p.mul_(log_p).sum(1))
        return found, sum_q, entropy, student_normaliser


@dataclass(frozen=True)
class _TopK:
    """A teacher's top k and one outcome for all the rest.

    Attributes:
        ids: [N, k], int64; padding stands at the first id behind the vocabulary.
        logprobs: [N, k + 1], float64, a distribution; -inf where there is padding, or no rest because k = V.
    """

    ids: Tensor
    logprobs: Tensor
    extra: int = 1

    def outcomes(self, rows: slice, padded: Tensor, tiling: _Tiling) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the k + 1 outcomes, [n, k + 1] in float64, and of the softmax's denominator, [n].

        `padded`: the student's logits [n, V + 1], the last column of no meaning.
        """
        ids, logits = self.ids[rows], padded[:, :-1]
        padded[:, -1] = -math.inf
        support = padded.gather(1, ids)
        # The rest is summed for itself: 1 minus the others would lose a small one.
        padded.scatter_(1, ids, -math.inf)
        rest = _log_sum_exp(logits, tiling)
        padded.scatter_(1, ids, support)
        outcomes = torch.cat([support, rest.unsqueeze(1)], 1).double()
        log_normaliser = outcomes.logsumexp(1)
        return outcomes - log_normaliser.unsqueeze(1), log_normaliser.to(padded.dtype)

    def compare(
        self, rows: slice, s: Tensor, q: Tensor, divergence: Divergence, tiling: _Tiling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_p, log_normaliser = self.outcomes(rows, s, tiling)
        log_t = self.logprobs[rows]
        p = log_p.exp()
        terms, part = _terms(_finite(log_p), _finite(log_t), p, divergence)
        # Padding, and a rest where k = V, are no outcomes.
        real = log_t != -math.inf
        terms, part = (torch.where(real, values, 0) for values in (terms, part))
        entropy = torch.zeros_like(log_normaliser)
        rest, of_rest = log_p[:, -1:].to(s.dtype), part[:, -1:].to(s.dtype)
        for columns in _slices(s.shape[1] - 1, tiling.columns):
            log_v = s[:, columns].sub_(log_normaliser.unsqueeze(1))
            entropy.sub_((log_v.exp() * log_v).sum(1))
            # Each token of the rest has its share of the rest's q. Tokens of the support get theirs below.
            torch.sub(log_v, rest, out=q[:, columns]).exp_().mul_(of_rest)
        q.scatter_(1, self.ids[rows], part[:, :-1].to(q.dtype))
        return terms.sum(1).to(s.dtype), part.sum(1).to(s.dtype), entropy, log_normaliser


def _finite(values: Tensor) -> Tensor:
    """0 for -inf, for what is multiplied by a probability of 0."""
    return torch.where(values == -math.inf, 0, values)


def _entropy(logprobs: Tensor) -> Tensor:
    return -(logprobs.exp() * _finite(logprobs)).sum(1)


def _topk(ids: Tensor, logprobs: Tensor, count: int, vocabulary: int | None) -> _TopK:
    """Check a teacher's top k; with a vocabulary, ids too."""
    if ids.dim() != 2 or ids.shape != logprobs.shape or len(ids) != count:
        raise ValueError(
            f"ids and logprobs have shape [N, k] with N = {count}, got {list(ids.shape)} and {list(logprobs.shape)}"
        )
    logprobs = logprobs.detach().double()
    real = logprobs != -math.inf
    mass = torch.where(real, logprobs, -math.inf).exp().sum(1)
    if bool(((mass > 1.01) | mass.isnan()).any()):
        row = int(((mass > 1.01) | mass.isnan()).int().argmax())
        raise ValueError(
            f"the {ids.shape[1]} log-probabilities of token {row} sum to a probability of {float(mass[row]):.4g}, "
            "which should be 1 or less: they have to be natural logarithms after the softmax, at temperature 1"
        )
    ids = ids.long()
    full = torch.zeros(count, dtype=torch.bool, device=ids.device)
    if vocabulary is not None:
        outside = real & ((ids < 0) | (ids >= vocabulary))
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(
                f"token {row} of the teacher's top k has id {int(ids[row, column])}, but the student's vocabulary has "
                f"{vocabulary} tokens: teacher and student have to share one vocabulary"
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
    return _TopK(ids, logs - (mass + rest).log().unsqueeze(1))


def _check(hidden: Tensor, head: Head, whose: str) -> None:
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{whose}'s hidden states have shape {list(hidden.shape)}, and its head {list(head.weight.shape)}; they "
            "have to be [N, H] and [V, H]"
        )
    if hidden.device != head.weight.device:
        raise ValueError(f"{whose}'s hidden states are on {hidden.device}, its head on {head.weight.device}")


def _check_taken(taken: Tensor, count: int, vocabulary: int) -> None:
    if taken.shape != (count,):
        raise ValueError(f"taken has shape {list(taken.shape)}, expected [{count}]")
    if count and not bool(((taken >= 0) & (taken < vocabulary)).all()):
        wrong = taken[(taken < 0) | (taken >= vocabulary)][0]
        raise ValueError(f"taken holds id {int(wrong)}, but the vocabulary has {vocabulary} tokens")


def _detached(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach()
    return Head(head.weight.detach(), bias, head.scale, head.softcap)


@dataclass(frozen=True)
class _Work:
    """What the two passes of `_CompareFunction` have in common, but for the student's tensors."""

    target: _Target
    divergence: Divergence
    tiling: _Tiling
    scale: float
    softcap: float | None
    dtype: torch.dtype


@dataclass
class _Gradients:
    """Gradients of sum(coefficients * divergence), each None where nobody needs it."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def _compare(
    hidden: Tensor,
    head: Head,
    target: _Target,
    divergence: Divergence,
    tiling: _Tiling,
    anticipated: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if anticipated is not None:
        if anticipated.shape != hidden.shape[:1]:
            raise ValueError(f"anticipated_weights has shape {list(anticipated.shape)}, expected [{len(hidden)}]")
        anticipated = anticipated.detach().to(_sum_dtype(hidden))
    work = _Work(target, divergence, tiling, head.scale, head.softcap, _product_dtype(hidden))
    # Inside of a Function, gradients are always off, and needs_input_grad does not know of no_grad.
    train = torch.is_grad_enabled()
    return _CompareFunction.apply(hidden, head.weight, head.bias, work, anticipated, train)


class _CompareFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        work: _Work,
        anticipated: Tensor | None,
        train: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        need = [train and needed for needed in ctx.needs_input_grad[:3]]
        head_is_trained = need[1] or need[2]
        coefficients = None
        if need[0] and not head_is_trained:
            # A token's gradient is linear in its own upstream gradient, which therefore can be multiplied in later.
            coefficients = hidden.new_ones(len(hidden), dtype=_sum_dtype(hidden))
        elif head_is_trained:
            coefficients = anticipated
        with torch.autocast(hidden.device.type, enabled=False):
            found, entropy, made = _sweep(hidden, weight, bias, work, coefficients, need)
        ctx.work, ctx.anticipated, ctx.made = work, anticipated, made if coefficients is not None else None
        ctx.head_is_trained, ctx.dtype = head_is_trained, hidden.dtype
        if head_is_trained:
            ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(entropy)
        return found, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None, None, None)
        if upstream is None:
            return None, None, None, *nothing
        if not ctx.head_is_trained:
            return (ctx.made.hidden * upstream.unsqueeze(1)).to(ctx.dtype), None, None, *nothing
        hidden, weight, bias = ctx.saved_tensors
        # What was made beforehand is used up, being scaled in place; a second backward pass makes it anew.
        made, ctx.made = ctx.made, None
        factor = None if made is None else _common_factor(upstream, ctx.anticipated)
        if made is None or factor is None:
            made = None
            with torch.autocast(hidden.device.type, enabled=False):
                _, _, made = _sweep(hidden, weight, bias, ctx.work, upstream, ctx.needs_input_grad[:3])
        else:
            for gradient in (made.hidden, made.weight, made.bias):
                if gradient is not None:
                    gradient.mul_(factor)
        return (
            None if made.hidden is None else made.hidden.to(hidden.dtype),
            None if made.weight is None else made.weight.to(weight.dtype),
            None if made.bias is None or bias is None else made.bias.to(bias.dtype),
            *nothing,
        )


def _common_factor(upstream: Tensor, anticipated: Tensor) -> Tensor | None:
    """The scalar by which `upstream` is a multiple of `anticipated` (to 1e-6, for rounding), or None if it is none."""
    upstream, anticipated = upstream.double(), anticipated.double()
    square = anticipated.square().sum()
    factor = (upstream * anticipated).sum() / torch.where(square == 0, 1, square)
    expected = factor * anticipated
    return factor if bool(((upstream - expected).abs() <= 1e-6 * expected.abs()).all()) else None


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    work: _Work,
    coefficients: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, _Gradients]:
    """One way over all tokens: their divergences [N], entropies [N], and the gradients that are needed.

    `coefficients`: [N], of the sum whose gradients these are; None for no gradients. `need`: of hidden states, weight
    and bias.
    """
    tiling, dtype = work.tiling, _sum_dtype(hidden)
    head = Head(weight, bias, work.scale, work.softcap)
    vocabulary, temperature = len(weight), work.divergence.temperature
    found, entropy = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(2))
    made = _Gradients()
    if coefficients is not None:
        made = _Gradients(
            *(
                torch.zeros(inputs.shape, dtype=dtype, device=hidden.device) if wanted and inputs is not None else None
                for inputs, wanted in zip((hidden, weight, bias), need, strict=True)
            )
        )
    student_tile, q_tile = (_tile(hidden, head, tiling, dtype, work.target.extra) for _ in range(2))
    for rows in _slices(len(hidden), tiling.tokens):
        count = rows.stop - rows.start
        s, q = student_tile[:count], q_tile[:count]
        _project(s[:, :vocabulary], hidden[rows], head, temperature, work.dtype, tiling)
        found[rows], sum_q, entropy[rows], log_normaliser = work.target.compare(rows, s, q, work.divergence, tiling)
        if coefficients is None or not any(need):
            continue
        factor = (coefficients[rows].to(dtype) * (work.scale / temperature)).unsqueeze(1)
        for columns in _slices(vocabulary, tiling.columns):
            log_p, g = s[:, columns], q[:, columns]
            g.addcmul_(log_p.exp(), sum_q.unsqueeze(1), value=-1).mul_(factor)
            if work.softcap is not None:
                bent = (log_p + log_normaliser.unsqueeze(1)).mul_(temperature / work.softcap)
                g.mul_(1 - bent.square_())
            if made.hidden is not None:
                _add_product(made.hidden[rows], g, weight[columns].to(work.dtype))
            if made.weight is not None:
                _add_product(made.weight[columns], g.t(), hidden[rows].to(work.dtype))
            if made.bias is not None:
                made.bias[columns] += g.sum(0)
    return found, entropy, made
