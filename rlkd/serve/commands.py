"""The command and the environment of each server of a config."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.process import HIDDEN, masked
from rlkd.serve.checks import VLLM, find_command, find_python, visible_devices
from rlkd.serve.config import RoleConfig, ServeConfig
from rlkd.serve.vllm_command import shell_line, vllm_arguments, vllm_environment

# Layers of a block, as Llama, Qwen and Mistral name them.
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# No usage statistics. Process titles set by vLLM would overwrite the memory in which the mark is found.
DEFAULTS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}


@dataclass(frozen=True)
class Server:
    """One process to start: a replica of a role.

    `environment`: variables set in addition to this process's own; `private`: those whose values are written nowhere.
    """

    role: str
    replica: int
    replicas: int
    host: str
    port: int
    names: tuple[str, ...]
    devices: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    private: frozenset[str]
    start_timeout: float

    @property
    def label(self) -> str:
        """The name of its log and the prefix of its lines: the role, with a number if there are several replicas."""
        return self.role if self.replicas == 1 else f"{self.role}-{self.replica}"

    @property
    def address(self) -> str:
        """Its URL for clients, without a path. A server for all networks is reached by this machine's own address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def shell(self) -> str:
        """A shell line that starts it."""
        return shell_line(self.environment, self.command)

    def masked_shell(self) -> str:
        """The same line with *** for the values of the file's `environment` and for keys among the arguments."""
        variables = {name: HIDDEN if name in self.private else value for name, value in self.environment.items()}
        return shell_line(variables, masked(self.command)).replace(shlex.quote(HIDDEN), HIDDEN)

    @property
    def api_key(self) -> str | None:
        """The key that it requires, found as vLLM finds it: the first of --api-key, else VLLM_API_KEY."""
        for index, word in enumerate(self.command):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") == "--api-key":
                return value if equals else next(iter(self.command[index + 1 : index + 2]), None)
        return self.environment.get("VLLM_API_KEY") or os.environ.get("VLLM_API_KEY") or None


def by_role(servers: Sequence[Server]) -> dict[str, list[Server]]:
    """The replicas of each role."""
    roles: dict[str, list[Server]] = {}
    for server in servers:
        roles.setdefault(server.role, []).append(server)
    return roles


def role_spec(replicas: Sequence[Server], name: str | None = None) -> str:
    """The engine spec of a model on all replicas of a role (`rlkd.engines.open_engine`)."""
    return ",".join(f"{server.address}/v1" for server in replicas) + f"#{name or replicas[0].names[0]}"


def addresses(servers: Sequence[Server]) -> dict[str, str]:
    """The trainer's variables: RLKD_<ROLE>_URL, the addresses with commas between, and RLKD_<ROLE>_SPEC."""
    found = {}
    for role, replicas in by_role(servers).items():
        found[f"RLKD_{role.upper()}_URL"] = ",".join(server.address for server in replicas)
        found[f"RLKD_{role.upper()}_SPEC"] = role_spec(replicas)
    return found


def make_servers(
    config: ServeConfig,
    models: Mapping[str, str],
    vllms: Mapping[str, VLLM | None],
    ports: Mapping[str, list[int]],
) -> list[Server]:
    """Every server of a config, in its order. Raises `UsageError`."""
    servers = []
    for role, worker in config.workers.items():
        vllm = vllms.get(role)
        program = _program(config, worker, vllm, models.get(worker.model, worker.model))
        for replica, port in enumerate(ports[role]):
            devices = worker.replica_devices(replica)
            servers.append(
                Server(
                    role=role,
                    replica=replica,
                    replicas=worker.replicas,
                    host=config.host,
                    port=port,
                    names=(worker.name, *worker.lora),
                    devices=tuple(devices),
                    command=(*program, *_arguments(config, role, vllm, port)),
                    environment=_environment(worker, devices),
                    private=frozenset(worker.environment),
                    start_timeout=worker.start_timeout or config.start_timeout,
                )
            )
    return servers


def _program(config: ServeConfig, worker: RoleConfig, vllm: VLLM | None, model: str) -> list[str]:
    own = find_command(config, worker)
    if own is not None:
        return [*own, model]
    python = find_python(config, worker)
    if vllm is not None and vllm.script is None:
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [vllm.script if vllm and vllm.script else str(Path(python).parent / "vllm"), "serve", model]


def _arguments(config: ServeConfig, role: str, vllm: VLLM | None, port: int) -> list[str]:
    worker = config.workers[role]
    extra = [str(item) for item in worker.extra]
    adapters = [_adapter_config(path) for path in worker.lora.values()]
    rank = None
    layers: list[str] = []
    if worker.lora or worker.max_lora_rank is not None:
        rank = max([worker.max_lora_rank or 1, *(int(adapter.get("r", 16)) for adapter in adapters)])
        if worker.on_cpu:
            # By default vLLM prepares the output layer as well, and its CPU build (0.30) then ends at two requests in
            # one batch, one of them with `prompt_logprobs`.
            lists = [adapter.get("target_modules") for adapter in adapters] or [None]
            layers = sorted({layer for each in lists for layer in (each if isinstance(each, list) else LORA_LAYERS)})
    arguments = vllm_arguments(
        host=config.host,
        port=port,
        on_cpu=worker.on_cpu,
        name=worker.name,
        tensor_parallel=worker.tensor_size,
        data_parallel=worker.data_parallel,
        memory=worker.memory,
        dtype=worker.dtype,
        max_model_len=worker.max_model_len,
        lora={name: str(Path(path).expanduser().absolute()) for name, path in worker.lora.items()},
        max_lora_rank=rank,
        lora_layers=layers,
        weight_transfer=worker.weight_transfer,
        scale_out=worker.weight_transfer is not None and (vllm is None or vllm.at_least(0, 30)),
        extra=extra,
    )
    ours = {word for word in arguments[: len(arguments) - len(extra)] if word.startswith("--")}
    for item in extra:
        if item.partition("=")[0].replace("_", "-") in ours:
            raise UsageError(f"workers.{role}.extra: {item!r} is set by rlkd serve, from the worker's other keys")
    return arguments


def _adapter_config(path: str) -> dict[str, Any]:
    """`adapter_config.json` of an adapter; empty if it cannot be read (`checks.py` reports that)."""
    try:
        content = json.loads((Path(path).expanduser() / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _environment(worker: RoleConfig, devices: list[str]) -> dict[str, str]:
    needed = vllm_environment(
        on_cpu=False, weight_transfer=worker.weight_transfer, takes_adapters=worker.takes_adapters
    )
    defaults = DEFAULTS | (vllm_environment(on_cpu=True) if worker.on_cpu else {})
    environment = {name: value for name, value in defaults.items() if name not in os.environ}
    if not worker.on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices(devices)
    return environment | needed | {name: str(value) for name, value in worker.environment.items()}
