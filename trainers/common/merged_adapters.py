"""LoRA adapters merged into the weights for a while, and the weights restored exactly.

A layer with an adapter computes W x + s B (A x), two small products more for every token. While a model generates, W
is replaced by a copy with s B A added. The copies take as much memory as the adapted matrices, and are freed before
training needs its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def merged_adapters(model: Any) -> Iterator[None]:
    """Within this context, the active LoRA adapters of a model are merged; after it, every bit is as before.

    Layers that cannot be merged exactly enough or alone stay as they are: quantised ones, variants such as DoRA, and
    weights that several modules share. Without an adapter, nothing happens.
    """
    replaced: list[tuple[Any, dict[str, Tensor]]] = []
    try:
        with torch.no_grad():
            for layer in _mergeable(model):
                parameters = dict(layer.get_base_layer().named_parameters(recurse=False))
                replaced.append((layer, {name: parameter.data for name, parameter in parameters.items()}))
                for parameter in parameters.values():
                    parameter.data = parameter.data.clone()
                layer.merge()
        yield
    finally:
        for layer, kept in replaced:
            layer.merged_adapters.clear()
            for name, data in kept.items():
                getattr(layer.get_base_layer(), name).data = data


def _mergeable(model: Any) -> list[Any]:
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora.layer import Linear
    from transformers.pytorch_utils import Conv1D

    modules = list(model.modules())
    owners = Counter(id(parameter) for module in modules for parameter in module.parameters(recurse=False))

    def is_mergeable(module: Any) -> bool:
        if type(module) is not Linear or module.merged or module.disable_adapters or module.lora_variant:
            return False
        base = module.get_base_layer()
        return type(base) in (torch.nn.Linear, Conv1D) and owners[id(base.weight)] == 1

    return [module for module in modules if is_mergeable(module)]
