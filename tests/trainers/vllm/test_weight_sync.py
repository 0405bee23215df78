"""A weight sync that the server refuses, what it writes to disk, and weights that several processes share."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.soak_server import SampledRollouts, StandIn, handler, pretend_vllm
from tests.helpers.local_server import LocalServer
from tests.helpers.ports import free_port
from tests.helpers.sharded import train_in_two_processes, with_keys
from trainers.vllm.weight_sync import DiskClient, SyncFailed, _write, own_address


class Recorder(LocalServer):
    """A server that records posts and answers 200, or with the next of `answers` for a path."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, list[tuple[int, str]]] = {}
        super().__init__()

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, str]:
        self.posted.append((path[1:], json.loads(content or b"{}")))
        waiting = self.answers.get(path[1:])
        return waiting.pop(0) if waiting else (200, "{}")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    server = Recorder()
    yield server
    server.close()


def client_for(url: str, folder: Path) -> DiskClient:
    """A client without TRL's start, which wants vLLM installed and a model served."""
    client = DiskClient.__new__(DiskClient)
    client.base_url, client.seconds, client._updating_weights = url, 5.0, False
    client._folder, client._shard_bytes = folder, 100
    return client


def weights() -> tuple[list[tuple[str, str, list[int]]], dict[str, torch.Tensor]]:
    tensors = {name: torch.full((4, 4), float(i)) for i, name in enumerate("abc")}
    return [(name, "float32", [4, 4]) for name in tensors], tensors


def test_an_update_has_three_calls_and_leaves_no_file(recorder: Recorder, tmp_path: Path) -> None:
    client = client_for(recorder.url, tmp_path / "weights")
    metadata, tensors = weights()
    client.update_named_params(metadata, iter(tensors.items()))
    assert [path for path, _ in recorder.posted] == ["start_weight_update", "update_weights", "finish_weight_update"]
    paths = recorder.posted[1][1]["update_info"]["paths"]
    assert [Path(path).name for path in paths] == ["00000.safetensors", "00001.safetensors"]
    assert not (tmp_path / "weights").exists()


def test_several_parts_can_be_one_update(recorder: Recorder, tmp_path: Path) -> None:
    client = client_for(recorder.url, tmp_path / "weights")
    with client.weight_update():
        client.update_named_param("a", torch.ones(2))
        client.update_named_param("b", torch.ones(2))
    posted = [path for path, _ in recorder.posted]
    assert posted == ["start_weight_update", "update_weights", "update_weights", "finish_weight_update"]
    sent = [content["update_info"]["paths"] for path, content in recorder.posted if path == "update_weights"]
    assert sent[0] != sent[1]


def test_a_refusal_is_reported_in_the_servers_words_and_not_retried(recorder: Recorder, tmp_path: Path) -> None:
    recorder.answers["update_weights"] = [(500, json.dumps({"error": {"message": "no module named foo"}}))]
    metadata, tensors = weights()
    with pytest.raises(SyncFailed, match=r"refuses update_weights \(HTTP 500\): no module named foo\. .*--resume"):
        client_for(recorder.url, tmp_path).update_named_params(metadata, iter(tensors.items()))
    assert [path for path, _ in recorder.posted] == ["start_weight_update", "update_weights"]


def test_an_update_that_a_dead_trainer_left_open_is_closed_first(recorder: Recorder, tmp_path: Path) -> None:
    recorder.answers["start_weight_update"] = [(500, '{"error": "a weight update is already active"}')]
    metadata, tensors = weights()
    client_for(recorder.url, tmp_path / "weights").update_named_params(metadata, iter(tensors.items()))
    posted = [path for path, _ in recorder.posted]
    assert posted[:3] == ["start_weight_update", "finish_weight_update", "start_weight_update"]


