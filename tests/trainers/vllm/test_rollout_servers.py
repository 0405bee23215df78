"""Servers that fail are left out and taken back, and no completion is lost or requested of another adapter."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.rollout_server import RolloutServer, client_without_vllm
from trainers.vllm.adapter_clients import DiskAdapterClient
from trainers.vllm.errors import SyncFailed
from trainers.vllm.rollout_servers import RolloutServers

FIRST, SECOND = Path("/adapters/rlkd-0a1b2c3d-v1"), Path("/adapters/rlkd-0a1b2c3d-v2")
PROMPTS = [list(range(length)) for length in range(1, 6)]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RolloutServer]]:
    client_without_vllm(monkeypatch)
    both = [RolloutServer(), RolloutServer()]
    yield both
    for server in both:
        server.go_down()


def client_of(servers: list[RolloutServer], seconds: float = 0.1) -> RolloutServers:
    client = RolloutServers(",".join(server.url for server in servers), 1, seconds, client=DiskAdapterClient)
    client.init_communicator("cpu")
    return client


def check_all_are_there(output: dict[str, list[object]]) -> None:
    assert output["prompt_ids"] == PROMPTS
    assert output["completion_ids"] == [[len(prompt), number] for prompt in PROMPTS for number in range(2)]
    assert output["logprobs"] == [[[-1.0], [-1.0]]] * 10


def test_all_servers_share_the_prompts_and_have_each_adapter_under_its_own_name(servers: list[RolloutServer]) -> None:
    client = client_of(servers)
    for adapter in (FIRST, SECOND):
        client.load(adapter)
        for server in servers:
            assert server.adapters == {adapter.name: str(adapter)}
        check_all_are_there(client.generate(PROMPTS, n=2))
    first, second = (server.requests for server in servers)
    assert first == [(adapter.name, PROMPTS[::2]) for adapter in (FIRST, SECOND)]
    assert second == [(adapter.name, PROMPTS[1::2]) for adapter in (FIRST, SECOND)]
    client.close_communicator()
    assert not servers[0].adapters


def test_a_server_that_dies_under_a_request_is_left_out_and_the_other_takes_its_prompts(
    servers: list[RolloutServer], caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(servers)
    client.load(FIRST)
    servers[1].goes_down = True
    check_all_are_there(client.generate(PROMPTS, n=2))
    assert client.live == [servers[0].url]
    assert servers[0].requests == [(FIRST.name, PROMPTS[::2]), (FIRST.name, PROMPTS[1::2])]
    assert f"the rollout server {servers[1].url} is left out until it answers again" in caplog.text


def test_a_restarted_server_takes_part_again_from_the_next_sync_on(servers: list[RolloutServer]) -> None:
    client = client_of(servers)
    client.load(FIRST)
    servers[0].go_down()
    client.load(SECOND)
    assert client.live == [servers[1].url]
    servers[0].come_back()
    client.generate(PROMPTS, n=2)
    assert not servers[0].requests
    client.load(SECOND)
    assert client.live == [server.url for server in servers]
    assert servers[0].adapters == {SECOND.name: str(SECOND)}
    check_all_are_there(client.generate(PROMPTS, n=2))
    assert servers[0].requests == [(SECOND.name, PROMPTS[::2])]


def test_a_server_that_was_restarted_between_sync_and_request_answers_for_no_other_adapter(
    servers: list[RolloutServer],
) -> None:
    client = client_of(servers)
    client.load(FIRST)
    servers[1].go_down()
    servers[1].come_back()
    check_all_are_there(client.generate(PROMPTS, n=2))
    assert servers[1].requests == [(FIRST.name, PROMPTS[1::2])]  # answered with 404
    assert client.live == [servers[0].url]


def test_a_lone_server_that_comes_back_in_time_gets_the_adapter_and_the_run_goes_on(
    servers: list[RolloutServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(servers[:1], seconds=30)
    client.load(FIRST)
    servers[0].goes_down = True
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        servers[0].come_back()

    monkeypatch.setattr("trainers.vllm.rollout_servers.time.sleep", wait)
    check_all_are_there(client.generate(PROMPTS, n=2))
    assert waited == [1.0]
    assert servers[0].adapters == {FIRST.name: str(FIRST)}


def test_servers_that_stay_away_end_the_run_with_the_way_out(servers: list[RolloutServer]) -> None:
    client = client_of(servers)
    client.load(FIRST)
    for server in servers:
        server.go_down()
    message = rf"none of the rollout servers {servers[0].url}, {servers[1].url} has answered within 0\.1 .*--resume"
    with pytest.raises(SyncFailed, match=message):
        client.generate(PROMPTS)
    with pytest.raises(SyncFailed, match=message):
        client.load(SECOND)


def test_a_request_that_well_servers_refuse_is_not_sent_again(servers: list[RolloutServer]) -> None:
    client = client_of(servers)
    client.load(FIRST)
    for server in servers:
        server.refuses = 400
    with pytest.raises(Exception, match=r"Request failed: 400, .*the prompt is too long"):
        client.generate(PROMPTS)
    assert [len(server.requests) for server in servers] == [1, 1]
    assert client.live == [server.url for server in servers]


def test_an_adapter_that_no_server_takes_ends_the_run_at_once_in_the_servers_words(
    servers: list[RolloutServer],
) -> None:
    client = client_of(servers, seconds=600)
    for server in servers:
        server.takes_no_adapter = True
    with pytest.raises(SyncFailed, match=r"refuses v1/load_lora_adapter \(HTTP 500\): rank 16 is greater .* 8\."):
        client.load(FIRST)


def test_each_server_connects_to_a_port_of_its_own(servers: list[RolloutServer]) -> None:
    client = RolloutServers(
        ",".join(server.url for server in servers), 500, 1, client=functools.partial(DiskAdapterClient)
    )
    assert [one.group_port for one in client._clients.values()] == [500, 501]
