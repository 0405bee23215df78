"""A rollout server that does not fit the run is refused before any model loads, with the command that would fit."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from rlkd.errors import UsageError
from tests.helpers.pretended_server import PretendedServer
from trainers import RLKDConfig
from trainers.vllm import checks
from trainers.vllm.checks import (
    check_rollouts,
    longest_prompt,
    prepare_rollouts,
    wait_for_server,
)
from trainers.vllm.command import serve_command


@pytest.fixture
def server(tiny_model: str) -> Iterator[PretendedServer]:
    pretended = PretendedServer(tiny_model)
    yield pretended
    pretended.close()


@pytest.fixture(autouse=True)
def vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "installed_vllm", lambda: "0.30.0")


def config(tmp_path: Any, url: str = "http://127.0.0.1:9", **options: Any) -> RLKDConfig:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    defaults = {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": url,
        "vllm_weight_transfer": "gloo",
        "vllm_group_port": port,
        "vllm_server_timeout": 0.2,
        "max_completion_length": 100,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    return RLKDConfig(str(tmp_path), **(defaults | options))


def test_a_server_that_fits_is_accepted(server: PretendedServer, tiny_model: str, tmp_path: Any) -> None:
    assert check_rollouts(config(tmp_path, server.url), tiny_model, 50) is None


def break_models(server: PretendedServer) -> None:
    server.answers["/v1/models"] = (200, {"data": [{"id": "Qwen/Qwen2.5-7B", "root": "Qwen/Qwen2.5-7B"}]})


def break_length(server: PretendedServer) -> None:
    server.answers["/v1/models"][1]["data"][0]["max_model_len"] = 149


def break_development_mode(server: PretendedServer) -> None:
    del server.answers["/server_info"]


def break_no_transfer(server: PretendedServer) -> None:
    server.config()["weight_transfer_config"] = None


def break_other_transfer(server: PretendedServer) -> None:
    server.config()["weight_transfer_config"] = {"backend": "nccl"}


def break_logprobs(server: PretendedServer) -> None:
    server.config()["model_config"]["logprobs_mode"] = "raw_logprobs"


def break_everything(server: PretendedServer) -> None:
    server.answers["/v1/models"] = (404, None)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (break_models, r"serves Qwen/Qwen2.5-7B, and the student is "),
        (break_length, r"takes 149 tokens, and the longest prompt and max_completion_length \(100\) are 150 together"),
        (break_development_mode, r"without VLLM_SERVER_DEV_MODE=1"),
        (break_no_transfer, r"without --weight-transfer-config, and this run sends them by gloo"),
        (break_other_transfer, r"for weights by nccl, and this run sends them by gloo"),
        (break_logprobs, r"gives raw_logprobs; the importance sampling correction needs processed_logprobs"),
        (break_everything, r"is not a vLLM server: /v1/models answers HTTP 404"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_server_that_does_not_fit_is_refused_with_the_command_that_would(
    server: PretendedServer, tiny_model: str, tmp_path: Any, breaks: Any, message: str
) -> None:
    breaks(server)
    args = config(tmp_path, server.url)
    with pytest.raises(UsageError, match=message) as refused:
        check_rollouts(args, tiny_model, 50)
    assert serve_command(args, tiny_model, 256) in str(refused.value)


def test_raw_logprobs_are_accepted_where_nothing_is_corrected_with_them(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    break_logprobs(server)
    args = config(tmp_path, server.url, vllm_importance_sampling_correction=False)
    assert check_rollouts(args, tiny_model, 50) is None


def test_a_server_that_is_not_there_is_named_after_the_time_it_was_given(tiny_model: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"no rollout server at http://127.0.0.1:9 after 0\.2 seconds"):
        check_rollouts(config(tmp_path), tiny_model, 50)


def test_an_address_without_its_scheme_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"'127.0.0.1:8000': expected http://HOST:PORT"):
        wait_for_server("127.0.0.1:8000", 600, "advice")


def test_what_does_not_speak_http_is_no_server() -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        with pytest.raises(UsageError, match=r"no rollout server.*does not speak HTTP"):
            wait_for_server(f"http://127.0.0.1:{listener.getsockname()[1]}", 0, "advice")


@pytest.mark.slow
def test_a_server_that_is_still_starting_is_waited_for(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    server.answers["/health"] = (503, None)
    threading.Timer(0.3, lambda: server.answers.update({"/health": (200, None)})).start()
    assert check_rollouts(config(tmp_path, server.url, vllm_server_timeout=60), tiny_model, 50) is None


def test_another_folder_of_the_same_name_on_another_machine_is_the_same_model(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    elsewhere = f"/no/such/place/{tiny_model.rsplit('/', 1)[1]}"
    server.answers["/v1/models"][1]["data"][0].update(id="student", root=elsewhere)
    assert check_rollouts(config(tmp_path, server.url), tiny_model, 50) is None


def test_a_server_in_bfloat16_is_warned_about_on_a_cpu(
    server: PretendedServer, tiny_model: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.config()["model_config"]["dtype"] = "torch.bfloat16"
    check_rollouts(config(tmp_path, server.url), tiny_model, 50)
    assert "computes in bfloat16" in caplog.text


def test_a_version_that_trl_does_not_know_is_warned_about(
    server: PretendedServer, tiny_model: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/version"] = (200, {"version": "0.32.0"})
    check_rollouts(config(tmp_path, server.url), tiny_model, 50)
    assert "is vLLM 0.32.0; TRL supports 0.22.0 to 0.31.0" in caplog.text


def test_a_group_port_that_is_taken_is_refused(server: PretendedServer, tiny_model: str, tmp_path: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"vllm_group_port {port}, .* is taken"):
            check_rollouts(config(tmp_path, server.url, vllm_group_port=port), tiny_model, 50)


def test_nccl_is_refused_on_a_cpu(tiny_model: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="vllm_weight_transfer: nccl sends the weights between GPUs"):
        check_rollouts(config(tmp_path, vllm_weight_transfer="nccl"), tiny_model, 50)


LORA = LoraConfig(r=16, target_modules="all-linear")


def takes_adapters(server: PretendedServer) -> None:
    server.config()["lora_config"] = {"max_lora_rank": 16, "max_loras": 1}
    server.answers["/v1/load_lora_adapter"] = (405, None)


def test_a_server_for_adapters_needs_no_weight_transfer_where_both_share_a_folder(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    takes_adapters(server)
    server.config()["weight_transfer_config"] = None
    options = {"vllm_adapter_sync": True}
    check_rollouts(config(tmp_path, server.url, vllm_weight_transfer="disk", **options), tiny_model, 50, adapter=LORA)
    args = config(tmp_path, server.url, vllm_weight_transfer="gloo", **options)
    with pytest.raises(UsageError, match="without --weight-transfer-config, and this run sends them by gloo"):
        check_rollouts(args, tiny_model, 50, adapter=LORA)


def test_a_server_that_takes_no_adapter_is_refused_with_the_command_for_one_that_does(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    args = config(tmp_path, server.url, vllm_adapter_sync=True)
    with pytest.raises(UsageError, match=r"without --enable-lora, .*\(vllm_adapter_sync\)") as refused:
        check_rollouts(args, tiny_model, 50, adapter=LORA)
    assert serve_command(args, tiny_model, 256, rank=16) in str(refused.value)


def test_each_of_several_servers_is_checked_and_has_a_port_of_its_own(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    takes_adapters(server)
    other = PretendedServer(tiny_model)
    args = config(tmp_path, f"{server.url},{other.url}/", vllm_adapter_sync=True)
    with pytest.raises(UsageError, match=rf"{other.url} was started without --enable-lora") as refused:
        check_rollouts(args, tiny_model, 50, adapter=LORA)
    assert f"--port {other.url.rpartition(':')[2]}" in str(refused.value)
    takes_adapters(other)
    check_rollouts(args, tiny_model, 50, adapter=LORA)
    with socket.socket() as taken:
        taken.bind(("", args.vllm_group_port + 1))
        taken.listen()
        with pytest.raises(UsageError, match=rf"vllm_group_port {args.vllm_group_port + 1}, .* is taken"):
            check_rollouts(args, tiny_model, 50, adapter=LORA)
    other.close()


def test_several_servers_are_for_adapters(tiny_model: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"names 2 servers, and all weights go to one.*vllm_adapter_sync: true"):
        check_rollouts(config(tmp_path, "http://a:1,http://b:2"), tiny_model, 50)


def test_adapters_alone_are_not_sent_within_one_process(tiny_model: str, tmp_path: Any) -> None:
    args = config(tmp_path, vllm_mode="colocate", vllm_weight_transfer="nccl", vllm_adapter_sync=True)
    with pytest.raises(UsageError, match="vllm_adapter_sync is for vllm_mode: server"):
        check_rollouts(args, tiny_model, 50, adapter=LORA)


def test_a_transfer_makes_no_sense_in_one_process(tiny_model: str, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="vllm_weight_transfer: gloo is for vllm_mode: server"):
        check_rollouts(config(tmp_path, vllm_mode="colocate"), tiny_model, 50)


def test_a_colocated_engine_must_hold_prompt_and_completion(tiny_model: str, tmp_path: Any) -> None:
    args = config(tmp_path, vllm_mode="colocate", vllm_weight_transfer="nccl", vllm_max_model_length=149)
    with pytest.raises(UsageError, match=r"vllm_max_model_length 149 is less .* set it to 256"):
        check_rollouts(args, tiny_model, 50)


def test_a_reward_model_on_the_gpu_of_the_rollout_engine_is_warned_about(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    args = config(tmp_path, vllm_mode="colocate", vllm_weight_transfer="nccl", vllm_gpu_memory_utilization=0.35)
    checks._check_memory(args, ["http://127.0.0.1:8001/v1#judge"], on_cpu=False)
    assert not caplog.text
    checks._check_memory(args, ["transformers:embedded-gsrm"], on_cpu=False)
    assert "vLLM takes 35 % of the GPU's memory" in caplog.text
    assert "load transformers:embedded-gsrm in this process as well" in caplog.text


def test_an_unknown_transfer_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="'ftp': expected nccl or gloo or disk"):
        config(tmp_path, vllm_weight_transfer="ftp")


def test_the_longest_prompt_is_counted_in_tokens(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = Dataset.from_dict({"prompt": ["abc", "abcdefgh", ""]})
    assert longest_prompt(texts, tokenizer) == 8
    messages = Dataset.from_dict({"prompt": [[{"role": "user", "content": "x" * n}] for n in (3, 30)]})
    assert longest_prompt(messages, tokenizer) == 30 + 3  # <|user|>, <|end|>, <|assistant|>


def test_the_prompts_of_the_run_are_held_against_the_server(
    server: PretendedServer, tiny_model: str, tmp_path: Any
) -> None:
    args = config(tmp_path, server.url)
    with pytest.raises(UsageError, match="are 1100 together"):
        prepare_rollouts(args, tiny_model, Dataset.from_dict({"prompt": ["x" * 1000]}))


def test_runs_without_vllm_are_not_touched(tiny_model: str, tmp_path: Any) -> None:
    from trl.generation import vllm_generation

    before = dict(vars(vllm_generation))
    with prepare_rollouts(config(tmp_path, use_vllm=False), tiny_model, None):
        assert dict(vars(vllm_generation)) == before
