"""How an adapter gets to one server: by name from a shared folder, or as bytes in a weight update."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkd.weight_transfer.adapters import ReceivedAdapters, server_folder
from tests.helpers.rollout_server import RolloutServer, client_without_vllm
from trainers.vllm.adapter_clients import CLIENTS, DiskAdapterClient, GlooAdapterClient
from trainers.vllm.errors import SyncFailed


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutServer]:
    client_without_vllm(monkeypatch)
    running = RolloutServer()
    yield running
    running.go_down()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "rlkd-00000000-v2"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(7)))
    return folder


def test_an_adapter_replaces_those_of_its_run_and_no_others(server: RolloutServer, adapter: Path) -> None:
    server.adapters = {"rlkd-00000000-v1": "x", "rlkd-11111111-v1": "x", "judge": "x", "trl-policy-v1": "x"}
    client = DiskAdapterClient(server.url)
    assert client.model == "base"
    client.load(adapter)
    assert client.model == adapter.name
    assert set(server.adapters) == {"rlkd-11111111-v1", "judge", "trl-policy-v1", adapter.name}
    assert server.adapters[adapter.name] == str(adapter)


def test_an_adapter_that_the_server_has_is_not_loaded_twice(server: RolloutServer, adapter: Path) -> None:
    DiskAdapterClient(server.url).load(adapter)
    client = DiskAdapterClient(server.url)
    client.load(adapter)
    assert server.posted == ["load_lora_adapter"]
    assert client.model == adapter.name


def test_a_server_that_cannot_read_the_folder_is_told_from_one_that_fails(
    server: RolloutServer, adapter: Path
) -> None:
    server.takes_no_adapter = True
    with pytest.raises(SyncFailed, match=rf"HTTP 500.*must find {adapter.parent} under the same path; gloo needs"):
        DiskAdapterClient(server.url).load(adapter)


@pytest.mark.parametrize("transfer", ["gloo", "nccl"])
def test_both_ways_through_a_weight_update_announce_and_send_the_bytes_of_the_files(
    server: RolloutServer, adapter: Path, monkeypatch: pytest.MonkeyPatch, transfer: str
) -> None:
    updates: list[tuple[Any, dict[str, torch.Tensor]]] = []
    kind = CLIENTS[transfer]
    monkeypatch.setattr(
        kind, "update_named_params", lambda self, metadata, tensors: updates.append((metadata, dict(tensors)))
    )
    client = kind(server.url)
    client._device = "cpu"
    client.load(adapter)
    ((metadata, sent),) = updates
    folder = server_folder(adapter.name, client._place)
    weights = f"{folder.name}/adapter_model.safetensors"
    assert metadata == [(f"{folder.name}/adapter_config.json", "uint8", [2]), (weights, "uint8", [7])]
    assert bytes(sent[weights].tolist()) == bytes(range(7))
    assert server.adapters == {adapter.name: str(folder)}
    ReceivedAdapters().store(sent.items())
    assert {path.read_bytes() for path in folder.iterdir()} == {b"{}", bytes(range(7))}


def test_two_servers_of_one_machine_have_folders_of_their_own(
    server: RolloutServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GlooAdapterClient, "update_named_params", lambda self, metadata, tensors: None)
    other = RolloutServer()
    for each in (server, other):
        GlooAdapterClient(each.url).load(adapter)
    other.go_down()
    assert set(server.adapters) == set(other.adapters) == {adapter.name}
    assert server.adapters != other.adapters


def test_a_server_without_its_adapter_is_not_well(server: RolloutServer, adapter: Path) -> None:
    client = GlooAdapterClient(server.url)
    assert client.is_well()
    client.model = adapter.name
    assert not client.is_well()
    server.adapters[adapter.name] = "x"
    assert client.is_well()
    server.go_down()
    assert not client.is_well()
