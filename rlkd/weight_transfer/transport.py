"""A gloo process group of a trainer (rank 0) and the workers of a vLLM server, separate from torch's global group.

Every wait is limited: a peer that dies is noticed at once, one that hangs after `seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


class TransferFailed(RuntimeError):
    """The other side did not join, did not answer in time, or closed the connection."""


class WeightGroup:
    """Broadcasts of tensors in host memory from rank 0 to the others.

    `watch` is called while rank 0 waits, and may raise, for instance an error of the server.
    """

    def __init__(self, store: TCPStore, rank: int, world_size: int, seconds: float):
        self._store: TCPStore | None = store  # the trainer's store must live as long as the group
        self._seconds = seconds
        self._group: Any = ProcessGroupGloo(
            PrefixStore("weights", store), rank, world_size, timedelta(seconds=seconds)
        )

    def send(self, tensor: torch.Tensor, watch: Callable[[], None]) -> None:
        """Send a tensor of any dtype and device; raises `TransferFailed`, and what `watch` raises."""
        content = tensor.detach().to("cpu").contiguous()
        if content.numel() == 0:
            return
        work = self._broadcast(content)
        deadline = time.monotonic() + self._seconds
        while not work.is_completed():
            watch()
            if time.monotonic() > deadline:
                raise TransferFailed(f"the server received no weights for {self._seconds:g} seconds")
            time.sleep(0.0002)
        self._finish(work)

    def receive(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor of rank 0; raises `TransferFailed`."""
        content = torch.empty(shape, dtype=dtype)
        if content.numel():
            self._finish(self._broadcast(content))
        return content

    def close(self) -> None:
        """Close the connections; the others stop waiting at once."""
        self._group = self._store = None  # gloo's own shutdown leaves them open

    def _broadcast(self, content: torch.Tensor) -> Any:
        if self._group is None:
            raise TransferFailed("the connection is closed")
        # As bytes: gloo does not support every dtype.
        options = torch.distributed.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        try:
            return self._group.broadcast([content.reshape(-1).view(torch.uint8)], options)
        except RuntimeError as error:
            raise TransferFailed(str(error)) from error

    def _finish(self, work: Any) -> None:
        try:
            work.wait(timedelta(seconds=self._seconds))
        except RuntimeError as error:
            raise TransferFailed(str(error)) from error


def host(port: int, world_size: int, seconds: float) -> TCPStore:
    """Open the rendezvous of a group on this machine; raises `TransferFailed` if the port is taken."""
    try:
        return TCPStore(
            "0.0.0.0", port, world_size, is_master=True, timeout=timedelta(seconds=seconds), wait_for_workers=False
        )
    except RuntimeError as error:  # torch's DistNetworkError among them
        raise TransferFailed(f"port {port} cannot be opened: {error}") from error


def lead(store: TCPStore, world_size: int, seconds: float, watch: Callable[[], None]) -> WeightGroup:
    """Wait until all others have joined, and create the group as its rank 0; raises what `watch` raises."""
    deadline = time.monotonic() + seconds
    for rank in range(1, world_size):
        while not store.check([f"here/{rank}"]):
            watch()
            if time.monotonic() > deadline:
                raise TransferFailed(f"worker {rank} of {world_size - 1} did not join within {seconds:g} seconds")
            time.sleep(0.01)
    return WeightGroup(store, 0, world_size, seconds)


def join(address: str, port: int, rank: int, world_size: int, seconds: float) -> WeightGroup:
    """Join the trainer's group as `rank`; raises `TransferFailed`."""
    try:
        store = TCPStore(address, port, world_size, is_master=False, timeout=timedelta(seconds=seconds))
        store.set(f"here/{rank}", "yes")
        return WeightGroup(store, rank, world_size, seconds)
    except RuntimeError as error:
        raise TransferFailed(f"the trainer at {address}:{port} cannot be reached: {error}") from error
