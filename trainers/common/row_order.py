"""The order of rows after a resume: that of the uninterrupted run, in every epoch.

TRL's sampler shuffles anew in each epoch, with a random generator that is neither in checkpoints nor advanced on a
resume: a run that continued in its second epoch would see the first order again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainers.common.checkpoints import step_of


class RowOrder:
    """Mixin before `RunFiles` for TRL trainers whose `RepeatSampler` orders the rows (GRPO, distillation)."""

    args: Any
    _steps_done = 0
    _sampler: Any = None

    def restore(self, checkpoint: Path | None) -> None:
        """Remember how many steps were done, for the next data loader."""
        super().restore(checkpoint)  # type: ignore[misc]
        self._steps_done = 0 if checkpoint is None else step_of(checkpoint)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return self._sampler

    def get_train_dataloader(self) -> Any:
        """TRL's loader, whose sampler has drawn the orders of the epochs that are done."""
        self._sampler = None  # an iterable dataset has none
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if self._sampler is not None and self._sampler.shuffle:
            # Steps per epoch as transformers counts them: an incomplete last accumulation is a step.
            per_epoch = max(1, -(-len(loader) // self.args.gradient_accumulation_steps))
            for _ in range(self._steps_done // per_epoch):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        return loader
