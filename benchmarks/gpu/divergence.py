"""The distillation loss at a vocabulary of 151,936: ours, TRL's Triton kernel, Liger's, and the whole logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

from gpu.day import GpuDay, describe, now, reset_peak

BETA = 0.5


@dataclass(frozen=True)
class LossInputs:
    """Hidden states [N, H] and heads [V, H] of a student (0.5B) and its teacher (1.5B)."""

    student_hidden: Any
    student_head: Any
    teacher_hidden: Any
    teacher_head: Any

    def rows(self, count: int) -> LossInputs:
        """The first `count` tokens, as leaves of their own."""
        hidden = self.student_hidden.detach()[:count].clone().requires_grad_()
        return LossInputs(hidden, self.student_head, self.teacher_hidden[:count], self.teacher_head)


def divergence(day: GpuDay) -> Iterator[dict[str, Any]]:
    """The mean generalized Jensen-Shannon divergence, forward and backward; the student's head frozen, then trained.

    Of each implementation: milliseconds (median), the memory that a pass adds, and the relative errors of loss and
    gradient of the hidden states on fewer tokens, against float64. `products` are the matrix products alone that
    every implementation needs.
    """
    tokens, vocabulary = day.pick(8192, 64), day.pick(151_936, 2048)
    yield {"tokens": tokens, "vocabulary": vocabulary, "dtype": day.pick("bfloat16", "float32"), "beta": BETA}
    arms: dict[str, Callable[[LossInputs], Any]] = {
        "products": products,
        "ours": ours,
        "trl": trl,
        "dense": dense,
        "liger": partial(liger, compiled=not day.smoke),
    }
    for trained in (False, True):
        whole = inputs(day, tokens, vocabulary, trained)
        exact = exact_pass(whole.rows(tokens // 16))
        found: dict[str, Any] = {}
        for name, one_pass in arms.items():
            if name == "liger" and find_spec("liger_kernel") is None:
                found[name] = {"skipped": "not installed: liger_kernel"}
            else:
                found[name] = measured(day, one_pass, whole, exact)
            yield {f"head_{'trained' if trained else 'frozen'}": dict(found)}


def measured(day: GpuDay, one_pass: Callable[[LossInputs], Any], whole: LossInputs, exact: Any) -> dict[str, Any]:
    """Cost and errors of an implementation, or why it failed: the others are worth measuring all the same."""
    found: dict[str, Any] = {}
    try:
        found |= cost(day, one_pass, whole)
        if one_pass is not products:
            found |= errors(one_pass, whole.rows(len(whole.student_hidden) // 16), *exact)
    except Exception as error:
        found["failed"] = describe(error)
    return found


def inputs(day: GpuDay, tokens: int, vocabulary: int, trained: bool) -> LossInputs:
    """Random inputs whose logits have a deviation of 3, about what a model's have."""
    import torch

    student_width, teacher_width = day.pick((896, 1536), (32, 48))
    dtype = day.pick(torch.bfloat16, torch.float32)
    generator = torch.Generator(day.device).manual_seed(0)

    def random(rows: int, width: int, scale: float = 1.0) -> Any:
        drawn = torch.randn(rows, width, generator=generator, device=day.device)
        return drawn.mul_(scale).to(dtype)

    return LossInputs(
        random(tokens, student_width).requires_grad_(),
        random(vocabulary, student_width, 3 / student_width**0.5).requires_grad_(trained),
        random(tokens, teacher_width),
        random(vocabulary, teacher_width, 3 / teacher_width**0.5),
    )


def cost(day: GpuDay, one_pass: Callable[[LossInputs], Any], given: LossInputs) -> dict[str, float | None]:
    """Milliseconds of a pass with its backward pass (after two that warm up), and the MiB that it adds."""
    import torch

    times = []
    for turn in range(day.pick(7, 3)):
        given.student_hidden.grad = given.student_head.grad = None
        held = reset_peak() if turn < 2 else 0
        begin = now()
        one_pass(given)
        if turn == 1:
            peak = (torch.cuda.max_memory_allocated() - held) / 2**20 if torch.cuda.is_available() else None
        elif turn > 1:
            times.append(now() - begin)
    return {"ms": round(1000 * median(times), 2), "peak_mib": None if peak is None else round(peak)}


