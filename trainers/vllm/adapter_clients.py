"""Clients of one rollout server that load adapters into it: from a shared folder, or sent by gloo or NCCL.

Each adapter has a name of its own. vLLM's prefix cache is kept by name, so no completion continues from what an
earlier adapter has computed, and a request in progress ends with the adapter that it began with.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

import torch

from rlkd.http import get_json
from rlkd.weight_transfer.adapters import ADAPTER, FILES, server_folder
from trainers.vllm.errors import ServerLost, SyncFailed
from trainers.vllm.sessions import PATIENCE, is_healthy, send_once
from trainers.vllm.weight_sync import GlooClient, ServerClient


class AdapterClient(ServerClient):
    """Loads adapters, and requests completions of the last one; subclasses define how the files get to the server."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        send_once(self.session)  # TRL's retries for a minute, and another server may take over at once
        self._place = secrets.token_hex(4)  # in the names of folders: servers of one machine must not share them

    def load(self, adapter: Path) -> None:
        """Load the adapter in a folder under the folder's name, and unload those before it of the same run.

        Raises `SyncFailed` where the server does not take it.
        """
        loaded = self.models()
        if adapter.name not in loaded:
            path = self._transfer(adapter)
            self._call("v1/load_lora_adapter", lora_name=adapter.name, lora_path=path)
        self.model = adapter.name
        self._unload([name for name in loaded if name != adapter.name and _run_of(name) == _run_of(adapter.name)])

    def unload(self) -> None:
        """Unload the adapter, as far as the server still answers."""
        if ADAPTER.fullmatch(self.model):
            self._unload([self.model])

    def is_well(self) -> bool:
        """Whether the server is healthy, and has the model or adapter whose completions are requested."""
        try:
            return is_healthy(self.base_url) and self.model in self.models()
        except (OSError, SyncFailed):
            return False

    def models(self) -> list[str]:
        """The names of the server's model and adapters; raises `SyncFailed` without an answer."""
        try:
            status, listed = get_json(f"{self.base_url}/v1/models", timeout=PATIENCE)
        except OSError as error:
            raise ServerLost.of(self.base_url, "does not list its models", error) from error
        if status != 200:
            raise SyncFailed.of(self.base_url, "does not list its models", f"HTTP {status}")
        return [str(card["id"]) for card in listed.get("data") or []]

    def _transfer(self, adapter: Path) -> str:
        """Bring the files of an adapter to the server; returns the folder in which it finds them."""
        raise NotImplementedError

    def _unload(self, adapters: list[str]) -> None:
        for name in adapters:
            with contextlib.suppress(SyncFailed):
                self._call("v1/unload_lora_adapter", lora_name=name)

    def _broadcast(self, adapter: Path, device: Any) -> str:
        """Send the files as a weight update of bytes, which the server stores."""
        folder = server_folder(adapter.name, self._place)
        files = {
            f"{folder.name}/{name}": torch.frombuffer(bytearray((adapter / name).read_bytes()), dtype=torch.uint8)
            for name in FILES
        }
        metadata = [(name, "uint8", list(content.shape)) for name, content in files.items()]
        self.update_named_params(metadata, ((name, content.to(device)) for name, content in files.items()))
        return str(folder)


class DiskAdapterClient(AdapterClient):
    """Adapters that the server reads from the trainer's folder; no weight transfer of vLLM is needed."""

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Nothing to connect."""

    def load(self, adapter: Path) -> None:
        """As above; the error names the folder that both must share."""
        try:
            super().load(adapter)
        except SyncFailed as error:
            raise SyncFailed(
                f"{error}. With vllm_weight_transfer: disk the server must find {adapter.parent} under the same path; "
                f"gloo needs no shared folder"
            ) from error

    def _transfer(self, adapter: Path) -> str:
        return str(adapter.resolve())

    def close_communicator(self) -> None:
        """Nothing to close."""


class GlooAdapterClient(AdapterClient, GlooClient):
    """Adapters over a TCP connection."""

    def _transfer(self, adapter: Path) -> str:
        return self._broadcast(adapter, "cpu")


class NCCLAdapterClient(AdapterClient):
    """Adapters by TRL's own transfer over NCCL, for a server with the backend `nccl_adapter`; not run by us."""

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Join the server's group from a GPU."""
        self._device = device
        super().init_communicator(device)

    def _transfer(self, adapter: Path) -> str:
        return self._broadcast(adapter, self._device)


# By vllm_weight_transfer.
CLIENTS = {"disk": DiskAdapterClient, "gloo": GlooAdapterClient, "nccl": NCCLAdapterClient}


def _run_of(adapter: str) -> str | None:
    found = ADAPTER.fullmatch(adapter)
    return found[1] if found else None
