"""Bytes of a model's weights in memory, also in 4 and 8 bit, from the shapes of its layers."""

from __future__ import annotations

from typing import Any

# bitsandbytes, 4 bit: half a byte, and a float32 scale for each block of 64 numbers; with double quantisation these
# scales take a byte each, with a float32 for 256 of them. 8 bit: a byte, and a float32 scale for each row.
_BLOCK_4BIT, _BLOCK_SCALES = 64, 256


def weight_bytes(model: Any, bits: int | None = None, *, double_quantised: bool = False) -> int:
    """Bytes of a model's parameters and buffers, tied ones once.

    `bits`: 4 or 8 for weights that bitsandbytes quantises when it loads them, which are those of linear layers but the
    head's; None for the dtypes that the tensors have.
    """
    quantised = {} if bits is None else {id(module.weight): module.weight.shape for module in quantised_layers(model)}
    total = 0
    for tensor in _distinct(model):
        if id(tensor) in quantised:
            assert bits is not None
            total += _quantised_bytes(tuple(tensor.shape), bits, double_quantised)
        else:
            total += tensor.numel() * tensor.element_size()
    return total


def quantised_layers(model: Any) -> list[Any]:
    """The layers that bitsandbytes would quantise: linear ones, except the head, as transformers leaves it."""
    import torch

    head = model.get_output_embeddings()
    return [module for module in model.modules() if type(module) is torch.nn.Linear and module is not head]


def _distinct(model: Any) -> list[Any]:
    found = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return list(found.values())


def _quantised_bytes(shape: tuple[int, ...], bits: int, double: bool) -> int:
    rows, columns = shape[0], shape[1]
    count = rows * columns
    if bits == 8:
        return count + 4 * rows
    blocks = -(-count // _BLOCK_4BIT)
    scales = blocks + 4 * -(-blocks // _BLOCK_SCALES) if double else 4 * blocks
    return count // 2 + scales
