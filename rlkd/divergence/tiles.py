"""Tiles of logits: the head that makes them, their sizes, and the operations on them.

A tile is [n, V], n rows of the logits of one model; it is worked on in blocks of `Tiling.columns` columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Entries of one tile (there are two), and columns per block. On a CPU a block should stay in the cache between
# operations; on a GPU large products pay. Our choice, by benchmarks/kd_loss_memory.py.
TILE_ENTRIES = {"cpu": 2**24, "other": 2**26}
TILE_COLUMNS = {"cpu": 2**12, "other": 2**15}
# Half-precision products with float32 sums on a GPU need torch 2.8.
_HALF_PRODUCTS = hasattr(torch.ops.aten.addmm, "dtype_out")


@dataclass(frozen=True)
class Head:
    """A model's last layer: logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    `weight` [V, H], `bias` [V] or None. `scale`: Cohere's `logit_scale`, Granite's 1 / `logits_scaling`. `softcap`:
    bound on the size of logits (Gemma's `final_logit_softcapping`); None for no bound.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ValueError(f"a head's weight has shape [V, H], got {list(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            shape = list(self.bias.shape)
            raise ValueError(f"the bias of a head of {self.weight.shape[0]} tokens must have that length, got {shape}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap={self.softcap} must be above 0; None means no cap")


@dataclass(frozen=True)
class Tiling:
    """Rows of a tile, and columns of a block."""

    tokens: int
    columns: int


def tiling_of(token_chunk: int | None, vocabulary_chunk: int | None, head: Head) -> Tiling:
    """The sizes for this head; defaults where the arguments are None. Raises ValueError for sizes below 1."""
    for name, size in (("token_chunk", token_chunk), ("vocabulary_chunk", vocabulary_chunk)):
        if size is not None and size < 1:
            raise ValueError(f"{name}={size} must be 1 or more")
    kind = "cpu" if head.weight.device.type == "cpu" else "other"
    tokens = token_chunk or max(1, TILE_ENTRIES[kind] // max(1, len(head.weight)))
    return Tiling(tokens, vocabulary_chunk or TILE_COLUMNS[kind])


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step` that cover `length`."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def new_tile(hidden: Tensor, head: Head, tiling: Tiling, dtype: torch.dtype, extra: int = 0) -> Tensor:
    """Uninitialised memory for one tile, with `extra` columns after the vocabulary."""
    return hidden.new_empty((min(len(hidden), tiling.tokens), len(head.weight) + extra), dtype=dtype)


def sum_dtype_of(hidden: Tensor) -> torch.dtype:
    """float64 for float64 states, else float32."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def product_dtype_of(hidden: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is on, else that of the states."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def add_product(out: Tensor, left: Tensor, right: Tensor, *, keep: bool = True) -> None:
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


def project(out: Tensor, hidden: Tensor, head: Head, temperature: float, dtype: torch.dtype, tiling: Tiling) -> None:
    """Fill `out` [n, V] with the logits of `hidden` [n, H], divided by the temperature."""
    hidden = hidden.to(dtype)
    for columns in slices(out.shape[1], tiling.columns):
        z = out[:, columns]
        add_product(z, hidden, head.weight[columns].to(dtype).t(), keep=False)
        if head.bias is not None:
            z.add_(head.bias[columns])
        if head.softcap is not None:
            z.mul_(head.scale / head.softcap).tanh_().mul_(head.softcap / temperature)
        elif head.scale != temperature:
            z.mul_(head.scale / temperature)


def log_sum_exp(z: Tensor, tiling: Tiling) -> Tensor:
    """[n], over the columns of `z` [n, V]; torch's own would copy all of `z`."""
    return torch.logsumexp(
        torch.stack([torch.logsumexp(z[:, columns], 1) for columns in slices(z.shape[1], tiling.columns)], 1), 1
    )


def fill_log_softmax(out: Tensor, hidden: Tensor, head: Head, temperature: float, tiling: Tiling) -> None:
    """Fill `out` [n, V] with the log-probabilities of `hidden` [n, H]."""
    project(out, hidden, head, temperature, product_dtype_of(hidden), tiling)
    out.sub_(log_sum_exp(out, tiling).unsqueeze(1))


def minus_expectation(log_p: Tensor, values: Tensor, tiling: Tiling, minus: Tensor | None = None) -> Tensor:
    """-sum_v p(v) (values(v) - minus(v)), [n]."""
    total = log_p.new_zeros(len(log_p))
    for columns in slices(log_p.shape[1], tiling.columns):
        value = values[:, columns] if minus is None else values[:, columns] - minus[:, columns]
        total.sub_((log_p[:, columns].exp() * value).sum(1))
    return total
