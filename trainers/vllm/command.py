"""The command that starts a rollout server which fits a run, and the addresses of the run's servers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlparse

from rlkd.serve.vllm_command import shell_line, vllm_arguments, vllm_environment

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def serve_command(
    args: RLKDConfig, model: str, max_model_len: int, rank: int | None = None, address: str | None = None
) -> str:
    """The command, with its environment, that starts a rollout server for this run.

    `rank`: of the adapter, where the run sends nothing else; `address`: by default that of the first server.
    """
    url = urlparse(address or server_addresses(args)[0])
    on_cpu, transfer = args.device.type == "cpu", server_backend(args) or "lora"
    arguments = vllm_arguments(
        host=url.hostname or "0.0.0.0",
        port=url.port or 8000,
        on_cpu=on_cpu,
        max_model_len=max_model_len,
        max_lora_rank=rank,
        weight_transfer=transfer,
    )
    environment = vllm_environment(on_cpu=on_cpu, weight_transfer=transfer, takes_adapters=rank is not None)
    return shell_line(environment, ["vllm", "serve", model, *arguments])


def advice_for(args: RLKDConfig, model: str, needed: int, rank: int | None = None, address: str | None = None) -> str:
    """The command for prompts and completions of `needed` tokens together, as a line of a message."""
    return "  " + serve_command(args, model, rounded_length(needed), rank, address)


def server_backend(args: RLKDConfig) -> str | None:
    """The weight transfer with which a server must be started; None where it may have any, or none."""
    if args.vllm_adapter_sync:
        return {"nccl": "nccl_adapter", "disk": None}.get(args.vllm_weight_transfer, args.vllm_weight_transfer)
    return args.vllm_weight_transfer


def server_addresses(args: RLKDConfig) -> list[str]:
    """The rollout servers of a run."""
    return addresses(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}")


def addresses(base_url: str) -> list[str]:
    """The addresses of rollout servers in a text that lists them with commas, without trailing slashes."""
    return [url.strip().rstrip("/") for url in base_url.split(",")]


def rounded_length(tokens: int) -> int:
    """Round up to a multiple of 256, with some room for prompts that were not counted."""
    return -(-(tokens + 64) // 256) * 256
