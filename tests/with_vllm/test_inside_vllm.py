"""What rlkd uses of vLLM's inside is there, and a vLLM where it is not is refused by version."""

import secrets
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils

from rlkd.errors import UsageError
from rlkd.weight_transfer import BACKENDS
from rlkd.weight_transfer.adapters import server_folder
from rlkd.weight_transfer.engines import check_vllm
from rlkd.weight_transfer.live import keep_weights_live
from rlkd.weight_transfer.nccl import NCCLAdapterEngine


def test_vllm_finds_the_plugin_by_itself() -> None:
    from vllm.plugins import load_plugins_by_group

    register = load_plugins_by_group("vllm.general_plugins")["rlkd_weight_transfer"]
    register()
    for name, (_, engine) in BACKENDS.items():
        assert WeightTransferEngineFactory._registry[name]().__name__ == engine


def test_the_installed_vllm_is_the_one_the_engines_know() -> None:
    assert check_vllm() is None


def test_another_vllm_is_refused_by_version_when_an_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightTransferEngine, "__init__", lambda self, config, parallel_config, model: None)
    with pytest.raises(
        RuntimeError, match=rf"does not support vLLM {vllm.__version__} .*takes \['self', 'config', 'para"
    ):
        check_vllm()


def test_weights_are_kept_live_only_in_a_vllm_that_packs_them_as_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", utils.dispatch_cpu_unquantized_gemm)  # restored later
    keep_weights_live()
    live = utils.dispatch_cpu_unquantized_gemm
    keep_weights_live()
    assert utils.dispatch_cpu_unquantized_gemm is live
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", lambda layer: None)
    with pytest.raises(UsageError, match=r"takes \['layer'\], expected \['layer', 'remove_weight'\]"):
        keep_weights_live()


def test_an_adapter_over_nccl_is_stored_and_the_model_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs: the broadcast is replaced, everything around it is real."""
    from vllm.distributed.weight_transfer import nccl_engine

    adapter = f"rlkd-{secrets.token_hex(4)}-v1"
    content = torch.arange(5, dtype=torch.uint8)
    calls: list[str] = []

    def broadcast(iterator: Any, post_unpack_func: Any, **_: Any) -> None:
        post_unpack_func([(name, content) for name, _ in iterator])

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_consumer", broadcast)
    monkeypatch.setattr(
        nccl_engine.NCCLWeightTransferEngine, "start_weight_update", lambda self: calls.append("start")
    )
    monkeypatch.setattr(
        nccl_engine.NCCLWeightTransferEngine, "finish_weight_update", lambda self: calls.append("finish")
    )
    engine = NCCLAdapterEngine.__new__(NCCLAdapterEngine)
    engine.model_update_group, engine.packed, engine.device = "joined", True, torch.device("cpu")
    engine.packed_buffer_size_bytes, engine.packed_num_buffers = 1, 1
    engine.model = model = SimpleNamespace(load_weights=lambda pairs: calls.extend(name for name, _ in pairs))

    def update(name: str) -> None:
        engine.start_weight_update()
        engine.receive_weights(nccl_engine.NCCLWeightTransferUpdateInfo([name], ["uint8"], [[5]]))
        engine.finish_weight_update()

    folder = server_folder(adapter, "00000000")
    update(f"{folder.name}/adapter_config.json")
    assert calls == []
    assert (folder / "adapter_config.json").read_bytes() == bytes(range(5))
    update("model.norm.weight")
    assert calls == ["start", "model.norm.weight", "finish"]
    assert engine.model is model
    engine.shutdown()
    assert not folder.exists()
