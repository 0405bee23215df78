"""Several teachers as one: each scores its own rows of a batch.

batch       rows 0..3, teacher_number [0, 1, 1, 0]
teacher 0   reads rows 0 and 3, teacher 1 rows 1 and 2
observe     one tensor per field for all rows; teachers of different width share it, padded at the end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rlkd.divergence import Divergence, DivergenceKernel, Head, TokenStatistics
from rlkd.teachers.topk import TopKTeacher
from trainers.common.sharding import rows_of_head
from trainers.teachers.batches import Batch
from trainers.teachers.column import TeacherColumn
from trainers.teachers.models import check_head, common_width, load_teacher
from trainers.teachers.teachers import DenseTeacher, KDTeacher, SparseTeacher

NUMBER = "teacher_number"
"""The tensor [B] of a batch that says which teacher scores a row."""
_OBSERVED = "observed_number"
_FILLS = {"teacher_logprobs": -torch.inf}  # which is padding there


class SeveralTeachers:
    """A teacher to the trainer, made of several; batches have the tensor `NUMBER`.

    Their tokenizers are the student's. Teachers without rows in a batch read nothing of it.
    """

    def __init__(self, teachers: Sequence[KDTeacher]):
        self.teachers = list(teachers)
        self.fields: tuple[str, ...] = (_OBSERVED, *dict.fromkeys(name for one in teachers for name in one.fields))

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The tensors of all teachers, and the number of each row's."""
        numbers: Tensor = batch[NUMBER]
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for number, teacher in enumerate(self.teachers):
            rows = (numbers == number).nonzero().flatten()
            if len(rows):
                for name, tensor in teacher.observe(_selected(batch, rows)).items():
                    parts.setdefault(name, []).append((rows, tensor))
        joined = {name: _joined(own, len(numbers), _FILLS.get(name, 0)) for name, own in parts.items()}
        return {_OBSERVED: numbers, **joined}

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Each token under the teacher of its row."""
        pairs, back = [], []
        for teacher, own_mask, own in self._parts(states, mask):
            pairs.append(teacher.compare(states, own_mask, student_hidden[own], head, divergence, weights[own]))
            back.append(own)
        if not pairs:
            nothing = student_hidden.sum(dim=1)
            return nothing, nothing.detach()
        order = torch.cat(back).argsort()
        per_token, entropy = (torch.cat(values)[order] for values in zip(*pairs, strict=True))
        return per_token, entropy

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Each token under the teacher of its row."""
        found, back = [], []
        for teacher, own_mask, own in self._parts(states, mask):
            hidden = None if student_hidden is None else student_hidden[own]
            found.append(teacher.statistics(states, own_mask, taken[own], hidden, head))
            back.append(own)
        if not found:
            nothing = taken.new_empty(0, dtype=torch.float32)
            return TokenStatistics(nothing, nothing)
        order = torch.cat(back).argsort()
        columns: dict[str, Tensor | None] = {}
        for name in TokenStatistics.__dataclass_fields__:
            values = [getattr(one, name) for one in found]
            columns[name] = None if any(value is None for value in values) else torch.cat(values)[order]
        return TokenStatistics(**columns)  # type: ignore[arg-type]

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """Each sequence under the teacher of its number."""
        result: dict[int, list[float]] = {}
        for number, teacher in enumerate(self.teachers):
            own = [index for index, one in enumerate(numbers) if one == number]
            if own:
                values = teacher.logprobs([sequences[i] for i in own], [starts[i] for i in own], [number] * len(own))
                result |= dict(zip(own, values, strict=True))
        return [result[index] for index in range(len(sequences))]

    def _parts(self, states: Batch, mask: Tensor) -> list[tuple[KDTeacher, Tensor, Tensor]]:
        """Each teacher with tokens where `mask` is set: they, [B, C], and their places among all of them."""
        numbers: Tensor = states[_OBSERVED]
        owners = numbers[:, None].expand(mask.shape)[mask]
        parts = []
        for number, teacher in enumerate(self.teachers):
            own = (owners == number).nonzero().flatten()
            if len(own):
                parts.append((teacher, mask & (numbers == number)[:, None], own))
        return parts


@dataclass(frozen=True)
class OpenedTeachers:
    """Several teachers, ready to score.

    `models`: of each teacher, None where its weights are not here. `width`: rows of the student's head that all of
    them have, None for all rows. `first_unknown`: the first id of the student that a teacher has no token for.
    """

    teacher: SeveralTeachers
    models: list[Any]
    width: int | None
    first_unknown: int


def open_several(
    args: Any,
    column: TeacherColumn,
    opened: Sequence[TopKTeacher | None],
    student: Any,
    tokenizer: Any,
    accelerator: Any,
    *,
    reader: Callable[[Any], Callable[[Batch], Tensor]],
    plain_reader: Callable[[Any], Callable[[Batch], Tensor]],
    kernel: DivergenceKernel | None = None,
) -> OpenedTeachers:
    """Load the teachers of a column whose weights are to be in this process; raises `UsageError`.

    Args:
        args: the run's config.
        column: the teachers.
        opened: those whose weights are not here, None for the others.
        student: the student's model.
        tokenizer: the student's.
        accelerator: that of the run.
        reader: of a model, what returns its hidden states [B, C, H_t] of a batch's completions.
        plain_reader: the same without autocast, whose rounding would count as another head (`check_head`).
        kernel: replaces `rlkd.divergence`.
    """
    full = width = rows_of_head(student)
    known = 1 + max(tokenizer.get_vocab().values())
    models: list[Any] = []
    for teacher, top_k in zip(column.teachers, opened, strict=True):
        model = None
        if top_k is None:
            model = load_teacher(args, teacher, accelerator)
            with torch.no_grad():
                check_head(model, plain_reader(model), list(range(min(8, known))))
            width = min(width, common_width(args, student, model, tokenizer) or width)
        models.append(model)
    found = [
        SparseTeacher(top_k, width)
        if top_k is not None
        else DenseTeacher(
            model,
            reader(model),
            temperature=args.temperature,
            vocabulary=width,
            rows=args.per_device_train_batch_size,
            pad_id=tokenizer.pad_token_id,
            kernel=kernel,
        )
        for model, top_k in zip(models, opened, strict=True)
    ]
    first = width if all(one is None for one in opened) else min(width, known)
    return OpenedTeachers(SeveralTeachers(found), models, None if width == full else width, first)


def _selected(batch: Batch, rows: Tensor) -> dict[str, Any]:
    return {name: value[rows] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()}


def _joined(parts: Sequence[tuple[Tensor, Tensor]], count: int, fill: float) -> Tensor:
    """One tensor of `count` rows from those of each part, padded to the largest sizes."""
    tensors = [tensor for _, tensor in parts]
    dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    sizes = [max(size) for size in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    whole = tensors[0].new_full((count, *sizes), fill, dtype=dtype)
    for rows, tensor in parts:
        place: tuple[Any, ...] = (rows, *(slice(size) for size in tensor.shape[1:]))
        whole[place] = tensor.to(dtype)
    return whole
