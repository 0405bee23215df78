"""A run goes on when its rollout server is restarted, and every completion comes from the trainer's weights."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
from transformers import AutoModelForCausalLM

from rlkd.http import get_json
from tests.helpers import ROOT
from tests.helpers.local_server import LocalServer
from tests.helpers.ports import free_port
from trainers.vllm import restarts
from trainers.vllm.errors import ServerLost, SyncFailed
from trainers.vllm.restarts import give_weights_again
from trainers.vllm.weight_sync import LastingDiskClient, LastingGlooClient

UPDATE = ["start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache"]


# Faults that are no status: a connection closed without an answer, and the last answer of an engine that is lost.
CLOSED, DYING = -1, -2


class Restartable(LocalServer):
    """A server that records posts. The next of a path's `faults` is a status, or None for a restart in the middle."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.started = "1.0"
        self.faults: dict[str, list[int | None]] = {}
        super().__init__()

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, str] | None:
        if method == "GET":
            return 200, f"# HELP\nprocess_start_time_seconds {self.started}\nother 2\n"
        name = path.rpartition("/")[2]
        self.posted.append(name)
        fault = self.faults[name].pop(0) if self.faults.get(name) else 200
        if fault in (None, DYING):
            self.started += "1"  # it died, and was started again
        if fault in (None, CLOSED):
            return None
        if fault == DYING:
            return 500, "EngineDeadError"
        choice = {"prompt_token_ids": [1], "token_ids": [2], "logprobs": None}
        return (200, json.dumps({"choices": [choice], "success": True})) if fault == 200 else (fault, "out of order")


@pytest.fixture
def server() -> Iterator[Restartable]:
    restartable = Restartable()
    yield restartable
    restartable.close()


def weights() -> Iterator[tuple[str, torch.Tensor]]:
    yield "a", torch.ones(2)


METADATA = [("a", "float32", [2])]


