"""An adapter that vLLM would serve differently is refused by the key that makes it so, before a model loads."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import ArrowConfig, LoraConfig, PromptTuningConfig
from peft.tuners.lora.config import BdLoraConfig

from benchmarks.tiny import training_arguments
from rlkd.errors import UsageError
from tests.helpers.pretended_server import PretendedServer
from trainers import RLKDConfig, ValidityKDConfig
from trainers.vllm.adapter_checks import adapter_config, check_adapter, server_problems


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]: modules trained in full"),
        ({"use_dora": True}, "use_dora True: vLLM has no DoRA"),
        ({"use_qalora": True}, "use_qalora True: vLLM has no QALoRA"),
        ({"use_bdlora": BdLoraConfig(nblocks=1)}, "use_bdlora .*: vLLM has no BD-LoRA"),
        ({"arrow_config": ArrowConfig()}, "arrow_config .*: vLLM has no routing"),
        ({"lora_bias": True}, "lora_bias True: vLLM has no biases"),
        ({"bias": "all"}, "bias all: biases are not part"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern .*: vLLM scales all layers by one rank"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern .*: vLLM scales all layers alike"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa: it changes the weights below the adapter"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules lm_head, q_proj: vLLM does not adapt"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices .*: vLLM adapts linear layers only"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_server_would_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"vllm_adapter_sync: {message}.*vllm_adapter_sync: false"):
        check_adapter(LoraConfig(**{"r": 4, "target_modules": ["q_proj"]} | changes))


@pytest.mark.parametrize("config", [RLKDConfig, ValidityKDConfig])
def test_adapters_for_servers_need_rollouts_by_vllm(tmp_path: Path, config: Any) -> None:
    with pytest.raises(UsageError, match=r"without use_vllm: .* Set use_vllm: true and vllm_mode: server, or leave"):
        config(**training_arguments(tmp_path, vllm_adapter_sync=True))


def test_plain_adapters_pass_and_others_do_not() -> None:
    for changes in ({}, {"use_rslora": True}, {"target_modules": "all-linear"}, {"init_lora_weights": "gaussian"}):
        check_adapter(LoraConfig(r=4, **changes))
    with pytest.raises(UsageError, match="trains all weights and no adapter"):
        check_adapter(None)
    with pytest.raises(UsageError, match="of the kind PromptTuningConfig"):
        check_adapter(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_an_adapter_that_is_trained_further_counts_and_not_the_config_beside_it(tmp_path: Path) -> None:
    LoraConfig(r=3).save_pretrained(str(tmp_path))
    asked = LoraConfig(r=8)
    assert adapter_config(str(tmp_path), asked).r == 3
    assert adapter_config(str(tmp_path), None) is None  # merged, and all weights are trained
    assert adapter_config("embedded", asked) is asked
    loaded = SimpleNamespace(peft_config={"one": LoraConfig(r=5)}, active_adapters=["one"])
    assert adapter_config(loaded, None).r == 5
    assert adapter_config(SimpleNamespace(), asked) is asked


@pytest.fixture
def server() -> Iterator[PretendedServer]:
    pretended = PretendedServer("model")
    pretended.answers["/v1/load_lora_adapter"] = (405, None)
    yield pretended
    pretended.close()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "without --enable-lora"),
        ({"lora_config": {"max_lora_rank": 8}}, r"up to rank 8, and this one has 16 \(lora_r\)"),
        (
            {"lora_config": {"max_lora_rank": 16}, "parallel_config": {"data_parallel_size": 2}},
            "an adapter would reach only one of them",
        ),
    ],
    ids=json.dumps,
)
def test_a_server_that_takes_no_such_adapter_says_why(
    server: PretendedServer, config: dict[str, Any], problem: str
) -> None:
    (found,) = server_problems(server.url, config, 16)
    assert re.search(problem, found)


def test_a_server_without_the_variable_for_adapters_is_named_by_it(server: PretendedServer) -> None:
    config = {"lora_config": {"max_lora_rank": 16}}
    assert not list(server_problems(server.url, config, 16))
    del server.answers["/v1/load_lora_adapter"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in next(server_problems(server.url, config, 16))
