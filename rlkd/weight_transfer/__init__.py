"""Weight transfer from a trainer to a vLLM server without NCCL: a plugin that vLLM loads where rlkd is installed.

    vllm serve MODEL --weight-transfer-config '{"backend": "gloo"}'    # over a TCP connection
    vllm serve MODEL --weight-transfer-config '{"backend": "disk"}'    # through files

vLLM's own backends need CUDA on both sides. These two need only host memory, so they work on a CPU, and between a
trainer and a server whose GPUs NCCL cannot join. They use the HTTP calls of vLLM's other backends; the trainer's side
is `trainers/vllm/weight_sync.py`.

`register` is the entry point, in the group `vllm.general_plugins`. It only adds two names to a table of vLLM; nothing
else is imported or changed until a server is started with one of them.
"""

import contextlib

BACKENDS = {"gloo": "GlooEngine", "disk": "DiskEngine"}
# Values of vllm_weight_transfer: TRL's own backend and those of this package.
WEIGHT_TRANSFERS = ("nccl", *BACKENDS)


def register() -> None:
    """Register the backends with vLLM, which calls this in each of its processes, and in some more than once.

    A vLLM without such a table is left unchanged: it reports unknown backends itself.
    """
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    for name, engine in BACKENDS.items():
        with contextlib.suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(name, "rlkd.weight_transfer.engines", engine)