def test_an_open_update_whose_files_are_gone_does_not_stop_the_next_trainer(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.answers["start_weight_update"] = [(500, '{"error": "a weight update is already active"}')]
    recorder.answers["finish_weight_update"] = [(500, '{"error": "No such file: 00000.safetensors"}')]
    metadata, tensors = weights()
    client_for(recorder.url, tmp_path / "weights").update_named_params(metadata, iter(tensors.items()))
    begin, end = "start_weight_update", "finish_weight_update"
    assert [path for path, _ in recorder.posted] == [begin, end, end, begin, "update_weights", end]


def test_a_server_may_take_longer_for_more_weights(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.vllm.weight_sync.SLOWEST", 100)  # bytes a second
    limits = []
    post = httpx.post

    def note(url: str, timeout: httpx.Timeout, **content: Any) -> Any:
        limits.append((url.rpartition("/")[2], timeout.read))
        return post(url, timeout=timeout, **content)

    monkeypatch.setattr(httpx, "post", note)
    client = client_for(recorder.url, tmp_path / "weights")
    client.update_named_params([("a", "float32", [1000])], iter([("a", torch.ones(1000))]))
    client.update_named_params([("a", "float32", [1])], iter([("a", torch.ones(1))]))
    finished = [limit for endpoint, limit in limits if endpoint == "finish_weight_update"]
    # 5 s, and a second for each 100 bytes of this update; files have a header of less than 200 bytes.
    assert 5 + 40 < finished[0] < 5 + 42
    assert finished[1] < 5 + 2 + 0.1


def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SyncFailed, match=r"rollout server http://127.0.0.1:9 does not answer start_weight_update"):
        client_for("http://127.0.0.1:9", tmp_path).update_named_param("a", torch.ones(2))


def test_files_hold_the_weights_of_the_moment_they_were_given(tmp_path: Path) -> None:
    """With LoRA, the adapter is unmerged after the last weight was read."""
    merged = {name: torch.ones(4, 4) for name in "abc"}

    def unmerged_afterwards() -> Iterator[tuple[str, torch.Tensor]]:
        yield from merged.items()
        for weight in merged.values():
            weight.zero_()

    paths = list(_write(tmp_path, unmerged_afterwards(), shard_bytes=100))
    written = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert set(written) == set("abc")
    assert all(torch.equal(tensor, torch.ones(4, 4)) for tensor in written.values())


def test_weights_that_share_memory_are_written_in_full(tmp_path: Path) -> None:
    whole = torch.arange(16.0).reshape(4, 4)
    (path,) = _write(tmp_path, [("head", whole), ("tied", whole), ("turned", whole.t())], shard_bytes=10_000)
    assert torch.equal(load_file(path)["turned"], whole.t())


def test_this_machine_is_known_by_the_address_the_server_can_reach() -> None:
    assert own_address("http://127.0.0.1:8000/v1") == "127.0.0.1"


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install rlkd[deepspeed]"
)


@contextmanager
def serving(model: str, transfer: str) -> Iterator[tuple[SampledRollouts, str]]:
    """A server of this process that samples from a model and takes weights, with its address."""
    server = SampledRollouts(model, model, transfer)
    http = StandIn(("127.0.0.1", 0), handler(server))
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lora", "transfer"),
    [
        ("fsdp2", False, "gloo"),
        pytest.param("fsdp2", True, "disk", marks=pytest.mark.nightly),
        pytest.param("zero3", False, "gloo", marks=[pytest.mark.nightly, needs_deepspeed]),
    ],
)
def test_a_server_gets_the_whole_weights_of_two_processes_that_share_them(
    kind: str, lora: bool, transfer: str, tiny_model: str, tmp_path: Path
) -> None:
    """Its weights are those after the first step, from which the completions of the second one come."""
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_weight_transfer": transfer, "generate": True}
    settings |= {"vllm_group_port": free_port(), "vllm_server_timeout": 60}
    settings |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    with serving(tiny_model, transfer) as (server, address):
        before = {name: value.detach().clone() for name, value in server.model.named_parameters()}
        job = {"trainer": "rlkd", "model": tiny_model, "lora": lora, "folder": str(tmp_path / "run"), "save": False}
        job["settings"] = settings | {"vllm_server_base_url": address}
        packages = str(pretend_vllm(tmp_path / "packages"))
        train_in_two_processes(with_keys(f"{kind}.yaml", tmp_path), [job], tmp_path, PYTHONPATH=packages)
        received = dict(server.model.named_parameters())
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model if lora else tmp_path / "run" / "checkpoint-1")
    if lora:
        model = PeftModel.from_pretrained(model, tmp_path / "run" / "checkpoint-1").merge_and_unload()
    expected = dict(model.named_parameters())
    assert received.keys() == expected.keys()
    assert all(torch.allclose(received[name], value, atol=1e-6) for name, value in expected.items())
    changed = [name for name, value in received.items() if not torch.allclose(value, before[name], atol=1e-5)]
    assert len(changed) >= 14  # the linear layers of two decoder layers
