"""Checks of a run's models before any weights load: whether they exist, and whether they can be loaded as asked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError, first_line
from rlkd.models import INCLUDED, base_of_adapter, is_adapter, resolve_model
from rlkd.weights import AGAIN, weights_fault

# Arguments of `BitsAndBytesConfig` that transformers itself does not take any more.
_QUANTISING = ("load_in_4bit", "load_in_8bit", "llm_int8_", "bnb_4bit_")


def check_model(name: Any, key: str, *, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Raise `UsageError` where a model named in the config is not there; a loaded model passes.

    `name`: a folder, a hub id, an embedded model, or the folder of an adapter, whose base must be there. `key`: the
    config key that names it.
    """
    if not isinstance(name, str):
        return
    from transformers import AutoConfig

    if is_adapter(name):
        base = base_of_adapter(Path(name).expanduser())
        check_model(
            base,
            f"{key} {name!r} is an adapter, and its base",
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        if fault := weights_fault(name):
            raise UsageError(f"{key} {name!r} is a damaged adapter: {fault}. {AGAIN}")
        return
    resolved = resolve_model(name)
    folder = Path(resolved).expanduser()
    looks_like_path = resolved.startswith((".", "~", os.sep)) or resolved.count("/") > 1
    if not folder.is_dir() and looks_like_path:
        reason = f"there is no folder {folder.absolute()}"
    else:
        try:
            AutoConfig.from_pretrained(resolved, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:  # OSError, ValueError, and whatever the hub's client raises
            reason = first_line(error)
        else:
            if (fault := weights_fault(resolved, revision)) is None:
                return
            raise UsageError(f"{key} {name!r}: {fault}. {AGAIN}")
    raise UsageError(
        f"{key} {name!r} cannot be read: {reason}. Name a folder written by save_pretrained, a reachable hub "
        f"id, or an embedded model ({', '.join(INCLUDED)})"
    )


def check_student(args: Any, model: Any, peft_config: Any = None) -> None:
    """Check the student of a trainer, and put its quantisation into the form that transformers takes.

    Raises `UsageError` where the student is not there, where it is quantised and nothing of it can be trained, and
    where vLLM would get quantised weights, or cannot get an adapter that does not merge into weights.
    """
    settings = dict(args.model_init_kwargs or {})
    check_model(
        model,
        "model_name_or_path",
        revision=settings.get("revision"),
        trust_remote_code=bool(settings.get("trust_remote_code") or getattr(args, "trust_remote_code", False)),
    )
    if args.model_init_kwargs:
        args.model_init_kwargs = loading_options(settings, "model_init_kwargs")
    quantised = (args.model_init_kwargs or {}).get("quantization_config") or getattr(model, "is_quantized", False)
    if quantised and peft_config is None and not getattr(model, "peft_config", None):
        raise UsageError("a student in 4 or 8 bit cannot be trained without an adapter. Set use_peft: true")
    if _in_8_bit(quantised) or _in_8_bit(_stored_quantisation(model, args)):
        from trainers.common.sharding import refuse_sharded

        way_out = "Set load_in_4bit and bnb_4bit_quant_storage: bfloat16, or load it in bfloat16"
        refuse_sharded(args, "a student in 8 bit", way_out)
    uses_vllm = getattr(args, "use_vllm", False)
    if uses_vllm and getattr(peft_config, "is_prompt_learning", False):
        raise UsageError(
            f"{type(peft_config).__name__} with use_vllm: virtual tokens do not merge into the weights for vLLM. "
            f"Use LoRA, or set use_vllm: false"
        )
    if quantised and uses_vllm and not getattr(args, "vllm_adapter_sync", False):
        raise UsageError(
            "a student in 4 or 8 bit with use_vllm: TRL would send quantised weights, which vLLM cannot read as the "
            "model's. With vllm_mode: server, set vllm_adapter_sync: true; else load_in_4bit: false (LoRA on a "
            "bfloat16 model), or use_vllm: false"
        )


def loading_options(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` in which keys such as `load_in_4bit` have become a `quantization_config`.

    Raises `UsageError` without the package bitsandbytes, and for both forms at once. `key`: that of the settings.
    """
    short = {name: value for name, value in settings.items() if name.startswith(_QUANTISING)}
    options = {name: value for name, value in settings.items() if name not in short}
    if any(short.get(name) for name in ("load_in_4bit", "load_in_8bit")):
        if options.get("quantization_config"):
            raise UsageError(f"{key} has quantization_config and {', '.join(short)}: leave one of them out")
        check_bitsandbytes(key)
        from transformers import BitsAndBytesConfig

        if options.get("dtype") not in (None, "auto"):
            short.setdefault("bnb_4bit_compute_dtype", options["dtype"])  # as TRL does
        options["quantization_config"] = BitsAndBytesConfig(**short).to_dict()
    elif _is_bitsandbytes(options.get("quantization_config")):
        check_bitsandbytes(key)
    return options


def check_bitsandbytes(key: str) -> None:
    """Raise `UsageError` where 4 or 8 bit is asked for by `key`, and the package bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"{key}: 4 and 8 bit need the package bitsandbytes. Run  pip install bitsandbytes")


def keep_gradients(model: Any) -> None:
    """Keep the linear layers of a student in 4 bit in the format that has a gradient.

    On a CPU with AVX512-BF16 bitsandbytes packs them anew at the first evaluation, for good, and the packed product
    has no backward pass: the adapters below would be trained by wrong gradients, in silence.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _in_8_bit(config: Any) -> bool:
    given = config.get("load_in_8bit") if isinstance(config, Mapping) else getattr(config, "load_in_8bit", False)
    return bool(given)


def _stored_quantisation(model: Any, args: Any) -> Any:
    """The `quantization_config` of a model, loaded or in its folder or on the hub; None without one."""
    config = getattr(model, "config", None)
    if isinstance(model, str):
        from transformers import AutoConfig

        base = base_of_adapter(Path(model).expanduser()) if is_adapter(model) else model
        settings = args.model_init_kwargs or {}
        trusted = bool(settings.get("trust_remote_code") or getattr(args, "trust_remote_code", False))
        config = AutoConfig.from_pretrained(
            resolve_model(base), revision=settings.get("revision"), trust_remote_code=trusted
        )
    return getattr(config, "quantization_config", None)


def _is_bitsandbytes(config: Any) -> bool:
    given = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method") or ""))
    return "bitsandbytes" in method or any(name.startswith(_QUANTISING) for name in given)
