"""The file of `rlkd serve`: its keys, their types, and what contradicts itself. Nothing of the machine is looked at.

    workers:
      gsrm:
        model: embedded-gsrm
        gpus: cpu

Every problem of a file is found before the first is told, each with its place: `serve.yaml: workers.gsrm.port: ...`.
"""

from __future__ import annotations

import math
import re
import shlex
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from rlkd.errors import UsageError
from rlkd.registry import suggestion

ROLE = re.compile(r"[a-z][a-z0-9_]*")
# vLLM's own share where none is given.
DEFAULT_MEMORY = 0.9
# Keys whose arguments may not come again in `extra`, by argument.
OWN_ARGUMENTS = {
    "--host": "host (at the top)",
    "--port": "port",
    "--model": "model",
    "--served-model-name": "served_model_name",
    "--dtype": "dtype",
    "--max-model-len": "max_model_len",
    "--gpu-memory-utilization": "memory",
    "--tensor-parallel-size": "tensor_parallel",
    "-tp": "tensor_parallel",
    "--data-parallel-size": "data_parallel",
    "-dp": "data_parallel",
    "--weight-transfer-config": "weight_transfer",
    "--lora-modules": "lora",
    "--enable-lora": "lora or max_lora_rank",
    "--max-lora-rank": "max_lora_rank",
}
OWN_VARIABLES = {"CUDA_VISIBLE_DEVICES": "gpus", "VLLM_SERVER_DEV_MODE": "weight_transfer"}
BACKENDS = ("nccl", "ipc", "gloo", "disk", "lora")
EXPECTED = {
    "workers": "roles with their keys",
    "model": "a model of ours, a folder or a hub id",
    "gpus": "a list of GPU ids, such as [0, 1], or cpu",
    "port": "a number, or auto",
}
# What is often asked for and stands elsewhere.
ELSEWHERE = {
    "trust_remote_code": "runs code of the model's author; say so with  extra: [--trust-remote-code]",
    "gpu_memory_utilization": "is called memory here",
    "tensor_parallel_size": "is called tensor_parallel here",
    "data_parallel_size": "is called data_parallel here",
    "env": "is called environment here",
    "name": "is called served_model_name here",
    "gpu": "is called gpus here",
    "host": "stands at the top of the file: one for all workers",
}


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One role. What each key becomes is in `docs/serve.md`."""

    model: str
    gpus: list[int | str] | str
    replicas: int = 1
    tensor_parallel: int | None = None
    data_parallel: int = 1
    memory: float | None = None
    port: int | str = "auto"
    dtype: str | None = None
    max_model_len: int | None = None
    served_model_name: str | None = None
    lora: dict[str, str] = field(default_factory=dict)
    max_lora_rank: int | None = None
    weight_transfer: str | None = None
    extra: list[str | int | float] = field(default_factory=list)
    environment: dict[str, str | int | float] = field(default_factory=dict)
    python: str | None = None
    command: list[str] | str | None = None
    start_timeout: float | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether it has no GPU."""
        return self.gpus == "cpu"

    @property
    def devices(self) -> list[str]:
        """Its GPUs, in the order of the file."""
        return [] if isinstance(self.gpus, str) else [str(gpu) for gpu in self.gpus]

    def replica_devices(self, replica: int) -> list[str]:
        """The GPUs of one replica: an equal share, or all where replicas share one."""
        each = len(self.devices) // self.replicas
        return self.devices[replica * each : (replica + 1) * each] if each else self.devices

    @property
    def name(self) -> str:
        """The name that it serves: as configured, else the model's, without the folders before it."""
        if self.served_model_name:
            return self.served_model_name
        return Path(self.model).name if is_path(self.model) else self.model


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The whole file. Times are in seconds."""

    workers: dict[str, Worker]
    host: str = "127.0.0.1"
    output_dir: str = "runs/serve"
    python: str | None = None
    command: list[str] | str | None = None
    start_timeout: float = 1200.0
    stop_timeout: float = 30.0
    unresponsive_timeout: float = 300.0
    restarts: int = 3
    restart_window: float = 600.0


def is_path(model: str) -> bool:
    """Whether a model is named as a folder (or is one), and not as a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..") or Path(model).is_dir()


