from collections.abc import Iterator

import pytest

from rlkd.doctor.servers import check_hub, check_server
from tests.helpers.pretended_server import PretendedServer


@pytest.fixture
def server() -> Iterator[PretendedServer]:
    pretended = PretendedServer("some/model")
    yield pretended
    pretended.close()


def test_a_vllm_server_is_shown_with_its_model_and_what_it_can_do(server):
    models, uses = check_server(f"{server.url}/v1#some/model")
    assert models.text == f"{server.url} serves some/model, up to 1024 tokens"
    assert "vLLM 0.30.0: engine, rollouts with vllm_weight_transfer: gloo" in uses.text
    assert {models.level, uses.level} == {"ok"}


def test_adapters_and_the_mode_of_its_log_probabilities_are_shown(server):
    server.config()["lora_config"] = {"max_loras": 4}
    server.answers["/v1/load_lora_adapter"] = (405, {})
    server.config()["model_config"]["logprobs_mode"] = "raw_logprobs"
    uses = list(check_server(server.url))[-1]
    assert "rollouts by adapters (vllm_adapter_sync)" in uses.text
    assert "logprobs_mode raw_logprobs" in uses.text


@pytest.mark.parametrize(
    ("path", "answer", "level", "words"),
    [
        ("/v1/models", (404, None), "problem", "names no model"),
        ("/v1/models", (401, None), "warning", "wants an API key"),
        ("/version", (404, None), "ok", "is not vLLM"),
        ("/version", (200, {"version": "0.10.0"}), "warning", "TRL supports 0.22.0 to 0.31.0"),
        ("/server_info", (404, None), "ok", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_what_a_server_lacks_is_said(server, path, answer, level, words):
    server.answers[path] = answer
    found = list(check_server(server.url))
    assert any(f.level == level and words in f"{f.text} {f.way_out}" for f in found), found


def test_another_model_than_the_named_one_is_a_problem(server):
    first = next(iter(check_server(f"{server.url}/v1#other/model")))
    assert first.level == "problem"
    assert "'other/model'" in first.way_out


def test_no_answer_and_no_address_are_problems(server):
    server.close()
    for url, words in ((server.url, "Connection refused"), ("localhost:8000", "no address")):
        [found] = check_server(url)
        assert found.level == "problem"
        assert words in found.text


def test_the_hub_may_be_offline_reachable_or_not(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline by HF_HUB_OFFLINE" in check_hub().text
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert check_hub().text == f"{server.url} can be reached"
    server.close()
    found = check_hub()
    assert found.level == "warning"
    assert "HF_ENDPOINT" in found.way_out
