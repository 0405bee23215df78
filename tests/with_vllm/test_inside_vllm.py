"""What rlkd uses of vLLM's inside is there, and a vLLM where it is not is refused by version."""

import pytest
import vllm
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils

from rlkd.errors import UsageError
from rlkd.weight_transfer import BACKENDS
from rlkd.weight_transfer.engines import check_vllm
from rlkd.weight_transfer.live import keep_weights_live


def test_vllm_finds_the_plugin_by_itself() -> None:
    from vllm.plugins import load_plugins_by_group

    register = load_plugins_by_group("vllm.general_plugins")["rlkd_weight_transfer"]
    register()
    for name, engine in BACKENDS.items():
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
