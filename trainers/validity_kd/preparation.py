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
from trainers.common.sharding import refuse_sharded
from trainers.common.student import ModelFacts, model_sources, read_model, read_tokenizer, reading_options
from trainers.teachers.column import TeacherColumn, distinct_teachers
from trainers.teachers.compatibility import check_teacher, common_end
from trainers.teachers.context import TeacherContext
from trainers.teachers.kinds import kind_of_teacher
from trainers.teachers.preflight import open_proposal_engine, open_top_k, ready_scorer
from trainers.validity_kd.other_tokenizer import other_teacher
from trainers.validity_kd.preflight import check_config, check_dataset, check_teacher_traces, context_of
from trainers.vllm.adapter_checks import adapter_config
from trainers.vllm.checks import check_rollouts, longest_prompt

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from trainers.validity_kd.config import ValidityKDConfig


@dataclass(frozen=True)
class KDPreparation:
    """The parts of a run that need no weights.

    `opened`: for each teacher itself, where its weights are not loaded here. `trace_end`: the token that ends the
    teacher's traces where it is not that of the template. `engines`: for each teacher what writes its steps.
    `context`: in the teacher's prompts. `other`: the teacher's facts where it has another tokenizer. `column`: which
    of several teachers scores a row.
    """

    tokenizer: Any
    student: ModelFacts
    scorer: Any
    opened: list[TopKTeacher | None]
    trace_end: int | None
    engines: list[Engine | None]
    train_dataset: Any
    eval_dataset: Any
    context: TeacherContext | None = None
    other: ModelFacts | None = None
    column: TeacherColumn | None = None


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

    `teacher`: the only one, or a mapping from values of `teacher_column` to teachers. `loads`: whether a teacher that
    is an engine in this process may load its model to be tried.
    """
    teachers = distinct_teachers(teacher)
    kinds = ["model" if one is None else kind_of_teacher(one) for one in teachers]
    column = None
    with catch():
        column = args.column_of(teacher)
        check_config(args, teacher, tools, eval_dataset, peft_config, model)
    for part, dataset in named_datasets(train_dataset, eval_dataset):
        with catch():
            check_dataset(args, dataset, part)
            if column is not None:
                column.check(dataset, part)
    if "cache" in kinds and eval_dataset is not None:
        with catch():
            raise UsageError("eval_dataset with a teacher cache: it has no log-probabilities of rollouts")
    scorer = end = context = other = None
    opened: list[TopKTeacher | None] = [None] * len(teachers)
    engines: list[Engine | None] = [None] * len(teachers)
    with catch():
        context = context_of(args, kinds, train_dataset, eval_dataset)
    with catch():
        scorer = ready_scorer(args, kinds)
    with catch():
        check_student(args, model, peft_config)
        if "self" in kinds and peft_config is not None and isinstance(model, str) and is_adapter(model):
            logger.warning("teacher: self is the base of %s without this adapter, which is trained further", model)
        tokenizer = tokenizer or read_tokenizer(model, **reading_options(args))
        if isinstance(tokenizer, ProcessorMixin):
            raise UsageError("a student with images: steps exist in text only. Use TRL's DistillationTrainer")
    if tokenizer is None or isinstance(tokenizer, ProcessorMixin):
        facts = ModelFacts(str(model), None, None, frozenset())
        return KDPreparation(None, facts, scorer, opened, None, engines, train_dataset, eval_dataset, column=column)
    template: Any = args.chat_template_kwargs
    facts = read_model(model, tokenizer, **reading_options(args))
    with catch():
        ends = []
        if column is not None:
            refuse_sharded(args, "several teachers", "Name one teacher")
        for number, one in enumerate(teachers):
            if one is None or kinds[number] == "self":
                continue
            if kinds[number] != "model":
                opened[number] = open_top_k(args, one, tokenizer, k=args.teacher_top_k, loads=loads)
                continue
            if column is None:
                other = other_teacher(args, facts, one, train_dataset, tools)
            if other is not None:
                refuse_sharded(args, "a teacher with another tokenizer", "Take a teacher of the student's family")
            else:
                facts, found = check_teacher(args, facts, one, train_dataset)
                ends.append(found)
            revision, trusts = args.teacher_model_revision, args.trust_remote_code
            check_model(one, "teacher", revision=revision, trust_remote_code=trusts)
        end = common_end(ends, tokenizer)
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
        for number, one in enumerate(opened):
            own = train_dataset
            if column is not None and hasattr(train_dataset, "__len__"):
                own = column.own_rows(train_dataset, number)
            check_teacher_traces(args, own, tokenizer, one, end)
    with catch():
        engines = [open_proposal_engine(args, one) for one in opened]
    if args.use_vllm:
        with catch():
            name = model_sources(model)[0] if isinstance(model, str) else str(model.config._name_or_path)
            longest, adapter = longest_prompt(train_dataset, tokenizer, template), adapter_config(model, peft_config)
            check_rollouts(args, name, longest, adapter=adapter)  # type: ignore[arg-type]
    datasets = train_dataset, eval_dataset
    return KDPreparation(tokenizer, facts, scorer, opened, end, engines, *datasets, context, other, column)
