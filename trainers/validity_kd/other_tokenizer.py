"""Whether a teacher in this process has another tokenizer than the student, and what such a run cannot have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError
from rlkd.teachers.vocabulary import common_vocabulary
from trainers.common.student import ModelFacts, read_model
from trainers.teachers.compatibility import read_teacher_tokenizer

if TYPE_CHECKING:
    from trainers.validity_kd.config import ValidityKDConfig

logger = logging.getLogger(__name__)


def other_teacher(
    args: ValidityKDConfig, student: ModelFacts, teacher: Any, dataset: Any, tools: Sequence[Any] | None = None
) -> ModelFacts | None:
    """The facts of a teacher that is to be compared on spans of text, None for one that shares the student's ids.

    `teacher`: a model, or its name. Raises `UsageError` where it cannot be read, or a run cannot have such a
    teacher.
    """
    if args.cross_tokenizer == "never":
        return None
    tokenizer = read_teacher_tokenizer(args, teacher)
    if tokenizer is None:
        return None
    try:
        common_vocabulary(student.tokenizer, tokenizer)
        if args.cross_tokenizer == "auto":
            return None
    except UsageError:
        pass
    options: dict[str, Any] = {"revision": args.teacher_model_revision, "trust_remote_code": args.trust_remote_code}
    facts = read_model(teacher, tokenizer, **options)
    first = next(iter(dataset), None) if dataset is not None else None
    _check(args, facts, None if first is None else first.get("prompt"), tools)
    return facts


def _check(args: ValidityKDConfig, teacher: ModelFacts, prompt: Any, tools: Sequence[Any] | None) -> None:
    if tools:
        raise UsageError(
            f"tools with the teacher {teacher.name}, which has another tokenizer: its own prompts would not list "
            f"them. Leave the tools out, or name a teacher of the student's family"
        )
    if args.proposals == "generate" and args.needs_scorer:
        raise UsageError(
            f"proposals: generate with the teacher {teacher.name}, which has another tokenizer: neither model reads "
            f"the other's steps token by token here. Set proposals: expected, or control: uniform"
        )
    if args.kernel == "trl":
        raise UsageError(f"kernel: trl with the teacher {teacher.name}, which has another tokenizer. Set chunked")
    if prompt is not None and not isinstance(prompt, str) and not teacher.tokenizer.chat_template:
        raise UsageError(
            f"the teacher {teacher.name} has no chat template, and the prompts are conversations. Name an instruct "
            f"model, or use prompts that are texts"
        )
    if args.process_index == 0:
        logger.warning(
            "the teacher %s is compared on spans of text, over shared tokens and the %d likeliest others in order "
            "(docs/other_tokenizers.md): it has another tokenizer, or cross_tokenizer is always; never refuses this",
            teacher.name,
            args.teacher_top_k,
        )
