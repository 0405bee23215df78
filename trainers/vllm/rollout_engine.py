"""What TRL finds in the place of its own client and engine while it builds a trainer with vLLM."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rlkd.serve.vllm_command import vllm_environment
from rlkd.weight_transfer.live import keep_weights_live
from trainers.common.trl_compat import build_vllm_with
from trainers.vllm.adapter_clients import CLIENTS
from trainers.vllm.rollout_servers import RolloutServers
from trainers.vllm.weight_sync import LastingDiskClient, LastingGlooClient

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def rollout_engine(args: RLKDConfig) -> AbstractContextManager[None]:
    """The context in which TRL must build its vLLM part for a run with vLLM; no change on a GPU with `nccl`."""
    if args.vllm_adapter_sync:
        return build_vllm_with(VLLMClient=functools.partial(RolloutServers, client=CLIENTS[args.vllm_weight_transfer]))
    if args.vllm_mode == "server":
        if args.vllm_weight_transfer == "gloo":
            return build_vllm_with(VLLMClient=LastingGlooClient)
        if args.vllm_weight_transfer == "disk":
            folder = Path(args.output_dir or ".") / "weights-for-vllm"
            return build_vllm_with(VLLMClient=functools.partial(LastingDiskClient, folder=folder))
        return nullcontext()
    if args.device.type != "cpu":
        return nullcontext()
    from vllm import LLM

    os.environ |= vllm_environment(on_cpu=True) | os.environ
    keep_weights_live()
    # TRL passes neither: vLLM would use bfloat16 and compile for minutes.
    return build_vllm_with(LLM=functools.partial(LLM, dtype="float32", enforce_eager=True))
