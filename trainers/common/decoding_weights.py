"""Weights in the form in which a model generates fastest, for a while; afterwards every bit is as before.

1. LoRA. A layer with an adapter computes W x + s B (A x), two small products more for every token. While the model
   generates, W is replaced by a copy with s B A added.
2. Column-major. On some processors a product of few rows with a matrix that is stored by columns is faster. Where a
   short measurement says so, for each shape of a matrix, it is replaced by such a copy.

The copies take as much memory as the matrices that they replace, and are freed before training needs its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Rows of the batch that the measurement decides for, and how much faster a column-major product must be.
ROWS, GAIN = 16, 1.1
_faster: dict[tuple[Any, ...], bool] = {}


@contextmanager
def decoding_weights(model: Any) -> Iterator[None]:
    """Within this context, the model's weights are merged and laid out for generation.

    Layers that cannot be merged exactly enough or alone stay as they are: quantised ones, those in half precision
    (whose rounding swallows a small update), variants such as DoRA, and weights that several modules share.
    """
    kept: list[tuple[torch.nn.Parameter, Tensor]] = []
    merged: list[Any] = []

    def replace(parameter: torch.nn.Parameter, data: Tensor) -> None:
        kept.append((parameter, parameter.data))
        parameter.data = data

    try:
        with torch.no_grad():
            for base, adapter in _matrices(model):
                by_columns = is_faster_by_columns(base.weight) and type(base) is torch.nn.Linear
                if adapter is None and not by_columns:
                    continue
                replace(base.weight, _by_columns(base.weight.data) if by_columns else base.weight.data.clone())
                if adapter is not None:
                    if base.bias is not None:
                        replace(base.bias, base.bias.data.clone())
                    merged.append(adapter)  # before: an error must not leave it half merged
                    adapter.merge()
        yield
    finally:
        for adapter in merged:
            adapter.merged_adapters.clear()
        for parameter, data in kept:
            parameter.data = data


def is_faster_by_columns(weight: Tensor) -> bool:
    """Whether a product with a matrix of this shape is faster if it is stored by columns; measured once, on a CPU."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.dim() != 2:
        return False
    key = (*weight.shape, torch.get_num_threads())
    if key not in _faster:
        generator = torch.Generator().manual_seed(0)  # the random state belongs to the run
        rows = torch.randn(ROWS, weight.shape[1], generator=generator)
        seconds = [_best(lambda form=form: torch.nn.functional.linear(rows, form)) for form in _forms(weight)]  # type: ignore[misc]
        _faster[key] = seconds[0] > GAIN * seconds[1]
    return _faster[key]


def layouts() -> list[list[Any]]:
    """What was measured so far, as plain values: for each shape and number of threads, whether by columns is faster.

    The two round differently, so a run that is to repeat another one takes over its layouts (`use_layouts`).
    """
    return [[*key, faster] for key, faster in _faster.items()]


def use_layouts(known: Iterable[Sequence[Any]]) -> None:
    """Take over `layouts()` of another process, instead of measuring."""
    _faster.update({tuple(key): bool(faster) for *key, faster in known})


def _forms(weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight.detach().contiguous(), _by_columns(weight.detach())


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()


def _best(work: Callable[[], Any]) -> float:
    """The shortest of several durations, in seconds: other processes only add to it."""
    work()
    found = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def _matrices(model: Any) -> Iterator[tuple[Any, Any]]:
    """Linear layers of the model that share their weight with no other, each with its LoRA layer, or None."""
    from transformers.pytorch_utils import Conv1D

    modules = list(model.modules())
    owners = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))
    adapters = {id(module.get_base_layer()): module for module in modules if hasattr(module, "lora_A")}
    for module in modules:
        if type(module) in (torch.nn.Linear, Conv1D) and owners[id(module.weight)] == 1:
            adapter = adapters.get(id(module))
            if adapter is None or _is_mergeable(adapter, module):
                yield module, adapter


def _is_mergeable(layer: Any, base: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters or layer.lora_variant:
        return False
    lacks_bias = base.bias is None and any(layer.lora_bias.values())
    return base.weight.dtype == torch.float32 and not lacks_bias
