"""The place in the data after a resume: that of the uninterrupted run, in every epoch and every window of rollouts.

TRL's sampler shuffles anew in each epoch, with a random generator that is neither in checkpoints nor advanced on a
resume: a run that continued in its second epoch would see the first order again. TRL also counts micro-batches from 0
again, so that a run resumed inside the window of a batch of rollouts would write new ones at other rows than before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainers.common.checkpoints import step_of


class RowOrder:
    """Mixin before `RunFiles` for TRL trainers whose `RepeatSampler` orders the rows (GRPO, distillation)."""

    args: Any
    _step: int
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
        """TRL's loader, whose sampler has drawn the orders of the epochs that are done; counts their micro-batches."""
        self._sampler = None  # an iterable dataset has none
        loader = super().get_train_dataloader()  # type: ignore[misc]
        accumulated = self.args.gradient_accumulation_steps
        self._step = self._steps_done * accumulated
        if self._sampler is not None:
            # Steps per epoch as transformers counts them: an incomplete last accumulation is a step.
            epochs, steps = divmod(self._steps_done, max(1, -(-len(loader) // accumulated)))
            self._step = epochs * len(loader) + steps * accumulated
            for _ in range(epochs if self._sampler.shuffle else 0):
                torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        return loader
