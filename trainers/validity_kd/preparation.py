"""What a distillation needs before its models load, checked: tokenizer, teacher, scorer, and rows that fit both.

The trainer and the dry run share it.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import ProcessorMixin

from rlkd.engines import Engine
from rlkd.errors import UsageError
from rlkd.models import is_adapter
from rlkd.teachers.topk import TopKTeacher
from trainers.common.models import check_model, check_student
from trainers.common.preflight import named_datasets
from trainers.common.prompts import PromptCheck
from trainers.common.refusals import Catch
from trainers.common.student import ModelFacts, model_sources, read_model, read_tokenizer, reading_options
from trainers.teachers.compatibility import check_teacher
from trainers.validity_kd.context import TeacherContext, context_of
from trainers.validity_kd.other_tokenizer import other_teacher
from trainers.validity_kd.preflight import (
    check_config,
    check_dataset,
    check_teacher_traces,
    open_proposal_engine,
    open_top_k,
    ready_scorer,
)
from trainers.validity_kd.teachers import kind_of_teacher
from trainers.vllm.checks import check_rollouts, longest_prompt

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from trainers.validity_kd.config import ValidityKDConfig


@dataclass(frozen=True)
class KDPreparation:
    """The parts of a run that need no weights.

    `opened`: a teacher whose weights are not loaded here. `trace_end`: the token that ends the teacher's traces where
    it is not that of the template. `engine`: writes the teacher's steps. `context`: in the teacher's prompts.
    `other`: the teacher's facts where it has another tokenizer.
    """

    tokenizer: Any
    student: ModelFacts
    scorer: Any
    opened: TopKTeacher | None
    trace_end: int | None
    engine: Engine | None
    train_dataset: Any
    eval_dataset: Any
    context: TeacherContext | None = None
    other: ModelFacts | None = None


def prepare(
    args: ValidityKDConfig,
    model: Any,
    teacher: Any,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    tokenizer: Any = None,
    tools: Any = None,
    peft_config: Any = None,
    catch: Catch = nullcontext,
    loads: bool = True,
) -> KDPreparation:
    """Check everything that needs no weights; raises `UsageError`, unless `catch` keeps it.

    `loads`: whether a teacher that is an engine in this process may load its model to be tried.
    """
    with catch():
        check_config(args, teacher, tools, eval_dataset, peft_config, model)
    for part, dataset in named_datasets(train_dataset, eval_dataset):
        with catch():
            check_dataset(args, dataset, part)
    kind = "model" if teacher is None else kind_of_teacher(teacher)
    if kind == "cache" and eval_dataset is not None:
        with catch():
            raise UsageError("eval_dataset with a teacher cache: it has no log-probabilities of rollouts")
    scorer = opened = end = engine = context = other = None
    with catch():
        context = context_of(args, kind, train_dataset, eval_dataset)
    with catch():
        scorer = ready_scorer(args, teacher)
    with catch():
        check_student(args, model, peft_config)
        if kind == "self" and peft_config is not None and isinstance(model, str) and is_adapter(model):
            logger.warning("teacher: self is the base of %s without this adapter, which is trained further", model)
        tokenizer = tokenizer or read_tokenizer(model, **reading_options(args))
        if isinstance(tokenizer, ProcessorMixin):
            raise UsageError("a student with images: steps exist in text only. Use TRL's DistillationTrainer")
    if tokenizer is None or isinstance(tokenizer, ProcessorMixin):
        facts = ModelFacts(str(model), None, None, frozenset())
        return KDPreparation(None, facts, scorer, None, None, None, train_dataset, eval_dataset)
    template: Any = args.chat_template_kwargs
    facts = read_model(model, tokenizer, **reading_options(args))
    with catch():
        if teacher is not None and kind == "model":
            other = other_teacher(args, facts, teacher, train_dataset, tools)
            if other is None:
                facts, end = check_teacher(args, facts, teacher, train_dataset)
            revision, trusts = args.teacher_model_revision, args.trust_remote_code
            check_model(teacher, "teacher", revision=revision, trust_remote_code=trusts)
        elif teacher is not None and kind != "self":
            opened = open_top_k(args, teacher, tokenizer, k=args.teacher_top_k, loads=loads)
    fit = PromptCheck(
        facts, args.max_completion_length or 0, template=template, leave_out=args.filter_overlong_prompts
    )
    with catch():
        kept, eval_dataset = fit.fitted_datasets(train_dataset, eval_dataset)
        if context is not None or other is not None:
            reads = replace(fit, student=facts if other is None else other)
            prompts = context or TeacherContext("prompt", "{prompt}")
            prompts, kept = prompts.fitted_lenders(reads, kept, "train_dataset")
            context = None if context is None else prompts
            parts = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
            for part, dataset in parts.items():
                prompts.fitted(replace(reads, leave_out=False), dataset, part)
        if kept is not train_dataset:
            check_dataset(args, train_dataset := kept, "train_dataset")
        check_teacher_traces(args, train_dataset, tokenizer, opened, end)
    with catch():
        engine = open_proposal_engine(args, opened)
    if args.use_vllm:
        with catch():
            name = model_sources(model)[0] if isinstance(model, str) else str(model.config._name_or_path)
            check_rollouts(args, name, longest_prompt(train_dataset, tokenizer, template))  # type: ignore[arg-type]
    return KDPreparation(tokenizer, facts, scorer, opened, end, engine, train_dataset, eval_dataset, context, other)
