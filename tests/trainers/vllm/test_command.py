"""The command that a refusal ends with starts a server which the checks accept."""

import json
import shlex
from typing import Any

import pytest

from tests.trainers.vllm.test_checks import config
from trainers.vllm.command import addresses, serve_command

ON_CPU = ["VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind"]


def options(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=False))


def test_the_command_holds_all_that_the_checks_require(tiny_model: str, tmp_path: Any) -> None:
    args = config(tmp_path, "http://127.0.0.1:8123", vllm_weight_transfer="disk")
    words = shlex.split(serve_command(args, tiny_model, 512))
    assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", *ON_CPU]
    assert words[3:6] == ["vllm", "serve", tiny_model]
    given = options(words[6:])
    assert given["--port"] == "8123"
    assert json.loads(given["--weight-transfer-config"]) == {"backend": "disk"}
    assert given["--logprobs-mode"] == "processed_logprobs"
    assert given["--max-model-len"] == "512"


@pytest.mark.parametrize(
    ("transfer", "backend"), [("disk", None), ("gloo", {"backend": "gloo"}), ("nccl", {"backend": "nccl_adapter"})]
)
def test_a_server_for_adapters_takes_their_rank_at_run_time(
    tiny_model: str, tmp_path: Any, transfer: str, backend: Any
) -> None:
    args = config(tmp_path, "http://a:1,http://b:8123", vllm_weight_transfer=transfer, vllm_adapter_sync=True)
    words = shlex.split(serve_command(args, tiny_model, 512, rank=12, address="http://b:8123"))
    assert words[:4] == ["VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", *ON_CPU]
    at = words.index("--enable-lora")
    assert words[at : at + 3] == ["--enable-lora", "--max-lora-rank", "16"]
    assert words[words.index("--port") + 1] == "8123"
    found = words[words.index("--weight-transfer-config") + 1] if backend else None
    assert (json.loads(found) if found else None) == backend
    assert ("--weight-transfer-config" in words) == (backend is not None)


def test_addresses_are_listed_with_commas() -> None:
    assert addresses("http://a:1/, http://b:2") == ["http://a:1", "http://b:2"]
