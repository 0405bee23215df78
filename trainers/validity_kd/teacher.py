"""The teacher of a distillation: loaded where its weights are to be in this process, and fitted to the student."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch

from rlkd.errors import UsageError
from rlkd.teachers.traces import trace_end
from trainers.common.sharding import is_sharded, rows_of_head
from trainers.common.trl_compat import trl_kernel
from trainers.teachers.models import check_head, common_width, load_teacher
from trainers.teachers.several_teachers import open_several
from trainers.teachers.span_teacher import SpanTeacher
from trainers.teachers.teachers import DenseTeacher, KDTeacher, SparseTeacher
from trainers.validity_kd.preparation import KDPreparation
from trainers.validity_kd.reader import ModelReader


def open_teacher(trainer: Any, reader: ModelReader, prepared: KDPreparation, teacher: Any) -> KDTeacher:
    """The teacher of a run, several as one; loads those whose weights are to be in this process.

    `teacher`: the only one, or its name; a mapping where there are several. `reader` learns the teachers' models and
    the width of the heads, and the student no longer samples ids that a teacher has no row for. Raises `UsageError`
    where a teacher does not load or does not fit.
    """
    args, tokenizer, student = trainer.args, trainer._tokenizer, trainer.model
    first = width = rows_of_head(student)
    opened, kernel = prepared.opened[0], trl_kernel if args.kernel == "trl" else None
    found: KDTeacher
    if prepared.column is not None:
        several = open_several(
            args,
            prepared.column,
            prepared.opened,
            student,
            tokenizer,
            trainer.accelerator,
            reader=lambda model: partial(reader.teacher_hidden, model=model),
            plain_reader=lambda model: partial(reader.hidden, model),
            kernel=kernel,
        )
        reader.models, reader.width, first = several.models, several.width, several.first_unknown
        found = several.teacher
    elif opened is not None:
        first = 1 + max(tokenizer.get_vocab().values())
        found = SparseTeacher(opened, width)
    else:
        model = _load(trainer, reader, teacher)
        if prepared.other is not None:
            found = SpanTeacher(
                model,
                reader.teacher_hidden,
                (tokenizer, prepared.other.tokenizer),
                student_ends=trainer.eos_token_ids,
                ends=_ends(trainer, prepared),
                student_rows=width,
                k=args.teacher_top_k,
                temperature=args.temperature,
                rows=args.per_device_train_batch_size,
            )
        else:
            reader.width = common_width(args, student, model, tokenizer)
            first = width if reader.width is None else reader.width
            found = DenseTeacher(
                model,
                reader.teacher_hidden,
                temperature=args.temperature,
                vocabulary=reader.width,
                rows=args.per_device_train_batch_size,
                pad_id=tokenizer.pad_token_id,
                kernel=kernel,
            )
    if width > first:  # the rest pads the head, or has no row in a teacher
        trainer.generation_config.suppress_tokens = list(range(first, width))
    return found


def _load(trainer: Any, reader: ModelReader, teacher: Any) -> Any:
    """The only teacher's model, checked. Not loaded by TRL, which refuses heads of different width."""
    student, tokenizer = trainer.model, trainer._tokenizer
    reader.base_teaches = teacher == "self" and hasattr(student, "disable_adapter")
    if reader.base_teaches:
        model = student.get_base_model()
    else:
        teacher = copy.deepcopy(student) if teacher == "self" else teacher
        model = load_teacher(trainer.args, teacher, trainer.accelerator)
    trainer.teacher_model, reader.models = model, [model]
    if not (reader.base_teaches and is_sharded(trainer)):  # it is sharded only later, with the student
        with torch.no_grad(), reader.teacher_alone() as alone:
            check_head(alone, partial(reader.hidden_apart, alone), list(range(min(8, len(tokenizer)))))
    return model


def _ends(trainer: Any, prepared: KDPreparation) -> tuple[int, int]:
    """The ids that end completions of the student and of a teacher with another tokenizer."""
    assert prepared.other is not None
    prompt = next(iter(prepared.train_dataset))["prompt"]
    template = dict(trainer.chat_template_kwargs)
    own, other = (trace_end(one, prompt, template) for one in (trainer._tokenizer, prepared.other.tokenizer))
    own = own if prepared.trace_end is None else prepared.trace_end
    if own is None or other is None:
        raise UsageError("student and teacher need an end token (eos_token) each. Set one")
    return own, other
