"""Sends the trainer's weights to a rollout server without NCCL.

TRL decides when and which weights go; its `VLLMClient` sends them, here with the transport of `rlkd.weight_transfer`.
A refused sync ends the run, as training would go on with rollouts of another model. A server that was restarted gets
the weights again (`trainers.vllm.restarts`).
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import torch
from trl.generation.vllm_client import VLLMClient

from rlkd.weight_transfer.transport import TransferFailed, WeightGroup, host, lead
from trainers.vllm.errors import ServerLost, SyncFailed
from trainers.vllm.restarts import RestartSafe

logger = logging.getLogger(__name__)

Metadata = list[tuple[str, str, list[int]]]

# Size of the files for a large model's weights: host memory holds one of them at a time.
SHARD_BYTES = 2**31
# A transfer slower than this, in bytes per second, counts as hung (10 MiB: a tenth of Gigabit Ethernet).
SLOWEST = 10 * 2**20
# Length of a server's message in an error.
SHOWN_CHARACTERS = 600


class ServerClient(VLLMClient):
    """TRL's client with requests that are sent once, have a time limit, and fail in the server's words."""

    def __init__(self, base_url: str, group_port: int = 51216, connection_timeout: float = 240.0):
        self.seconds = max(connection_timeout, 10.0)
        super().__init__(base_url=base_url, group_port=group_port, connection_timeout=connection_timeout)

    def _call(self, endpoint: str, size: int = 0, **content: Any) -> None:
        """Post once, with a time limit that grows with the `size` in bytes that the server must receive meanwhile."""
        limit = self.seconds + size / SLOWEST
        try:
            # Not TRL's session, which retries failed requests.
            timeout = httpx.Timeout(limit, connect=10)
            response = httpx.post(f"{self.base_url}/{endpoint}", json=content, timeout=timeout)
        except httpx.HTTPError as error:
            problem = f"does not answer {endpoint} within {limit:.0f} s (vllm_server_timeout is {self.seconds:g} s)"
            raise ServerLost.of(self.base_url, problem, error) from error
        if response.status_code != 200:
            problem = f"refuses {endpoint} (HTTP {response.status_code})"
            raise SyncFailed.of(self.base_url, problem, _message(response))


class _HostClient(ServerClient):
    """TRL's client with weights through host memory; subclasses define the transport."""

    backend = ""
    _sent = 0  # bytes since the last update was finished

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Connect to the server's weight-transfer engine; `device` may be any."""
        del device
        try:
            self._connect()
        except TransferFailed as error:
            raise ServerLost.of(self.base_url, "does not join the weight group", error) from error

    def update_named_params(self, metadata: Metadata, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Send weights. `metadata`: a (name, dtype, shape) for each pair of `named_params`, in the same order."""
        if not self._updating_weights:
            self._start_weight_update()
        try:
            self._send(metadata, named_params)
        except TransferFailed as error:
            problem = "lost the connection in the middle of the weights"
            raise ServerLost.of(self.base_url, problem, error) from error
        if not self._updating_weights:
            self._finish_weight_update()

    def _connect(self) -> None:
        raise NotImplementedError

    def _send(self, metadata: Metadata, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        raise NotImplementedError

    def _start_weight_update(self) -> None:
        try:
            self._call("start_weight_update")
        except SyncFailed as error:
            if "already active" not in str(error):
                raise
            logger.warning("%s: a trainer left a weight update unfinished; starting again", self.base_url)
            try:
                self._call("finish_weight_update")
            except SyncFailed:
                # The weights of that trainer cannot be read. They have been dropped; the next update is empty.
                self._call("finish_weight_update")
            self._call("start_weight_update")

    def _finish_weight_update(self) -> None:
        self._call("finish_weight_update", size=self._sent)
        self._sent = 0


class GlooClient(_HostClient):
    """Weights over a TCP connection, one tensor after the other."""

    backend = "gloo"
    communicator: WeightGroup | None  # type: ignore[assignment]

    def _connect(self) -> None:
        world_size = self.get_world_size() + 1
        store = host(self.group_port, world_size, self.seconds)
        announced = {
            "master_address": own_address(self.base_url),
            "master_port": self.group_port,
            "rank_offset": 1,
            "world_size": world_size,
            "seconds": self.seconds,
        }
        self.communicator = self._during(
            functools.partial(self._call, "init_weight_transfer_engine", init_info=announced),
            lambda watch: lead(store, world_size, self.seconds, watch),
        )

    def _send(self, metadata: Metadata, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        if self.communicator is None:
            raise TransferFailed("the connection is closed")
        group = self.communicator
        names, dtypes, shapes = (list(part) for part in zip(*metadata, strict=True))
        update = {"names": names, "dtype_names": dtypes, "shapes": shapes}

        def broadcast(watch: Callable[[], None]) -> None:
            for (name, *expected), (sent, tensor) in zip(metadata, named_params, strict=True):
                found = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                if (name, expected) != (sent, found):
                    raise ValueError(f"weights to send: announced {name} {expected}, found {sent} {found}")
                group.send(tensor, watch)

        size = sum(math.prod(shape) * getattr(torch, dtype).itemsize for _, dtype, shape in metadata)
        self._during(functools.partial(self._call, "update_weights", size=size, update_info=update), broadcast)

    def _during(self, call: Callable[[], None], work: Callable[[Callable[[], None]], Any]) -> Any:
        """Do `work` while the server handles `call`; an error of the server takes precedence over one here."""
        with ThreadPoolExecutor(max_workers=1) as executor:
            response: Future[None] = executor.submit(call)

            def watch() -> None:
                if response.done():
                    response.result()

            try:
                result = work(watch)
            except BaseException as error:
                self.close_communicator()  # so that the server stops waiting, and answers
                if isinstance(error, TransferFailed):
                    response.result()
                raise
            response.result()
            return result

    def close_communicator(self) -> None:
        """Close the connection."""
        if self.communicator is not None:
            self.communicator.close()
        self.communicator = None


class DiskClient(_HostClient):
    """Weights through safetensors files in `folder`, which the server must see under the same path."""

    backend = "disk"

    def __init__(self, *args: Any, folder: Path, shard_bytes: int = SHARD_BYTES, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._folder = folder.resolve()
        self._shard_bytes = shard_bytes

    def _connect(self) -> None:
        self._call("init_weight_transfer_engine", init_info={})

    def _start_weight_update(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # left by a killed run
        self._folder.mkdir(parents=True)
        super()._start_weight_update()

    def _send(self, metadata: Metadata, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        paths = [str(path) for path in _write(self._folder, named_params, self._shard_bytes)]
        self._sent += sum(Path(path).stat().st_size for path in paths)
        self._call("update_weights", update_info={"paths": paths})

    def _finish_weight_update(self) -> None:
        super()._finish_weight_update()
        shutil.rmtree(self._folder, ignore_errors=True)  # the server has read them

    def close_communicator(self) -> None:
        """Remove the files of a failed sync; nothing else is open."""
        shutil.rmtree(self._folder, ignore_errors=True)


class LastingGlooClient(RestartSafe, GlooClient):
    """As `GlooClient`, for a server that may be restarted."""


class LastingDiskClient(RestartSafe, DiskClient):
    """As `DiskClient`, for a server that may be restarted."""


def own_address(server: str) -> str:
    """This machine's address as the server at the URL `server` can reach it."""
    parsed = urlparse(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parsed.hostname or "127.0.0.1", parsed.port or 80))  # sends nothing
        return str(probe.getsockname()[0])


def _write(folder: Path, named_params: Iterable[tuple[str, torch.Tensor]], shard_bytes: int) -> Iterator[Path]:
    """Write the tensors to files of about `shard_bytes` in `folder`; yields each path.

    Tensors are copied at once: with LoRA they are views of weights that stay merged only until the next one.
    """
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    size = 0

    def save() -> Path:
        path = folder / f"{len(list(folder.iterdir())):05d}.safetensors"
        save_file(shard, path)
        return path

    for name, tensor in named_params:
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += shard[name].nbytes
        if size >= shard_bytes:
            yield save()
            shard, size = {}, 0
    if shard:
        yield save()


def _message(response: httpx.Response) -> str:
    try:
        error = json.loads(response.text)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        message = response.text
    return message if len(message) <= SHOWN_CHARACTERS else message[:SHOWN_CHARACTERS] + " ..."