def read_config(path: Path) -> ServeConfig:
    """Read and check a file. Raises `UsageError` with all that is wrong in it."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}. --config takes a YAML file; see docs/serve.md") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    problems: list[str] = []
    if not isinstance(raw, dict) or not isinstance(raw.get("workers"), dict) or not raw["workers"]:
        raise UsageError(
            f"{path}: workers: expected at least one role with its model, such as\n"
            f"  workers:\n    gsrm:\n      model: embedded-gsrm\n      gpus: cpu"
        )
    workers = {}
    for role, keys in raw["workers"].items():
        place = f"workers.{role}"
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            problems.append(f"{place}: a role is made of a-z, 0-9 and _, as its address is in RLKD_<ROLE>_URL")
        elif role == "trainer":
            problems.append(f"{place}: trainer is what the command after -- is called; take another name")
        elif not isinstance(keys, dict):
            problems.append(f"{place}: {keys!r}: expected keys, at least model and gpus")
        elif worker := _build(Worker, keys, f"{place}.", problems):
            workers[role] = worker
            problems += _contradictions(f"{place}.", worker)
    config = _build(ServeConfig, raw | {"workers": workers}, "", problems)
    if config is not None:
        problems += [*_limits(config), *_together(config)]
    if problems:
        raise UsageError("\n".join(f"{path}: {problem}" for problem in problems))
    assert config is not None
    return config


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may not come twice: the first of two workers of one name would vanish silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _build(kind: type, keys: Mapping[Any, Any], place: str, problems: list[str]) -> Any:
    """The dataclass from a mapping, or None with the problems noted."""
    before = len(problems)
    known = {each.name: each for each in fields(kind)}
    hints = get_type_hints(kind)
    values = {}
    for key, value in keys.items():
        if key not in known:
            if kind is Worker and key in ELSEWHERE:
                problems.append(f"{place}{key}: {ELSEWHERE[key]}")
            else:
                problems.append(f"{place}{key}: no such key.{suggestion(str(key), known)}")
        elif key == "workers":
            values[key] = value
        elif value is None:
            continue  # a key left empty
        elif not _fits(value, hints[key]):
            problems.append(f"{place}{key}: {value!r}: expected {EXPECTED.get(key) or _describe(hints[key])}")
        else:
            values[key] = value
    for name, each in known.items():
        needed = each.default is MISSING and each.default_factory is MISSING
        if needed and keys.get(name) is None:
            problems.append(f"{place}{name}: is missing; expected {EXPECTED[name]}")
    return kind(**values) if len(problems) == before else None


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is types.UnionType:
        return any(_fits(value, each) for each in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if origin is dict:
        key, content = get_args(hint)
        return isinstance(value, dict) and all(_fits(k, key) and _fits(v, content) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is types.UnionType:
        return " or ".join(_describe(each) for each in get_args(hint) if each is not type(None))
    if origin is list:
        return f"a list of {_describe(get_args(hint)[0])}"
    if origin is dict:
        return "a mapping of names to " + _describe(get_args(hint)[1])
    return {int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))


def _contradictions(place: str, worker: Worker) -> Iterable[str]:
    """What is wrong within one worker."""
    if isinstance(worker.gpus, str) and not worker.on_cpu:
        yield f"{place}gpus: {worker.gpus!r}: expected {EXPECTED['gpus']}"
        return
    if isinstance(worker.gpus, list) and not worker.gpus:
        yield f"{place}gpus: []: expected at least one GPU id; without a GPU, cpu"
        return
    for gpu, times in Counter(worker.devices).items():
        if times > 1:
            yield f"{place}gpus: {gpu} comes {times} times; to share one GPU among replicas, name it once"
    for key in ("replicas", "tensor_parallel", "data_parallel", "max_model_len", "max_lora_rank", "start_timeout"):
        value = getattr(worker, key)
        if value is not None and value <= 0:
            yield f"{place}{key}: {value}: expected more than 0"
            return
    gpus, replicas = len(worker.devices), worker.replicas
    if gpus % replicas and gpus != 1:
        yield f"{place}replicas: {replicas} replicas cannot share {gpus} GPUs evenly; {replicas} x n GPUs, or one"
    elif gpus:
        each = max(1, gpus // replicas)
        tensor = worker.tensor_parallel or max(1, each // worker.data_parallel)
        if tensor * worker.data_parallel != each:
            yield (
                f"{place}gpus: tensor_parallel {tensor} x data_parallel {worker.data_parallel} = "
                f"{tensor * worker.data_parallel} GPUs, but {gpus} GPUs / {replicas} replicas = {each}"
            )
    if worker.memory is not None:
        if worker.on_cpu:
            yield (
                f"{place}memory: is a share of a GPU. On the CPU give the KV cache so many GiB:  "
                f"environment: {{VLLM_CPU_KVCACHE_SPACE: 2}}"
            )
        elif not 0 < worker.memory <= 1:
            yield f"{place}memory: {worker.memory}: expected a share of a GPU, above 0 and at most 1"
    if isinstance(worker.port, str) and worker.port != "auto":
        yield f"{place}port: {worker.port!r}: expected {EXPECTED['port']}"
    elif isinstance(worker.port, int) and not 1 <= worker.port <= 65536 - worker.replicas:
        yield f"{place}port: {worker.port}: expected 1 to {65536 - worker.replicas}"
    if worker.weight_transfer is not None:
        if worker.weight_transfer not in BACKENDS:
            yield (
                f"{place}weight_transfer: no {worker.weight_transfer!r}."
                f"{suggestion(worker.weight_transfer, BACKENDS)} "
                f"A backend of your own: leave it out, and give  extra: [--weight-transfer-config, ...]"
            )
        elif worker.on_cpu and worker.weight_transfer in ("nccl", "ipc"):
            yield f"{place}weight_transfer: {worker.weight_transfer} needs a GPU; on the CPU: gloo, disk or lora"
        elif worker.replicas > 1:
            yield (
                f"{place}weight_transfer: a trainer sends its weights to one server, not to {worker.replicas}. "
                f"Several copies of the model behind one address:  data_parallel: {worker.replicas}"
            )
        elif worker.weight_transfer == "lora" and worker.data_parallel > 1:
            yield (
                f"{place}weight_transfer: lora loads an adapter into one of the {worker.data_parallel} API servers of "
                f"data_parallel, and the others do not know it. Take data_parallel 1, tensor_parallel for more GPUs"
            )
        elif worker.weight_transfer == "lora" and worker.max_lora_rank is None and not worker.lora:
            yield f"{place}max_lora_rank: weight_transfer lora needs the rank of the trained adapter, such as 16"
    for item in worker.extra:
        argument = str(item).partition("=")[0].replace("_", "-")
        if argument == "--weight-transfer-config" and worker.weight_transfer is None:
            continue
        if argument in OWN_ARGUMENTS:
            yield f"{place}extra: {item!r} is what the key {OWN_ARGUMENTS[argument]} says; say it there"
    for name in worker.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"{place}environment: {name!r} is no name of a variable"
        elif name in OWN_VARIABLES and not (name == "VLLM_SERVER_DEV_MODE" and worker.weight_transfer is None):
            yield f"{place}environment: {name} is set by the key {OWN_VARIABLES[name]}"
    if worker.name in worker.lora:
        yield f"{place}lora: the adapter {worker.name!r} has the name of the model itself; take another"
    names = dict.fromkeys(worker.lora, "lora")
    if worker.served_model_name is not None or is_path(worker.model):
        names[worker.name] = "served_model_name"
    for name, key in names.items():
        if not name or re.search(r"[\s#,=]", name):
            yield f"{place}{key}: {name!r}: expected a name without spaces, #, comma and =, as it ends an address"
    if worker.command is not None:
        yield from _command_problems(f"{place}command", worker.command)


def _command_problems(place: str, command: list[str] | str) -> Iterable[str]:
    if not words(command):
        yield f"{place}: is empty; leave it out for vllm serve"


def words(command: list[str] | str) -> list[str]:
    """A command as a list: what is one text is split as a shell does it."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def _limits(config: ServeConfig) -> Iterable[str]:
    for key in ("start_timeout", "stop_timeout", "restart_window"):
        if getattr(config, key) <= 0:
            yield f"{key}: {getattr(config, key)}: expected seconds, above 0"
    for key in ("unresponsive_timeout", "restarts"):
        if getattr(config, key) < 0:
            yield f"{key}: {getattr(config, key)}: expected 0 (never) or more"
    if config.command is not None:
        yield from _command_problems("command", config.command)


def _together(config: ServeConfig) -> Iterable[str]:
    """What workers take from each other: ports and GPUs."""
    ports: dict[int, str] = {}
    shares: dict[str, list[tuple[str, float, bool]]] = {}
    for role, worker in config.workers.items():
        if isinstance(worker.port, int):
            for port in range(worker.port, worker.port + worker.replicas):
                if port in ports:
                    both = f"{ports[port]} and {role}" if ports[port] != role else role
                    yield f"workers.{role}.port: {port} is taken twice, by {both}; give each its own, or auto"
                ports.setdefault(port, role)
        for replica in range(worker.replicas):
            for gpu in worker.replica_devices(replica):
                share = DEFAULT_MEMORY if worker.memory is None else worker.memory
                shares.setdefault(gpu, []).append((role, share, worker.memory is None))
    for gpu, users in shares.items():
        total = sum(share for _, share, _ in users)
        if total > 1 + 1e-9:
            sums = " + ".join(f"{share:g} ({role}{', the default' * default})" for role, share, default in users)
            yield f"memory: GPU {gpu} is shared out to more than 1: {sums} = {total:g}; lower workers.*.memory"