def errors(one_pass: Callable[[LossInputs], Any], given: LossInputs, loss: Any, gradient: Any) -> dict[str, float]:
    """Relative errors against the exact loss and the exact gradient of the student's hidden states."""
    given.student_head.grad = None
    found = one_pass(given)
    off = (given.student_hidden.grad.double() - gradient).norm() / gradient.norm()
    return {"loss_error": float(abs(found.double() - loss) / loss), "gradient_error": float(off)}


def exact_pass(given: LossInputs) -> tuple[Any, Any]:
    """Loss and gradient of the hidden states in float64, from the whole logits."""
    as_double = LossInputs(
        given.student_hidden.detach().double().requires_grad_(),
        given.student_head.detach().double(),
        given.teacher_hidden.double(),
        given.teacher_head.double(),
    )
    loss = dense(as_double)
    return loss.detach(), as_double.student_hidden.grad


def ours(given: LossInputs) -> Any:
    """`rlkd.divergence`, as the trainer calls it."""
    from rlkd.divergence import Divergence, Head, chunked_divergence, weighted_mean

    weights = given.student_hidden.new_ones(len(given.student_hidden), dtype=given.student_hidden.float().dtype)
    per_token, _ = chunked_divergence(
        given.student_hidden,
        Head(given.student_head),
        given.teacher_hidden,
        Head(given.teacher_head),
        Divergence(beta=BETA),
        anticipated_weights=weights,
    )
    loss = weighted_mean(per_token, weights, len(weights))
    loss.backward()
    return loss.detach()


def trl(given: LossInputs) -> Any:
    """TRL's kernel: Triton on a GPU."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    heads = (given.student_head, None, given.teacher_hidden, given.teacher_head, None)
    per_token, _ = ChunkedDivergenceFunction.apply(given.student_hidden, *heads, BETA, 1.0)
    loss = per_token.mean()
    loss.backward()
    return loss.detach()


def liger(given: LossInputs, *, compiled: bool) -> Any:
    """Liger's fused loss without its hard part, compiled as it is by default."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(len(given.student_hidden), dtype=torch.long, device=given.student_hidden.device)
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA, compiled=compiled)
    loss = fused(given.student_hidden, given.student_head, given.teacher_hidden, given.teacher_head, labels)
    loss.backward()
    return loss.detach()


def dense(given: LossInputs) -> Any:
    """The whole logits and autograd, with sums in float32 or float64."""
    import math

    import torch

    dtype = torch.promote_types(given.student_hidden.dtype, torch.float32)
    with torch.no_grad():
        t = (given.teacher_hidden @ given.teacher_head.T).to(dtype).log_softmax(-1)
    s = (given.student_hidden @ given.student_head.T).to(dtype).log_softmax(-1)
    mixture = torch.logaddexp(s + math.log(1 - BETA), t + math.log(BETA))
    per_token = BETA * (t.exp() * (t - mixture)).sum(-1) + (1 - BETA) * (s.exp() * (s - mixture)).sum(-1)
    loss = per_token.mean()
    loss.backward()
    return loss.detach()


def products(given: LossInputs) -> None:
    """Only the logits of both models and the gradients that follow from them, 1,024 tokens at a time."""
    import torch

    with torch.no_grad():
        for start in range(0, len(given.student_hidden), 1024):
            rows = slice(start, start + 1024)
            given.teacher_hidden[rows] @ given.teacher_head.T
            logits = given.student_hidden[rows] @ given.student_head.T
            logits @ given.student_head
            if given.student_head.requires_grad:
                logits.T @ given.student_hidden[rows]
