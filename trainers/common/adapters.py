"""Saving LoRA adapters as they are shipped: rounded to bfloat16 (half the size), and naming their base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from rlkd.models import EMBEDDED, EMBEDDED_HUB_ID


class RoundingCallback(TrainerCallback):
    """Rounds what was trained to bfloat16 after the last step.

    So what is measured then, and what lies in the last checkpoint, is what `save` writes. To be added before callbacks
    that measure.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Round, if this was the last step."""
        if state.global_step == state.max_steps:
            with torch.no_grad():
                for parameter in self.trainer.model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(parameter.to(torch.bfloat16))


def name_base_model(trainer: Any, name: str) -> None:
    """Have the adapter's config name the model as others know it, and no folder of this machine."""
    trainer.model.peft_config["default"].base_model_name_or_path = EMBEDDED_HUB_ID if name == EMBEDDED else name


def save(trainer: Any, output: Path, *, rounded: bool) -> None:
    """Save the model or its adapter as safetensors; `rounded`: the adapter, whose values are bfloat16's by now."""
    trainer.save_model(str(output))
    if rounded and trainer.accelerator.is_main_process:
        path = output / "adapter_model.safetensors"
        tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    trainer.accelerator.wait_for_everyone()
