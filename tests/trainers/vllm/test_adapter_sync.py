"""A sync writes the adapter as PEFT would, under a new name each time, and the servers load it."""

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rlkd.errors import UsageError
from tests.helpers.rollout_server import RolloutServer, client_without_vllm
from trainers.common.models import keep_gradients
from trainers.vllm.adapter_clients import DiskAdapterClient
from trainers.vllm.adapter_sync import FOLDER, gathered_adapter, sync_adapters, write_adapter
from trainers.vllm.rollout_servers import RolloutServers

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutServer]:
    client_without_vllm(monkeypatch)
    running = RolloutServer()
    yield running
    running.go_down()


def with_lora(tiny_model: str, **loading: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, **loading)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def generation_for(model: Any, server: RolloutServer) -> Any:
    """What `sync_adapters` uses of TRL's `VLLMGeneration`."""
    client = RolloutServers(server.url, 1, 1.0, client=functools.partial(DiskAdapterClient))
    return SimpleNamespace(model=model, accelerator=Accelerator(cpu=True), vllm_client=client)


def test_each_sync_writes_and_loads_the_adapter_of_the_moment(
    tiny_model: str, tmp_path: Path, server: RolloutServer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_lora(tiny_model)
    generation = generation_for(model, server)
    (tmp_path / FOLDER / "rlkd-00000000-v9").mkdir(parents=True)  # left by a killed run
    sync_adapters(generation, str(tmp_path))
    before = []
    for _ in range(3):
        generation.sync_weights()
        ((name, path),) = server.adapters.items()
        before.append(name)
        assert Path(path).name == name
        with torch.no_grad():
            loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), path)
            assert torch.equal(loaded(IDS).logits, model(IDS).logits)
            for parameter in (value for key, value in model.named_parameters() if "lora_B" in key):
                parameter.add_(0.1)
    run = before[0].removesuffix("-v1")
    assert before == [f"{run}-v{version}" for version in (1, 2, 3)]
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {f"{run}-v2", f"{run}-v3"}
    said = capsys.readouterr().out
    assert said.count("Each weight sync sends an adapter of") == 1
    size = sum(value.numel() * 4 for key, value in model.named_parameters() if "lora_" not in key)
    assert f"all weights are {size / 1e6:.1f} MB" in said


def test_a_run_that_starts_again_takes_other_names(tiny_model: str, tmp_path: Path, server: RolloutServer) -> None:
    model = with_lora(tiny_model)
    names = []
    for _ in range(2):
        generation = generation_for(model, server)
        sync_adapters(generation, str(tmp_path))
        generation.sync_weights()
        names.append(generation.vllm_client._adapter.name)
    assert names[0] != names[1]


@pytest.mark.slow
def test_the_adapter_of_a_model_in_4_bit_is_written_in_full_precision(tiny_model: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    model = with_lora(tiny_model, **settings)
    keep_gradients(model)
    write_adapter(model, gathered_adapter(model, Accelerator(cpu=True)), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model, **settings)
    keep_gradients(base)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        assert torch.allclose(loaded(IDS).logits, model(IDS).logits, atol=1e-5)


def test_an_adapter_that_vllm_cannot_serve_is_refused_also_where_the_student_came_with_it(
    tiny_model: str, tmp_path: Path
) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, bias="all"))
    generation = SimpleNamespace(model=model, accelerator=Accelerator(cpu=True))
    with pytest.raises(UsageError, match="vllm_adapter_sync: bias all"):
        sync_adapters(generation, str(tmp_path))
