"""Adapters with weights, as a fine-tuning leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_adapter(base: str, folder: Path, *, seed: int = 1, std: float = 0.2, **changes: Any) -> Path:
    """Save a LoRA adapter on the model in `base`, with its tokenizer; `changes`: of the LoRA configuration."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings: dict[str, Any] = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings | changes))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=std)
    wrapped.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
