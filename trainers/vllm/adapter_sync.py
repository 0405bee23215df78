"""A weight sync that sends nothing but the adapter.

TRL's own sync merges the adapter into the weights and sends all of them. Here each sync writes the adapter under a new
name (`rlkd-1a2b3c4d-v3`) and has the servers load it; their weights stay those of the base.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlkd.weight_transfer.adapters import FILES, KEPT
from trainers.vllm.adapter_checks import adapter_config, check_adapter

if TYPE_CHECKING:
    from trainers.vllm.rollout_servers import RolloutServers

FOLDER = "adapters-for-vllm"


def sync_adapters(generation: Any, output_dir: str | None) -> None:
    """Have TRL's `VLLMGeneration` send the adapter only, through `output_dir`."""
    check_adapter(adapter_config(generation.model))
    generation.sync_weights = AdapterSync(generation, Path(output_dir or ".") / FOLDER)


class AdapterSync:
    """TRL's `sync_weights` for an adapter. Must be called on every process."""

    def __init__(self, generation: Any, folder: Path):
        self._generation = generation
        self._folder = folder
        # Names of another run, or of this one before it resumed, must not come again: the prefix cache outlives it.
        self._run = f"rlkd-{secrets.token_hex(4)}"
        self._version = 0

    def __call__(self) -> None:
        """Write the adapter, and load it into the rollout servers; raises `SyncFailed`."""
        model, accelerator = self._generation.model, self._generation.accelerator
        started = time.monotonic()
        self._version += 1
        adapter = self._folder / f"{self._run}-v{self._version}"
        weights = gathered_adapter(model, accelerator)
        if not accelerator.is_main_process:
            return
        if self._version == 1:
            shutil.rmtree(self._folder, ignore_errors=True)  # left by a killed run
        write_adapter(model, weights, adapter)
        client: RolloutServers = self._generation.vllm_client
        client.load(adapter)
        shutil.rmtree(self._folder / f"{self._run}-v{self._version - KEPT}", ignore_errors=True)
        if self._version == 1:
            size = sum((adapter / name).stat().st_size for name in FILES)
            print(
                f"Each weight sync sends an adapter of {size / 1e6:.1f} MB to {len(client.live)} rollout "
                f"server(s), the first in {time.monotonic() - started:.1f} s; all weights are "
                f"{_bytes_of_base(model) / 1e6:.1f} MB.",
                flush=True,
            )


def gathered_adapter(model: Any, accelerator: Any) -> dict[str, torch.Tensor]:
    """The weights of the active adapter in host memory, whole on every process; must be called on all of them."""
    name = model.active_adapters[0]
    parameters = {key: value for key, value in model.named_parameters() if "lora_" in key and f".{name}." in key}
    weights = {}
    with _zero3(list(parameters.values()), accelerator):
        for key, value in parameters.items():
            whole = value.to(accelerator.device).full_tensor() if hasattr(value, "full_tensor") else value
            weights[key.replace("_checkpoint_wrapped_module.", "")] = whole.detach().to("cpu", copy=True)
    return weights


def write_adapter(model: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write an adapter as PEFT does, into a new folder."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    name = model.active_adapters[0]
    folder.mkdir(parents=True)
    # PEFT would look for the base on the hub otherwise, to see whether its embeddings have changed.
    named = get_peft_model_state_dict(model, dict(weights), adapter_name=name, save_embedding_layers=False)
    save_file({key: value.contiguous() for key, value in named.items()}, folder / "adapter_model.safetensors")
    model.peft_config[name].save_pretrained(str(folder))


def _zero3(parameters: list[Any], accelerator: Any) -> AbstractContextManager[Any]:
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _bytes_of_base(model: Any) -> int:
    """The size of the weights without the adapter, also where each process has a part of them."""
    return sum(
        getattr(value, "ds_numel", value.numel()) * value.element_size()
        for key, value in model.named_parameters()
        if "lora_" not in key
    )
