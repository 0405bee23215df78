"""Weight transfer from a trainer to a vLLM server without NCCL: a plugin that vLLM loads where rlkd is installed.

Its backends `gloo` (a TCP connection) and `disk` (files) need only host memory; `nccl_adapter` is vLLM's `nccl`, which
also takes adapters. The trainer's side is in `trainers/vllm`: `weight_sync.py` for weights, `adapter_clients.py` for
adapters.
"""

import contextlib

# Backends by name, with their modules and classes.
BACKENDS = {
    "gloo": ("rlkd.weight_transfer.engines", "GlooEngine"),
    "disk": ("rlkd.weight_transfer.engines", "DiskEngine"),
    "nccl_adapter": ("rlkd.weight_transfer.nccl", "NCCLAdapterEngine"),
}
# Values of vllm_weight_transfer.
WEIGHT_TRANSFERS = ("nccl", "gloo", "disk")


def register() -> None:
    """Register the backends with vLLM, which calls this in each of its processes; one without a table is left
    alone.
    """
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    for name, (module, engine) in BACKENDS.items():
        with contextlib.suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(name, module, engine)
