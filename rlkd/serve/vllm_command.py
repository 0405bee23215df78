"""Builds command lines of `vllm serve`: for `rlkd serve`, for the hints of trainers, for benchmarks and tests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

# Adapter ranks that vLLM accepts; others are rounded up.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_arguments(
    *,
    host: str,
    port: int,
    on_cpu: bool,
    name: str | None = None,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    memory: float | None = None,
    dtype: str | None = None,
    max_model_len: int | None = None,
    lora: Mapping[str, str] | None = None,
    max_lora_rank: int | None = None,
    max_loras: int | None = None,
    lora_layers: Sequence[str] = (),
    weight_transfer: str | None = None,
    scale_out: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """The arguments after the model. `weight_transfer`: a backend, or `lora` for adapters loaded by HTTP."""
    given = {word.partition("=")[0] for word in extra}
    options = {
        "--host": host,
        "--port": port,
        "--served-model-name": name,
        "--tensor-parallel-size": tensor_parallel if tensor_parallel > 1 else None,
        "--data-parallel-size": data_parallel if data_parallel > 1 else None,
        "--gpu-memory-utilization": None if memory is None else f"{memory:g}",
        # `auto` is bfloat16 even for a float32 checkpoint, and most CPUs have no units for that.
        "--dtype": dtype or ("float32" if on_cpu else None),
    }
    arguments = [word for flag, value in options.items() if value is not None for word in (flag, str(value))]
    if on_cpu and not given & {"--enforce-eager", "--no-enforce-eager"}:
        arguments += ["--enforce-eager"]
    if on_cpu and not given & {"--enable-chunked-prefill", "--no-enable-chunked-prefill", "--max-num-batched-tokens"}:
        # A chunked prefill resets the random generator, which a CPU's does not support: the server (0.30) ends.
        arguments += ["--no-enable-chunked-prefill"]
    if max_model_len is not None:
        arguments += ["--max-model-len", str(max_model_len)]
    if max_lora_rank is not None:
        rank = next((rank for rank in LORA_RANKS if rank >= max_lora_rank), max_lora_rank)
        arguments += ["--enable-lora", "--max-lora-rank", str(rank)]
    if max_loras is not None:
        arguments += ["--max-loras", str(max_loras)]
    if lora_layers and "--lora-target-modules" not in given:
        arguments += ["--lora-target-modules", *lora_layers]
    if lora:
        arguments += ["--lora-modules", *(f"{adapter}={path}" for adapter, path in lora.items())]
    if weight_transfer is not None:
        if weight_transfer != "lora":
            arguments += ["--weight-transfer-config", json.dumps({"backend": weight_transfer})]
        # TRL needs log-probabilities of the distribution that was sampled from, any number of them.
        arguments += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    if scale_out:  # from 0.30 on: the endpoints that TRL needs for prompts with images
        arguments += ["--enable-scale-out"]
    return [*arguments, *extra]


def vllm_environment(
    *, on_cpu: bool, weight_transfer: str | None = None, takes_adapters: bool = False
) -> dict[str, str]:
    """The variables that a server needs. `takes_adapters`: whether a trainer loads adapters into it."""
    environment = {}
    if weight_transfer is not None:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if weight_transfer == "lora" or takes_adapters:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if on_cpu:
        # A KV cache in GiB (else a share of all memory), and threads placed by the system (else vLLM pins a server to
        # one core and keeps the others free).
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment


def shell_line(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """A command with its variables as a line for a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command)])
