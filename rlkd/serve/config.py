"""Parses and validates the config file of `rlkd serve`, all problems at once; no machine checks here."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlkd.errors import UsageError
from rlkd.registry import suggestion

DEFAULT_MEMORY = 0.9  # vLLM's own default share
GPUS = "expected a list of GPU ids, such as [0, 1], or cpu"


class _Keys(BaseModel):
    """Strict types, no unknown keys; a key without a value has its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, keys: Any) -> Any:
        if not isinstance(keys, dict):
            raise ValueError(f"{keys!r}: expected keys, at least model and gpus")
        return {key: value for key, value in keys.items() if value is not None}


class RoleConfig(_Keys):
    """One role. `docs/serve.md` explains each key."""

    model: str
    gpus: Literal["cpu"] | list[int | str]
    replicas: int = Field(1, gt=0)
    tensor_parallel: int | None = Field(None, gt=0)
    data_parallel: int = Field(1, gt=0)
    memory: float | None = Field(None, gt=0, le=1)
    port: Literal["auto"] | int = "auto"
    dtype: str | None = None
    max_model_len: int | None = Field(None, gt=0)
    served_model_name: str | None = None
    lora: dict[str, str] = {}
    max_lora_rank: int | None = Field(None, gt=0)
    weight_transfer: Literal["nccl", "ipc", "gloo", "disk", "lora", "nccl_adapter"] | None = None
    extra: list[str | int | float] = []
    environment: dict[str, str | int | float] = {}
    python: str | None = None
    command: list[str] | str | None = None
    start_timeout: float | None = Field(None, gt=0)

    @field_validator("gpus", mode="before")
    @classmethod
    def _check_gpus(cls, gpus: Any) -> Any:
        if gpus != "cpu" and not (isinstance(gpus, list) and gpus and all(type(gpu) in (int, str) for gpu in gpus)):
            raise ValueError(f"{gpus!r}: {GPUS}")
        for gpu, count in Counter(map(str, gpus if gpus != "cpu" else ())).items():
            if count > 1:
                raise ValueError(f"{gpu} comes {count} times; to share one GPU among replicas, name it once")
        return gpus

    @field_validator("port", mode="before")
    @classmethod
    def _check_port(cls, port: Any) -> Any:
        if port != "auto" and not (type(port) is int and 1 <= port <= 65535):
            raise ValueError(f"{port!r}: expected a number from 1 to 65535, or auto")
        return port

    @model_validator(mode="after")
    def _check_together(self) -> RoleConfig:
        if problems := list(self._problems()):
            raise ValueError("\n".join(f".{problem}" for problem in problems))
        return self

    def _problems(self) -> Iterable[str]:
        gpus = len(self.devices)
        each = max(1, gpus // self.replicas)
        if gpus % self.replicas and gpus != 1:
            yield f"replicas: {self.replicas} replicas cannot share {gpus} GPUs evenly"
        elif gpus and self.tensor_size * self.data_parallel != each:
            yield (
                f"gpus: tensor_parallel {self.tensor_size} x data_parallel {self.data_parallel} = "
                f"{self.tensor_size * self.data_parallel} GPUs, but {gpus} GPUs / {self.replicas} replicas = {each}"
            )
        if self.memory is not None and self.on_cpu:
            yield (
                "memory: is a share of a GPU. On the CPU set the size of the KV cache in GiB:  "
                "environment: {VLLM_CPU_KVCACHE_SPACE: 2}"
            )
        if self.weight_transfer is not None and self.replicas > 1 and not self.takes_adapters:
            yield (
                f"weight_transfer: a trainer sends its weights to one server, not to {self.replicas}. For several "
                f"copies of the model behind one address, set  data_parallel: {self.replicas}; or, for a trainer with "
                f"vllm_adapter_sync, max_lora_rank"
            )
        if self.weight_transfer in ("lora", "nccl_adapter"):
            if self.data_parallel > 1:
                yield (
                    f"weight_transfer: {self.weight_transfer} loads an adapter into one of the {self.data_parallel} "
                    f"API servers of data_parallel; the others would not have it. Set data_parallel 1, and use "
                    f"tensor_parallel"
                )
            if self.max_lora_rank is None and not self.lora:
                yield (
                    f"max_lora_rank: weight_transfer {self.weight_transfer} needs the rank of the trained adapter, "
                    f"such as 16"
                )
        if "CUDA_VISIBLE_DEVICES" in self.environment:
            yield "environment: CUDA_VISIBLE_DEVICES is set by the key gpus"
        names = dict.fromkeys(self.lora, "lora")
        if self.served_model_name is not None or is_path(self.model):
            names[self.name] = "served_model_name"
        for name, key in names.items():
            if not name or re.search(r"[\s#,=]", name):
                yield f"{key}: {name!r}: expected a name without spaces, #, comma and =, as it ends an address"

    @property
    def on_cpu(self) -> bool:
        """Whether it has no GPU."""
        return self.gpus == "cpu"

    @property
    def takes_adapters(self) -> bool:
        """Whether a trainer may load adapters into it."""
        return self.weight_transfer == "lora" or (self.weight_transfer is not None and self.max_lora_rank is not None)

    @property
    def devices(self) -> list[str]:
        """Its GPUs, in the order of the file."""
        return [] if isinstance(self.gpus, str) else [str(gpu) for gpu in self.gpus]

    @property
    def tensor_size(self) -> int:
        """Tensor-parallel size of a replica: as configured, else the GPUs that data_parallel leaves."""
        return self.tensor_parallel or max(1, len(self.devices) // self.replicas // self.data_parallel)

    def replica_devices(self, replica: int) -> list[str]:
        """The GPUs of one replica: an equal share, or all if the replicas share one."""
        each = len(self.devices) // self.replicas
        return self.devices[replica * each : (replica + 1) * each] if each else self.devices

    @property
    def name(self) -> str:
        """The served model name: as configured, else the model's without its parent folders."""
        if self.served_model_name:
            return self.served_model_name
        return Path(self.model).name if is_path(self.model) else self.model


class ServeConfig(_Keys):
    """The whole file. Times are in seconds."""

    workers: dict[str, RoleConfig]
    host: str = "127.0.0.1"
    output_dir: str = "runs/serve"
    python: str | None = None
    command: list[str] | str | None = None
    start_timeout: float = Field(1200.0, gt=0)
    stop_timeout: float = Field(30.0, gt=0)
    unresponsive_timeout: float = Field(300.0, ge=0)
    restarts: int = Field(3, ge=0)
    restart_window: float = Field(600.0, gt=0)

    @field_validator("workers", mode="before")
    @classmethod
    def _check_roles(cls, workers: Any) -> Any:
        if not isinstance(workers, dict) or not workers:
            raise ValueError("expected at least one role, such as  gsrm: {model: embedded-gsrm, gpus: cpu}")
        for role in workers:
            if not isinstance(role, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", role):
                raise ValueError(f".{role}: a role consists of a-z, 0-9 and _, as its address is in RLKD_<ROLE>_URL")
            if role == "trainer":
                raise ValueError(".trainer: is the name of the command after --; choose another one")
        return workers

    @model_validator(mode="after")
    def _check_shared(self) -> ServeConfig:
        if problems := [*self._port_problems(), *self._memory_problems()]:
            raise ValueError("\n".join(problems))
        return self

    def _port_problems(self) -> Iterable[str]:
        ports: dict[int, str] = {}
        for role, worker in self.workers.items():
            if isinstance(worker.port, int):
                for port in range(worker.port, worker.port + worker.replicas):
                    if port in ports:
                        yield f"workers.{role}.port: {port} is used twice, by {ports[port]} and {role}"
                    ports[port] = role

    def _memory_problems(self) -> Iterable[str]:
        shares: dict[str, list[tuple[str, float, bool]]] = {}
        for role, worker in self.workers.items():
            for replica in range(worker.replicas):
                for gpu in worker.replica_devices(replica):
                    share = DEFAULT_MEMORY if worker.memory is None else worker.memory
                    shares.setdefault(gpu, []).append((role, share, worker.memory is None))
        for gpu, users in shares.items():
            total = sum(share for _, share, _ in users)
            if total > 1 + 1e-9:
                terms = " + ".join(f"{share:g} ({role}{', the default' * default})" for role, share, default in users)
                yield f"memory: the shares of GPU {gpu} exceed 1: {terms} = {total:g}; lower workers.*.memory"


def is_path(model: str) -> bool:
    """Whether a model is named as a folder (or is one), and not as a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..") or Path(model).is_dir()


def words(command: list[str] | str) -> list[str]:
    """A command as a list; a string is split like in a shell."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def read_config(path: Path) -> ServeConfig:
    """Read and check a file. Raises `UsageError` with all its problems."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}. --config takes a YAML file; see docs/serve.md") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not a YAML file: {error}") from error
    try:
        return ServeConfig.model_validate(raw if isinstance(raw, dict) else {"workers": {}})
    except ValidationError as error:
        problems = "\n".join(f"{path}: {line}" for detail in error.errors() for line in _described(detail))
        raise UsageError(problems) from error


def _described(detail: Any) -> Iterable[str]:
    key = ".".join(map(str, detail["loc"]))
    message = str(detail["msg"])
    if detail["type"] == "extra_forbidden":
        known = RoleConfig.model_fields if len(detail["loc"]) > 1 else ServeConfig.model_fields
        yield f"{key}: unknown key.{suggestion(str(detail['loc'][-1]), known)}"
    elif detail["type"] == "missing":
        yield f"{key}: is missing" + (f"; {GPUS}" if detail["loc"][-1] == "gpus" else "")
    elif detail["type"] == "value_error":  # of the checks above; several have a line each, which names its key
        for line in message.removeprefix("Value error, ").split("\n"):
            yield f"{key}{'' if line.startswith('.') or not key else ': '}{line}"
    else:
        yield f"{key}: {detail['input']!r}: {message[0].lower()}{message[1:]}"


class _Loader(yaml.SafeLoader):
    """Safe YAML without repeated keys: the first of two workers of one name would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
