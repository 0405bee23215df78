"""The autograd function behind the divergences: one sweep over all tokens makes values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.divergence.formulas import Divergence
from rlkd.divergence.targets import Target
from rlkd.divergence.tiles import Head, Tiling, add_product, new_tile, product_dtype_of, project, slices, sum_dtype_of


@dataclass(frozen=True)
class _Work:
    target: Target
    divergence: Divergence
    tiling: Tiling
    scale: float
    softcap: float | None
    dtype: torch.dtype


@dataclass
class _Gradients:
    """Gradients of sum(coefficients * divergence), each None where it is not needed."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


def compare(
    hidden: Tensor,
    head: Head,
    target: Target,
    divergence: Divergence,
    tiling: Tiling,
    anticipated: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The divergence of each token [N] with its graph, and the student's entropy [N], detached."""
    if anticipated is not None:
        if anticipated.shape != hidden.shape[:1]:
            raise ValueError(f"anticipated_weights has shape {list(anticipated.shape)}, expected [{len(hidden)}]")
        anticipated = anticipated.detach().to(sum_dtype_of(hidden))
    work = _Work(target, divergence, tiling, head.scale, head.softcap, product_dtype_of(hidden))
    # Inside a Function gradients are always off, and needs_input_grad ignores no_grad.
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
            # A token's gradient is linear in its own upstream gradient, which can be multiplied in later.
            coefficients = hidden.new_ones(len(hidden), dtype=sum_dtype_of(hidden))
        elif head_is_trained:
            coefficients = anticipated
        with torch.autocast(hidden.device.type, enabled=False):
            values, entropy, made = sweep(hidden, weight, bias, work, coefficients, need)
        ctx.work, ctx.anticipated, ctx.made = work, anticipated, made if coefficients is not None else None
        ctx.head_is_trained, ctx.dtype = head_is_trained, hidden.dtype
        if head_is_trained:
            ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(entropy)
        return values, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None, None, None)
        if upstream is None:
            return None, None, None, *nothing
        if not ctx.head_is_trained:
            return (ctx.made.hidden * upstream.unsqueeze(1)).to(ctx.dtype), None, None, *nothing
        hidden, weight, bias = ctx.saved_tensors
        # The gradients made in the forward pass are scaled in place; a second backward pass computes them again.
        made, ctx.made = ctx.made, None
        factor = None if made is None else _common_factor(upstream, ctx.anticipated)
        if made is None or factor is None:
            made = None
            with torch.autocast(hidden.device.type, enabled=False):
                _, _, made = sweep(hidden, weight, bias, ctx.work, upstream, ctx.needs_input_grad[:3])
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
    """The scalar c with `upstream` = c * `anticipated` (to 1e-6, for rounding), or None."""
    upstream, anticipated = upstream.double(), anticipated.double()
    square = anticipated.square().sum()
    factor = (upstream * anticipated).sum() / torch.where(square == 0, 1, square)
    expected = factor * anticipated
    return factor if bool(((upstream - expected).abs() <= 1e-6 * expected.abs()).all()) else None


def sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    work: _Work,
    coefficients: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, _Gradients]:
    """One pass over all tokens: their divergences [N], entropies [N], and the needed gradients.

    `coefficients`: [N], of the sum that is differentiated; None for no gradients. `need`: whether hidden states,
    weight and bias need one.
    """
    tiling, dtype = work.tiling, sum_dtype_of(hidden)
    head = Head(weight, bias, work.scale, work.softcap)
    vocabulary, temperature = len(weight), work.divergence.temperature
    values, entropy = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(2))
    made = _Gradients()
    if coefficients is not None:
        made = _Gradients(
            *(
                torch.zeros(inputs.shape, dtype=dtype, device=hidden.device) if wanted and inputs is not None else None
                for inputs, wanted in zip((hidden, weight, bias), need, strict=True)
            )
        )
    student_tile, q_tile = (new_tile(hidden, head, tiling, dtype, work.target.extra) for _ in range(2))
    for rows in slices(len(hidden), tiling.tokens):
        count = rows.stop - rows.start
        s, q = student_tile[:count], q_tile[:count]
        project(s[:, :vocabulary], hidden[rows], head, temperature, work.dtype, tiling)
        values[rows], sum_q, entropy[rows], log_normaliser = work.target.compare(rows, s, q, work.divergence, tiling)
        if coefficients is None or not any(need):
            continue
        factor = (coefficients[rows].to(dtype) * (work.scale / temperature)).unsqueeze(1)
        for columns in slices(vocabulary, tiling.columns):
            log_p, g = s[:, columns], q[:, columns]
            g.addcmul_(log_p.exp(), sum_q.unsqueeze(1), value=-1).mul_(factor)
            if work.softcap is not None:
                bent = (log_p + log_normaliser.unsqueeze(1)).mul_(temperature / work.softcap)
                g.mul_(1 - bent.square_())
            if made.hidden is not None:
                add_product(made.hidden[rows], g, weight[columns].to(work.dtype))
            if made.weight is not None:
                add_product(made.weight[columns], g.t(), hidden[rows].to(work.dtype))
            if made.bias is not None:
                made.bias[columns] += g.sum(0)
    return values, entropy, made
