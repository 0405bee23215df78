"""How the student and its teachers read a batch: the hidden states that predict its completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlkd.divergence import Head
from trainers.common.sharding import with_whole
from trainers.teachers.batches import as_teacher_reads, rows_of
from trainers.teachers.models import head_of

Result = TypeVar("Result")


class ModelReader:
    """Reads batches with the models of a `ValidityKDTrainer`.

    Attributes:
        models: of each teacher, None where one's weights are not here.
        width: rows of the student's head that are compared; None for all.
        base_teaches: whether the teacher is the student below its adapter.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.models: list[Any] = []
        self.width: int | None = None
        self.base_teaches = False

    @property
    def student(self) -> Any:
        """The student's model, without the wrappers of distributed training."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def hidden(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """The head's input at the completion's tokens, [B, C, H]."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        states: Tensor = self.trainer._get_last_hidden_state(model, ids, mask, batch["completion_ids"].size(1))
        return states

    def hidden_apart(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """`hidden` outside the loss: in a call of the whole model, which sharded weights need."""
        return with_whole(self.student if self.base_teaches else model, lambda: self.hidden(model, batch))

    def with_head(self, model: Any, compute: Callable[[Head, Tensor], Result], hidden: Tensor) -> Result:
        """`compute` with the head of the student's model, whole meanwhile, and its hidden states."""
        layer = model.get_output_embeddings()
        return with_whole(layer, lambda states: compute(head_of(model, self.width), states), hidden)

    def student_hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """The student's hidden states [B, C, H], without gradients, in evaluation mode, a micro-batch at a time."""
        student = self.student
        count, size = len(batch["completion_ids"]), self.trainer.args.per_device_train_batch_size
        student.eval()
        try:
            with torch.no_grad(), self.trainer.compute_loss_context_manager():
                parts = [self.hidden_apart(student, rows_of(batch, start, size)) for start in range(0, count, size)]
                return torch.cat(parts)
        finally:
            student.train()

    def teacher_hidden(self, batch: Mapping[str, Any], model: Any = None) -> Tensor:
        """A teacher's hidden states [B, C, H_t] after its own prompts, without gradients.

        `model`: the teacher that reads the batch, where there are several.
        """
        with torch.no_grad(), self.trainer.compute_loss_context_manager(), self.teacher_alone() as teacher:
            return self.hidden_apart(teacher if model is None else model, as_teacher_reads(batch))

    @contextmanager
    def teacher_alone(self, number: int = 0) -> Iterator[Any]:
        """The teacher's model, ready to read: if it is the student's base, in evaluation mode without the adapter.

        `number`: which of several teachers.
        """
        if not self.base_teaches:
            yield self.models[number]
            return
        student = self.student
        training = student.training
        student.eval()
        try:
            with student.disable_adapter():
                yield self.models[0]
        finally:
            student.train(training)
