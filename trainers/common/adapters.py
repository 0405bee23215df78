"""Adapters: training an existing one further, the model below one, and the name of the base in what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkd.models import base_of_adapter, is_adapter, public_name, resolve_model
from trainers.common.student import reading_options


def open_student(model: Any, args: Any, peft_config: Any) -> tuple[Any, Any]:
    """A student as TRL's trainers take it, and the configuration of the adapter that TRL is to add.

    Where an adapter is to be trained, the folder of one is trained further: the result is one adapter on the same
    base, with the rank and the layers that it has. Otherwise it is merged, and all weights are trained.
    """
    if not isinstance(model, str):
        return model, peft_config
    if peft_config is None or not is_adapter(model):
        trusts = reading_options(args)["trust_remote_code"]
        return resolve_model(model, trust_remote_code=trusts), peft_config
    folder = Path(model).expanduser()
    return with_adapter(base_of_adapter(folder), folder, args), None


def with_adapter(base: str, folder: Path, args: Any) -> Any:
    """The model `base` with a LoRA adapter to train further, in float32 unless `model_init_kwargs` says otherwise.

    Empties `model_init_kwargs`, which TRL accepts only for a model that it loads itself.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trusts = reading_options(args)["trust_remote_code"]
    settings: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trusts, **(args.model_init_kwargs or {})}
    args.model_init_kwargs = None
    found = resolve_model(base, trust_remote_code=trusts)
    loaded = AutoModelForCausalLM.from_pretrained(found, **settings)
    return PeftModel.from_pretrained(loaded, str(folder), is_trainable=True)


def without_wrapper(model: Any) -> Any:
    """The model without the wrapper of its adapters, which stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def name_base(trained: Any, model: Any, *, on_top: bool = False) -> None:
    """Name the base of a trained adapter so that others can load it, in place of a folder of this machine.

    `model`: the name of the student. If it is an adapter, that one was trained further, and has its own base; with
    `on_top` it was merged, and the new adapter is on top of it.
    """
    adapters = getattr(trained, "peft_config", None)
    if not adapters or not isinstance(model, str):
        return
    name = base_of_adapter(Path(model).expanduser()) if is_adapter(model) and not on_top else model
    for adapter in adapters.values():
        adapter.base_model_name_or_path = public_name(name)
