"""The command line and the environment of each server of a config."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.serve.checks import VLLM, find_command, find_python, visible_devices
from rlkd.serve.config import ServeConfig, Worker
from rlkd.serve.processes import HIDDEN, MARK, masked

# Ranks that vLLM takes; an adapter's is rounded up.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Of a block, as Llama, Qwen and Mistral call them.
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Without a GPU: a KV cache of so many GiB (else a share of all memory), and threads that the system places (else vLLM
# pins a server to one core and keeps the others free).
CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# Nothing is sent to others. The title that vLLM gives its processes would overwrite the place where the mark is read.
DEFAULTS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}


@dataclass(frozen=True)
class Server:
    """One process to start: a replica of a role.

    `environment` is what is set beside this process's own variables, `private` those of it that the file gives (their
    values are written nowhere), `names` what it serves: the model, then adapters.
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
        """What its lines and its log are called: the role, with a number where there are several."""
        return self.role if self.replicas == 1 else f"{self.role}-{self.replica}"

    @property
    def address(self) -> str:
        """Where clients reach it, without a path. A server for all networks is reached on this machine's own."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def shell(self) -> str:
        """A line for a shell that starts it."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])

    def masked_shell(self) -> str:
        """The same without what may be a secret: values of the file's `environment`, keys among the arguments."""
        variables = [
            f"{name}={HIDDEN if name in self.private else shlex.quote(value)}"
            for name, value in self.environment.items()
        ]
        words = [HIDDEN if word == HIDDEN else shlex.quote(word) for word in masked(self.command)]
        return " ".join([*variables, *words])

    @property
    def api_key(self) -> str | None:
        """The key that it asks for, found as vLLM finds it: the first of --api-key, else VLLM_API_KEY."""
        for place, word in enumerate(self.command):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") == "--api-key":
                return value if equals else next(iter(self.command[place + 1 : place + 2]), None)
        return self.environment.get("VLLM_API_KEY") or os.environ.get("VLLM_API_KEY") or None

    def full_environment(self, mark: str) -> dict[str, str]:
        """All variables of its process."""
        return {**os.environ, **self.environment, MARK: f"{mark}:{self.label}"}


def by_role(servers: Sequence[Server]) -> dict[str, list[Server]]:
    """The replicas of each role."""
    roles: dict[str, list[Server]] = {}
    for server in servers:
        roles.setdefault(server.role, []).append(server)
    return roles


def role_spec(replicas: Sequence[Server], name: str | None = None) -> str:
    """What names a model of all replicas of a role as one engine (`rlkd.engines.open_engine`)."""
    return ",".join(f"{server.address}/v1" for server in replicas) + f"#{name or replicas[0].names[0]}"


def make_servers(
    config: ServeConfig,
    models: Mapping[str, str],
    vllms: Mapping[str, VLLM | None],
    ports: Mapping[str, list[int]],
) -> list[Server]:
    """Every server of a config, in its order."""
    servers = []
    for role, worker in config.workers.items():
        vllm = vllms.get(role)
        model = models.get(worker.model, worker.model)
        for replica, port in enumerate(ports[role]):
            devices = worker.replica_devices(replica)
            arguments = _arguments(config, worker, vllm, port)
            servers.append(
                Server(
                    role=role,
                    replica=replica,
                    replicas=worker.replicas,
                    host=config.host,
                    port=port,
                    names=(worker.name, *worker.lora),
                    devices=tuple(devices),
                    command=(*_program(config, worker, vllm, model), *arguments),
                    environment=_environment(worker, devices),
                    private=frozenset(worker.environment),
                    start_timeout=worker.start_timeout or config.start_timeout,
                )
            )
    return servers


def _program(config: ServeConfig, worker: Worker, vllm: VLLM | None, model: str) -> list[str]:
    own = find_command(config, worker)
    if own is not None:
        return [*own, model]
    python = find_python(config, worker)
    if vllm is not None and vllm.script is None:
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [vllm.script if vllm and vllm.script else str(Path(python).parent / "vllm"), "serve", model]


