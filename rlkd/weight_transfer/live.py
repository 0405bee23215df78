"""Keeps weights writable for vLLM in the trainer's process on a CPU.

There vLLM packs the weights of each linear layer and drops the layer's own tensor, so no weights could be loaded into
it later. Here the layers keep their tensors and multiply with those, which is slightly slower.
"""

import inspect
from typing import Any

from rlkd.errors import UsageError


def keep_weights_live() -> None:
    """Make models that vLLM loads in this process from now on keep the weights of their linear layers.

    Raises `UsageError` if this vLLM has no such function (written for 0.30).
    """
    import vllm
    from vllm.model_executor.layers import utils

    name = "dispatch_cpu_unquantized_gemm"
    packer = getattr(utils, name, None)
    if packer is _use_own_weight:
        return
    found = list(inspect.signature(packer).parameters) if packer else None
    if found != ["layer", "remove_weight"]:
        raise UsageError(
            f"vLLM {vllm.__version__} in the trainer's process cannot take new weights on a CPU: {name} takes "
            f"{found}, expected ['layer', 'remove_weight']. Use vllm_mode: server, or vLLM 0.30.0"
        )
    setattr(utils, name, _use_own_weight)


def _use_own_weight(layer: Any, remove_weight: bool) -> None:
    import torch

    layer.cpu_linear = torch.nn.functional.linear
