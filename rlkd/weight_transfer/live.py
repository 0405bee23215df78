"""For vLLM in the trainer's own process on a CPU: weights that stay where they can be written.

When it has loaded a model, vLLM packs the weights of each linear layer for the CPU's matrix kernels and throws the
layer's own tensor away, so nothing can be loaded into it afterwards. A rollout engine gets new weights at every step;
its layers therefore keep their tensors and multiply with those. A little slower, and the only way that works.
"""

import inspect
from typing import Any

from rlkd.errors import UsageError


def keep_weights_live() -> None:
    """Make models that vLLM loads in this process from now on keep the weights of their linear layers.

    Raises `UsageError` if this vLLM has no such place any more (written for 0.30).
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