def _arguments(config: ServeConfig, worker: Worker, vllm: VLLM | None, port: int) -> list[str]:
    arguments = ["--host", config.host, "--port", str(port), "--served-model-name", worker.name]
    each = max(1, len(worker.devices) // worker.replicas)
    tensor = worker.tensor_parallel or max(1, each // worker.data_parallel)
    if tensor > 1:
        arguments += ["--tensor-parallel-size", str(tensor)]
    if worker.data_parallel > 1:
        arguments += ["--data-parallel-size", str(worker.data_parallel)]
    if worker.memory is not None:
        arguments += ["--gpu-memory-utilization", f"{worker.memory:g}"]
    # `auto` is bfloat16 even for a float32 checkpoint, which most CPUs have no units for.
    if dtype := worker.dtype or ("float32" if worker.on_cpu else None):
        arguments += ["--dtype", dtype]
    if worker.on_cpu and "--enforce-eager" not in worker.extra and "--no-enforce-eager" not in worker.extra:
        arguments += ["--enforce-eager"]
    chunking = ("--enable-chunked-prefill", "--no-enable-chunked-prefill", "--max-num-batched-tokens")
    if worker.on_cpu and not any(str(word).partition("=")[0] in chunking for word in worker.extra):
        # A prompt that is read in parts has its generator set back, which a CPU's cannot be: the server (0.30) ends.
        arguments += ["--no-enable-chunked-prefill"]
    if worker.max_model_len is not None:
        arguments += ["--max-model-len", str(worker.max_model_len)]
    if worker.lora or worker.max_lora_rank is not None:
        arguments += ["--enable-lora", "--max-lora-rank", str(_rank(worker))]
        if worker.on_cpu and "--lora-target-modules" not in worker.extra:
            # Left to itself vLLM prepares the output layer, too, and its CPU build (0.30) then ends at two requests in
            # one batch, one of them with `prompt_logprobs`.
            arguments += ["--lora-target-modules", *_lora_layers(worker)]
    if worker.lora:
        paths = {name: str(Path(path).expanduser().absolute()) for name, path in worker.lora.items()}
        arguments += ["--lora-modules", *(f"{name}={path}" for name, path in paths.items())]
    if worker.weight_transfer is not None:
        if worker.weight_transfer != "lora":
            arguments += ["--weight-transfer-config", json.dumps({"backend": worker.weight_transfer})]
        # What TRL needs: log-probabilities of the distribution that was sampled from, any number of them, and from
        # 0.30 on the endpoints for token ids.
        arguments += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
        if vllm is None or vllm.at_least(0, 30):
            arguments += ["--enable-scale-out"]
    return [*arguments, *(str(item) for item in worker.extra)]


def _rank(worker: Worker) -> int:
    # 16 where there is none (noted elsewhere), or of another kind, which vLLM will say.
    ranks = [worker.max_lora_rank or 1, *(int(config.get("r", 16)) for config in _lora_configs(worker))]
    return next((rank for rank in LORA_RANKS if rank >= max(ranks)), max(ranks))


def _lora_layers(worker: Worker) -> list[str]:
    """The layers that the adapters change; those of Llama's and Qwen's blocks, where an adapter does not list them."""
    layers = set() if worker.lora else set(LORA_LAYERS)
    for config in _lora_configs(worker):
        named = config.get("target_modules")
        layers |= set(named) if isinstance(named, list) else set(LORA_LAYERS)
    return sorted(layers)


def _lora_configs(worker: Worker) -> list[dict[str, Any]]:
    """`adapter_config.json` of each adapter; empty for one that cannot be read."""
    configs: list[dict[str, Any]] = []
    for path in worker.lora.values():
        try:
            content = json.loads((Path(path).expanduser() / "adapter_config.json").read_text())
        except (OSError, ValueError):
            content = {}
        configs.append(content if isinstance(content, dict) else {})
    return configs


def _environment(worker: Worker, devices: list[str]) -> dict[str, str]:
    defaults = DEFAULTS | (CPU_DEFAULTS if worker.on_cpu else {})
    environment = {name: value for name, value in defaults.items() if name not in os.environ}
    if not worker.on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices(devices)
    if worker.weight_transfer is not None:
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if worker.weight_transfer == "lora":
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return environment | {name: str(value) for name, value in worker.environment.items()}
