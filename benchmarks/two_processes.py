"""Two processes on a CPU with weights sharded as the files of `recipes/accelerate` say; the tests build on it too.

accelerate (1.15) shards weights on GPUs only. FSDP2 and DeepSpeed themselves work on a CPU with gloo, so these
processes tell accelerate that theirs are GPUs named `cpu` (`allow_cpu`); everything else is as a user starts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "accelerate"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def environment_of(config: Path) -> dict[str, str]:
    """What `accelerate launch` tells its processes of a config file, for two of them on a CPU."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(config), "--num_processes", "2", "--num_machines", "1", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    prepared = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    told = {key: value for key, value in prepared.items() if key.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))}
    return told | {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def allow_cpu() -> None:
    """Have accelerate shard weights with gloo on the CPU, and DeepSpeed build no C++ of its own."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, is_deepspeed_available

    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    if is_deepspeed_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = {}
