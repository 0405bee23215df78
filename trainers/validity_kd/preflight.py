"""Checks of a distillation run before any weights load, of errors that would otherwise come late or stay silent."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError
from rlkd.models import adapter_settings, is_adapter
from rlkd.teachers.cache import CachedTeacher, CachedTrace
from rlkd.teachers.topk import TopKTeacher, check_temperature
from rlkd.teachers.traces import trace_end, trace_ids, trace_text, usable_traces
from trainers.common.preflight import check_columns, check_settings, check_size, check_unused_columns, has_images
from trainers.common.sharding import check_sharding, refuse_sharded
from trainers.teachers.column import distinct_teachers
from trainers.teachers.context import TeacherContext
from trainers.teachers.kinds import WITH_WEIGHTS, kind_of_teacher
from trainers.teachers.preflight import check_teacher_options
from trainers.vllm.checks import check_installed

if TYPE_CHECKING:
    from trainers.validity_kd.config import ValidityKDConfig

logger = logging.getLogger(__name__)

# Rows whose traces are tokenised at the start to see how many are truncated: enough for a share, in seconds.
SAMPLED_ROWS = 256
_CONTEXTS = {"rationale": "rationales", "answer": "answer"}


def check_config(
    args: ValidityKDConfig,
    teacher: Any,
    tools: Sequence[Any] | None,
    eval_dataset: Any = None,
    peft_config: Any = None,
    model: Any = None,
) -> None:
    """Check the switches against each other, the teachers and the student `model`; raise `UsageError`.

    `teacher`: the only one, or a mapping from values to teachers.
    """
    if teacher is None or teacher == {}:
        raise UsageError(
            "there is no teacher. Set teacher: a model, http://HOST:PORT/v1#MODEL, or the folder of a teacher cache; "
            "or teachers and teacher_column"
        )
    check_unused_columns(args, "the teacher's traces")
    check_settings(args, eval_dataset)
    if getattr(peft_config, "is_prompt_learning", False):
        raise UsageError(
            f"{type(peft_config).__name__} adds virtual tokens, and the loss reads the student's last layer without "
            "them. Use LoRA"
        )
    if args.restore_callback_states_from_checkpoint:
        raise UsageError(
            "restore_callback_states_from_checkpoint=True would replace the callback that saves tau; leave it at "
            "False: the trainer restores its state anyway"
        )
    check_sharding(args)
    if args.proposals == "generate" and args.needs_scorer:  # processes score different numbers of steps
        refuse_sharded(args, "proposals: generate", "Set proposals: expected")
    teachers = distinct_teachers(teacher)
    kinds = list(map(kind_of_teacher, teachers))
    check_teacher_options(args, kinds)
    if len(teachers) > 1 and args.cross_tokenizer == "always":
        raise UsageError("cross_tokenizer: always with several teachers, which must share the student's. Set auto")
    if args.use_vllm:
        check_installed()
    if tools and args.lmbda < 1:
        raise UsageError(f"tools with lmbda {args.lmbda:g}: a teacher's trace calls no tools here. Set lmbda: 1")
    if tools and args.teacher_context is not None:
        raise UsageError(
            "tools with teacher_context: the teacher's own prompts would not list them. Leave out one of the two"
        )
    if args.kernel == "trl" and {args.divergence, args.divergence_off_policy} != {"jsd"}:
        raise UsageError("kernel: trl has the divergence jsd only. Set kernel: chunked for skewed divergences")
    for one, kind in zip(teachers, kinds, strict=True):
        _check_kind(args, one, kind, model, peft_config)


def _check_kind(args: ValidityKDConfig, teacher: Any, kind: str, model: Any, peft_config: Any) -> None:
    """Raise `UsageError` where a teacher of this kind cannot do what the switches ask for."""
    if kind == "self":
        _check_self(args, model, peft_config)
    if kind not in WITH_WEIGHTS:
        check_temperature(args.temperature)
        if args.kernel == "trl":
            raise UsageError("kernel: trl needs a teacher's whole distribution; with a top-k teacher, set chunked")
    if kind == "cache" and args.lmbda > 0:
        raise UsageError(
            f"lmbda {args.lmbda:g} with the teacher cache {teacher}: it has the teacher's traces, but not the "
            f"student's rollouts. Set lmbda: 0, or name a live teacher"
        )
    needs_steps = args.proposals == "generate" and args.needs_scorer and args.lmbda > 0
    if needs_steps and kind == "top_k" and args.proposal_engine is None:
        raise UsageError(
            "proposals: generate on the student's rollouts: this teacher gives log-probabilities and generates no "
            "text. Set proposal_engine"
        )


def _check_self(args: ValidityKDConfig, model: Any, peft_config: Any) -> None:
    """Raise `UsageError` where more than an adapter is trained: its base would be no frozen teacher."""
    if peft_config is None and not getattr(model, "peft_config", None):
        refuse_sharded(args, "teacher: self without an adapter", "Name the student's model as teacher")
    if modules := getattr(peft_config, "modules_to_save", None):
        raise UsageError(
            f"teacher: self with trained modules {', '.join(modules)} (lora_modules_to_save): the student's base "
            f"would not stay the frozen teacher. Leave the key out, or name the student's model as teacher"
        )
    if getattr(peft_config, "bias", "none") != "none":
        raise UsageError(
            f"teacher: self with trained biases ({peft_config.bias!r}): the student's base would not stay the frozen "
            f"teacher. Set bias to none, or name the student's model as teacher"
        )
    for name, adapter in _trained_further(model, peft_config).items():
        modules, bias = adapter.get("modules_to_save") or (), adapter.get("bias") or "none"
        if modules or bias != "none":
            found = f"trained modules {', '.join(modules)}" if modules else f"trained biases ({bias!r})"
            raise UsageError(
                f"teacher: self with {found} of {name}: the student's base would not stay the frozen teacher. Name "
                f"the adapter's base model {adapter.get('base_model_name_or_path')!r} as teacher"
            )
    if args.teacher_context is None and args.process_index == 0:
        logger.warning(
            "teacher: self without teacher_context: the teacher knows nothing that the student did not know at the "
            "start, and only holds it there"
        )


def _trained_further(model: Any, peft_config: Any) -> dict[str, dict[str, Any]]:
    """The settings of the adapters that a student has and trains further, by name: of a folder, or of a loaded model.

    Without `peft_config` the adapter of a folder is merged, and the teacher is a copy, as of a model without PEFT's
    wrapper.
    """
    if not isinstance(model, str):
        adapters = model.peft_config if hasattr(model, "disable_adapter") else {}
        return {f"the adapter {name!r}": vars(adapter) for name, adapter in adapters.items()}
    if peft_config is None or not is_adapter(model):
        return {}
    return {f"the adapter {model}": adapter_settings(Path(model).expanduser())}


def check_teacher_traces(
    args: ValidityKDConfig, dataset: Any, tokenizer: Any, teacher: TopKTeacher | None, end: int | None = None
) -> None:
    """Compare the teacher's traces with the run's limits; raises `UsageError` (`CacheError`).

    `end`: the token that ends them, where it is not that of the template (`check_teacher`).

    A cache must have a row for each of them: otherwise the run would end when a missing one is drawn. For other
    teachers a sample is checked, and a warning says how many are truncated.
    """
    if args.lmbda == 1 or args.process_index > 0 or not hasattr(dataset, "__len__"):
        return
    stride = 1 if isinstance(teacher, CachedTeacher) else max(1, len(dataset) // SAMPLED_ROWS)
    longest = args.max_completion_length or sys.maxsize
    template: Any = args.chat_template_kwargs
    ended: list[bool] = []

    def traces() -> Iterator[CachedTrace]:
        for index in range(0, len(dataset), stride):
            row = dataset[index]
            for number, rationale in enumerate(usable_traces(row["rationales"])):
                text = trace_text(rationale, row.get("answer"))
                prompt, ids = trace_ids(
                    tokenizer, row["prompt"], text, longest, chat_template_kwargs=template, end=end
                )
                ended.append(ids[-1] == (trace_end(tokenizer, row["prompt"], template) if end is None else end))
                yield CachedTrace(f"row {row.get('id', index)!r}, rationale {number}", [*prompt, *ids], len(prompt))

    if isinstance(teacher, CachedTeacher):
        teacher.require(traces())
    else:
        deque(traces(), maxlen=0)
    if truncated := ended.count(False):
        logger.warning(
            "%d of %d %straces of the teacher are longer than max_completion_length %d and are truncated: they teach "
            "neither an answer nor an end. Raise it, or leave such rows out",
            truncated,
            len(ended),
            "" if stride == 1 else "sampled ",
            longest,
        )


def check_dataset(args: ValidityKDConfig, dataset: Any, part: str) -> None:
    """Check a `datasets.Dataset` against the batch and the share of teacher traces; raise `UsageError`."""
    columns = check_columns(dataset, part)
    if columns is None:
        return
    if any(has_images(dataset, name) for name in ("image", "images")) or _has_image_parts(dataset):
        raise UsageError(f"{part} has images; steps exist in text only. Use TRL's DistillationTrainer")
    if part != "train_dataset" or not hasattr(dataset, "__len__"):
        return
    check_size(
        dataset,
        part,
        args.generation_batch,
        f"per_device_train_batch_size {args.per_device_train_batch_size} x processes {args.world_size} x "
        f"gradient_accumulation_steps {args.gradient_accumulation_steps}",
    )
    if args.lmbda < 1:
        _check_traces(args, dataset, part)


def _has_image_parts(dataset: Any, rows: int = 100) -> bool:
    """Whether a message of the first rows has a part that is no text; a model with images would not see it here."""
    if not hasattr(dataset, "__len__"):
        return False
    for index in range(min(rows, len(dataset))):
        prompt = dataset[index].get("prompt")
        for message in prompt if isinstance(prompt, list) else ():
            parts = message.get("content") if isinstance(message, dict) else None
            if isinstance(parts, list) and any(part.get("type", "text") != "text" for part in parts):
                return True
    return False


def _check_traces(args: ValidityKDConfig, dataset: Any, part: str) -> None:
    way_out = "Set lmbda: 1 to train on the student's rollouts alone"
    if "rationales" not in dataset.column_names:
        raise UsageError(
            f"{part} has no column 'rationales' (a list of the teacher's traces), and lmbda {args.lmbda:g} means that "
            f"{1 - args.lmbda:.0%} of the batches consist of them; the columns are {', '.join(dataset.column_names)}. "
            f'{way_out}, or name their column: --columns \'{{"rationales": "COLUMN"}}\''
        )
    without = [index for index, traces in enumerate(dataset["rationales"]) if not usable_traces(traces)]
    if without:
        raise UsageError(
            f"{part}: {len(without)} of {len(dataset)} rows have no teacher trace in 'rationales', the first is row "
            f"{without[0]}. {way_out}, or leave these rows out"
        )


def context_of(
    args: ValidityKDConfig, kinds: Sequence[str], train_dataset: Any, eval_dataset: Any
) -> TeacherContext | None:
    """The context of a run's teachers, checked against their kinds and the rows; None without `teacher_context`."""
    if args.teacher_context is None:
        if args.foreign_context:
            raise UsageError("foreign_context is a control of teacher_context, which is not set")
        return None
    if "cache" in kinds:
        raise UsageError(
            "teacher_context with a teacher cache: its log-probabilities are those after the student's prompt. Name "
            "a model, self, or a server"
        )
    column = _CONTEXTS.get(args.teacher_context, args.teacher_context)
    if column == "rationales" and args.lmbda < 1:
        raise UsageError(
            f"teacher_context: {args.teacher_context} with lmbda {args.lmbda:g}: on the teacher's traces the teacher "
            f"would read the trace that it scores. Set lmbda: 1, or teacher_context: answer"
        )
    foreign = train_dataset if args.foreign_context else None
    context = TeacherContext(column, args.teacher_context_template, args.seed, foreign)
    context.check(train_dataset, "train_dataset")
    parts = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    for part, dataset in parts.items():
        context.check(dataset, part)
    return context
