"""Supervised fine-tuning with the files of a run, and adapters as they are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl import SFTTrainer

from rlkd.models import EMBEDDED, EMBEDDED_HUB_ID
from trainers.common.run_files import RunFiles


class RunSFTTrainer(RunFiles, SFTTrainer):
    """TRL's SFTTrainer with `metrics.jsonl` and an exact resume.

    `base_model`: name of the model under an adapter, which its config then has instead of a local folder (the hub id
    for the embedded one). `round_adapter`: round a trained adapter to bfloat16 after the last step: half the size.
    """

    def __init__(self, *args: Any, base_model: str | None = None, round_adapter: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        adapters = getattr(self.model, "peft_config", None)
        self._rounds = bool(round_adapter and adapters)
        if adapters and base_model is not None:
            name = EMBEDDED_HUB_ID if base_model == EMBEDDED else base_model
            adapters["default"].base_model_name_or_path = name
        self.open_run_files()
        if self._rounds:
            self.add_callback(_Rounding(self))

    def save_final(self) -> None:
        """Save the model or its adapter as safetensors."""
        super().save_final()
        if self._rounds and self.accelerator.is_main_process:
            path = Path(self.args.output_dir or ".") / "adapter_model.safetensors"
            tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})
        self.accelerator.wait_for_everyone()


class _Rounding(TrainerCallback):
    """Rounds the trained parameters after the last step, so that the last checkpoint and the evaluation match the
    saved adapter. To be added before callbacks that evaluate."""

    def __init__(self, trainer: RunSFTTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            model: Any = self.trainer.model
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(parameter.to(torch.bfloat16))
