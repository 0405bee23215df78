"""Weight transfer from a trainer to a vLLM server without NCCL: a plugin that vLLM loads where rlkd is installed.

Its backends `gloo` (a TCP connection) and `disk` (files) need only host memory. The trainer's side is
`trainers/vllm/weight_sync.py`.
"""

import contextlib

BACKENDS = {"gloo": "GlooEngine", "disk": "DiskEngine"}
# Values of vllm_weight_transfer: TRL's own backend and those of this package.
WEIGHT_TRANSFERS = ("nccl", *BACKENDS)


def register() -> None:
    """Register the backends with vLLM, which calls this in each of its processes; one without a table is left
    alone.
    """
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    for name, engine in BACKENDS.items():
        with contextlib.suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(name, "rlkd.weight_transfer.engines", engine)
