"""Whether vLLM can serve the adapter of a run, and whether a rollout server takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.http import get_json
from rlkd.models import is_adapter


def adapter_config(model: Any, peft_config: Any = None) -> Any:
    """The configuration of the adapter that will be trained: that of `model` if it has one, else `peft_config`.

    `model`: a model, or its name; the folder of an adapter is trained further where `peft_config` asks for one.
    """
    if isinstance(model, str):
        if peft_config is not None and is_adapter(model):
            from peft import PeftConfig

            return PeftConfig.from_pretrained(str(Path(model).expanduser()))
        return peft_config
    configs = getattr(model, "peft_config", None)
    return configs[model.active_adapters[0]] if configs else peft_config


def check_adapter_sync(args: Any) -> None:
    """Raise `UsageError` for a config with `vllm_adapter_sync` and without rollouts by vLLM."""
    if args.vllm_adapter_sync and not args.use_vllm:
        raise UsageError(
            "vllm_adapter_sync: true without use_vllm: there is no server to send adapters to. Set use_vllm: true and "
            "vllm_mode: server, or leave vllm_adapter_sync out"
        )


def check_adapter(config: Any) -> None:
    """Raise `UsageError` where vLLM would serve something else than this adapter on its base, or there is none."""
    for problem in _problems(config):
        raise UsageError(
            f"vllm_adapter_sync: {problem}, so the adapter alone cannot be sent. Change that, or set "
            f"vllm_adapter_sync: false, which sends all weights"
        )


def _problems(config: Any) -> Iterator[str]:
    from peft import LoraConfig

    if config is None:
        yield "the run trains all weights and no adapter (use_peft: true trains one)"
        return
    if not isinstance(config, LoraConfig):
        yield f"the adapter is of the kind {type(config).__name__}, and vLLM serves LoRA"
        return
    targets = config.target_modules or ()
    layers = [targets] if isinstance(targets, str) else sorted(targets)
    for key, value, holds, reason in (
        ("modules_to_save", config.modules_to_save, config.modules_to_save, "modules trained in full are not part"),
        ("use_dora", True, config.use_dora, "vLLM has no DoRA"),
        ("use_qalora", True, config.use_qalora, "vLLM has no QALoRA"),
        ("use_bdlora", "...", getattr(config, "use_bdlora", None), "vLLM has no BD-LoRA"),  # peft 0.18 has none either
        ("arrow_config", "...", config.arrow_config, "vLLM has no routing between adapters"),
        ("lora_bias", True, config.lora_bias, "vLLM has no biases in adapters"),
        ("bias", config.bias, config.bias != "none", "biases are not part of an adapter"),
        ("rank_pattern", config.rank_pattern, config.rank_pattern, "vLLM scales all layers by one rank"),
        ("alpha_pattern", config.alpha_pattern, config.alpha_pattern, "vLLM scales all layers alike"),
        ("target_parameters", config.target_parameters, config.target_parameters, "vLLM adapts whole layers"),
        ("trainable_token_indices", "...", config.trainable_token_indices, "vLLM adapts linear layers only"),
        ("layer_replication", "...", config.layer_replication, "the server has the layers of the base"),
        (
            "init_lora_weights",
            config.init_lora_weights,
            config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva"),
            "it changes the weights below the adapter, and the server has those of the base",
        ),
        (
            "target_modules",
            ", ".join(layers),
            any("embed_tokens" in layer or "lm_head" in layer for layer in layers),
            "vLLM does not adapt embeddings and head in all that it computes",
        ),
    ):
        if holds:
            yield f"{key} {value}: {reason}"


def server_problems(url: str, config: Mapping[str, Any], rank: int) -> Iterator[str]:
    """What keeps a server from taking adapters of this rank at run time. `config`: its vLLM configuration."""
    lora = config.get("lora_config")
    if not lora:
        yield "was started without --enable-lora, and takes no adapters"
        return
    if lora["max_lora_rank"] < rank:
        yield f"takes adapters up to rank {lora['max_lora_rank']}, and this one has {rank} (lora_r)"
    if (config.get("parallel_config") or {}).get("data_parallel_size", 1) > 1:
        yield "runs several replicas (--data-parallel-size), and an adapter would reach only one of them"
    # If the path exists, GET is the wrong method: 405.
    if get_json(f"{url}/v1/load_lora_adapter")[0] == 404:
        yield "was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and takes no adapters"