@pytest.fixture
def client(server: Restartable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LastingDiskClient:
    """After its first sync. Without TRL's start, which wants vLLM installed."""
    monkeypatch.setattr(restarts, "PAUSE", 0.01)
    made = LastingDiskClient.__new__(LastingDiskClient)
    made.base_url, made.seconds, made._updating_weights = server.url, 5.0, False
    made._folder, made._shard_bytes = tmp_path / "weights", 100
    made.model, made.session = "m", requests.Session()
    made.weights = weights
    made.init_communicator()
    made.update_named_params(METADATA, weights())
    server.posted.clear()
    return made


def test_a_server_that_stays_gets_no_further_update(server: Restartable, client: LastingDiskClient) -> None:
    assert client.generate([[1]])["completion_ids"] == [[2]]
    client.reset_prefix_cache()
    assert server.posted == ["completions", "reset_prefix_cache"]


def test_a_restarted_server_gets_the_weights_before_it_samples(server: Restartable, client: LastingDiskClient) -> None:
    server.started = "2.0"
    client.generate([[1]])
    client.generate([[1]])
    assert server.posted == ["init_weight_transfer_engine", *UPDATE, "completions", "completions"]


def test_completions_that_a_dying_server_took_along_are_sampled_again(
    server: Restartable, client: LastingDiskClient
) -> None:
    server.faults["completions"] = [None]
    assert client.generate([[1]])["completion_ids"] == [[2]]
    assert server.posted == ["completions", "init_weight_transfer_engine", *UPDATE, "completions"]


@pytest.mark.parametrize("place", UPDATE[:3])
def test_an_update_that_a_restart_interrupts_is_sent_again_as_a_whole(
    server: Restartable, client: LastingDiskClient, place: str
) -> None:
    server.faults[place] = [None]
    given = weights()
    client.update_named_params(METADATA, given)
    assert server.posted[-4:] == UPDATE
    assert "init_weight_transfer_engine" in server.posted
    assert next(given, None) is None  # not suspended where the adapter is merged


def test_a_restart_during_the_restoration_starts_another_one(server: Restartable, client: LastingDiskClient) -> None:
    server.faults = {"completions": [None], "update_weights": [None]}
    client.generate([[1]])
    assert server.posted.count("init_weight_transfer_engine") == 2
    assert server.posted[-5:] == [*UPDATE, "completions"]


def test_a_connection_that_a_well_server_closes_costs_no_restoration(
    server: Restartable, client: LastingDiskClient
) -> None:
    client.weights = None  # as with sharded models
    server.faults["completions"] = [CLOSED, 503]
    assert client.generate([[1]])["completion_ids"] == [[2]]
    assert server.posted == ["completions"] * 3


@pytest.mark.parametrize("place", UPDATE[:3])
def test_an_update_that_a_dying_engine_refuses_is_sent_again(
    server: Restartable, client: LastingDiskClient, place: str
) -> None:
    server.faults[place] = [DYING]
    client.update_named_params(METADATA, weights())
    assert server.posted[-4:] == UPDATE
    assert "init_weight_transfer_engine" in server.posted


def test_an_update_that_a_well_server_refuses_ends_the_run(server: Restartable, client: LastingDiskClient) -> None:
    server.faults["update_weights"] = [500]
    with pytest.raises(SyncFailed, match=r"refuses update_weights \(HTTP 500\): out of order"):
        client.update_named_params(METADATA, weights())
    assert server.posted == UPDATE[:2]


def test_a_server_without_a_start_time_is_a_warning(
    server: Restartable, client: LastingDiskClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.started = ""
    client.init_communicator()
    assert "does not tell when it was started" in caplog.text


def test_a_refused_request_ends_the_run(server: Restartable, client: LastingDiskClient) -> None:
    server.faults["completions"] = [400]
    with pytest.raises(SyncFailed, match=r"refuses /v1/completions \(HTTP 400\): out of order"):
        client.generate([[1]])
    assert server.posted == ["completions"]


def test_a_request_that_fails_every_time_ends_the_run(server: Restartable, client: LastingDiskClient) -> None:
    server.faults["completions"] = [500] * 10
    with pytest.raises(ServerLost, match=r"fails at /v1/completions \(HTTP 500\)"):
        client.generate([[1]])
    assert server.posted.count("completions") == restarts.ATTEMPTS + 1


def test_without_the_weights_a_lost_server_ends_the_run(server: Restartable, client: LastingDiskClient) -> None:
    client.weights = None
    server.started = "2.0"
    with pytest.raises(ServerLost, match=r"has been restarted.*--resume_from_checkpoint"):
        client.generate([[1]])
    assert not server.posted


def test_a_server_that_stays_away_ends_the_run_after_the_time_limit(
    server: Restartable, client: LastingDiskClient
) -> None:
    client.seconds = 0.1
    client.base_url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerLost, match=r"does not answer /metrics.*--resume_from_checkpoint"):
        client.generate([[1]])


@pytest.mark.parametrize(("kind", "given"), [("MULTI_CPU", True), ("NO", True), ("FSDP", False), ("DEEPSPEED", False)])
def test_weights_that_are_divided_among_processes_are_not_sent_by_one(kind: str, given: bool) -> None:
    client = LastingDiskClient.__new__(LastingDiskClient)
    generation = SimpleNamespace(vllm_client=client, _iter_named_params=weights)
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name=kind))
    give_weights_again(SimpleNamespace(vllm_generation=generation, accelerator=accelerator))
    assert (client.weights is weights) is given


def start(student: str, port: int) -> subprocess.Popen[bytes]:
    words = ["--port", str(port), "--served-model-name", "m", "--weight-transfer-config", '{"backend": "gloo"}']
    process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "soak_server.py"), student, *words])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if get_json(f"http://127.0.0.1:{port}/health")[0] == 200:
                return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the server does not answer")


@pytest.mark.slow
def test_after_a_kill_completions_come_from_the_weights_of_the_trainer(tiny_model: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)  # what the trainer has learned
    port = free_port()
    process = start(tiny_model, port)
    client = LastingGlooClient.__new__(LastingGlooClient)
    client.base_url, client.seconds, client._updating_weights = f"http://127.0.0.1:{port}", 60.0, False
    client.group_port, client.communicator = free_port(), None
    client.model, client.session = "m", requests.Session()
    client.weights = lambda: iter(dict(model.named_parameters()).items())

    def gap() -> float:
        made = client.generate([[5, 6, 7]], n=2, max_tokens=4, temperature=1.0)
        gaps = []
        for ids, sampled in zip(made["completion_ids"], made["logprobs"], strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[5, 6, 7, *ids]])).logits[0]
            expected = logits.log_softmax(-1)[2:-1].gather(-1, torch.tensor(ids)[:, None])
            gaps.append(float((expected - torch.tensor(sampled)).abs().max()))
        return max(gaps)

    try:
        client.init_communicator()
        named = [(name, "float32", list(value.shape)) for name, value in model.named_parameters()]
        client.update_named_params(named, client.weights())
        assert gap() < 1e-4
        process.kill()
        process.wait()
        process = start(tiny_model, port)
        assert gap() < 1e-4
    finally:
        client.close_communicator()
        process.kill()
        process.wait()
