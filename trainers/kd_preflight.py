"""Checks that a distillation run makes before any weights load: what would otherwise fail late, or in silence."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlkd.data import RESERVED_COLUMNS
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.teachers import check_temperature, common_vocabulary
from rlkd.validity import ValidityScorer, load_scorer
from rlkd.validity.likelihood import Likelihood
from trainers.kd_teachers import kind_of_teacher
from trainers.rollouts import check_installed

if TYPE_CHECKING:
    from trainers.kd_config import ValidityKDConfig

logger = logging.getLogger(__name__)


def check_config(args: ValidityKDConfig, teacher: Any, tools: Sequence[Any] | None) -> None:
    """Check the switches against each other and the teacher; raise `UsageError`."""
    if teacher is None:
        raise UsageError(
            "there is no teacher. Set teacher: a model, http://HOST:PORT/v1#MODEL, or the folder of a teacher cache"
        )
    if args.remove_unused_columns:
        raise UsageError("remove_unused_columns=True takes away the teacher's traces; leave it at False")
    if args.restore_callback_states_from_checkpoint:
        raise UsageError(
            "restore_callback_states_from_checkpoint=True would replace the callback that keeps tau; leave it at "
            "False: what this trainer needs is restored anyway"
        )
    _check_sharding(args)
    if args.use_vllm:
        check_installed()
    if tools and args.lmbda < 1:
        raise UsageError(f"tools with lmbda {args.lmbda:g}: a teacher's trace calls no tools here. Set lmbda: 1")
    kind = kind_of_teacher(teacher)
    if kind != "model":
        check_temperature(args.temperature)
        if args.kernel == "trl":
            raise UsageError("kernel: trl needs a teacher's whole distribution; with a top-k teacher, set chunked")
    if args.kernel == "trl" and {args.divergence, args.divergence_off_policy} != {"jsd"}:
        raise UsageError("kernel: trl has the divergence jsd only. Set kernel: chunked for skewed divergences")
    if kind == "cache" and args.lmbda > 0:
        raise UsageError(
            f"lmbda {args.lmbda:g} with the teacher cache {teacher}: it knows the teacher's traces, not what the "
            f"student will write. Set lmbda: 0, or name a teacher that can be asked"
        )
    if args.proposals == "generate" and args.asks_scorer:
        _check_proposals(args, teacher, kind)


def _check_sharding(args: ValidityKDConfig) -> None:
    stage = args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or stage == 3:
        raise UsageError(
            "FSDP and ZeRO stage 3 split a model's last layer over the processes, and this trainer reads it whole. "
            "Use several processes without them (each holds student and teacher), ZeRO stage 1 or 2, or a teacher "
            "on a server"
        )


def _check_proposals(args: ValidityKDConfig, teacher: Any, kind: str) -> None:
    own_likelihood = args.validity == "likelihood" and not args.scorer_parameters.get("engine")
    if kind == "cache" and own_likelihood:
        raise UsageError(
            "proposals: generate with validity: likelihood and a teacher cache: the teacher cannot be asked about "
            "steps that the student writes anew. Set proposals: expected, or validity_kwargs: {engine: ...}"
        )
    if kind == "top_k" and args.lmbda > 0 and args.proposal_engine is None:
        raise UsageError(
            "proposals: generate on the student's rollouts: this teacher gives log-probabilities and writes nothing. "
            "Set proposal_engine"
        )


def find_scorer(args: ValidityKDConfig) -> ValidityScorer | None:
    """The scorer that the run names, ready to be asked, or None where its control asks none; raises `UsageError`."""
    if not args.asks_scorer:
        return None
    scorer = load_scorer(args.validity, args.scorer_parameters)
    if args.proposals == "expected" and not (isinstance(scorer, Likelihood) and scorer.asking is None):
        raise UsageError(
            f"proposals: expected with validity: {args.validity}: an expectation over the model's distribution "
            f"exists for the likelihood under the run's own teacher only. Set proposals: generate, so that there is a "
            f"step to score"
        )
    if callable(ready := getattr(scorer, "check_ready", None)) and not inspect.signature(ready).parameters:
        ready()
    return scorer


def check_dataset(args: ValidityKDConfig, dataset: Any, part: str = "train_dataset") -> None:
    """Check a `datasets.Dataset` against the batch and the share of teacher traces; raise `UsageError`."""
    columns = getattr(dataset, "column_names", None)
    if columns is None:  # a streaming dataset of unknown features
        return
    for name in RESERVED_COLUMNS:
        if name in columns:
            raise UsageError(f"{part}: the column name {name!r} is reserved by TRL; rename the column")
    if "prompt" not in columns:
        raise UsageError(f"{part} has no column 'prompt'; there are {', '.join(columns)}")
    if {"image", "images"} & set(columns):
        raise UsageError(f"{part} has images; steps are found in text only. Take TRL's DistillationTrainer")
    if part != "train_dataset" or not hasattr(dataset, "__len__"):
        return
    if len(dataset) < args.generation_batch:
        raise UsageError(
            f"{part} has {len(dataset)} prompts, but one generation batch takes {args.generation_batch} "
            f"(per_device_train_batch_size {args.per_device_train_batch_size} x processes {args.world_size} x "
            f"gradient_accumulation_steps {args.gradient_accumulation_steps}). TRL would train zero steps without a "
            f"word. Give more prompts, or lower one of these."
        )
    if args.lmbda < 1:
        _check_traces(args, dataset, part)


def _check_traces(args: ValidityKDConfig, dataset: Any, part: str) -> None:
    way_out = "Set lmbda: 1 to train on the student's rollouts alone"
    if "rationales" not in dataset.column_names:
        raise UsageError(
            f"{part} has no column 'rationales' (a list of the teacher's traces), and lmbda {args.lmbda:g} means that "
            f"{1 - args.lmbda:.0%} of the batches are made of them; there are {', '.join(dataset.column_names)}. "
            f'{way_out}, or name their column: --columns \'{{"rationales": "COLUMN"}}\''
        )
    without = [place for place, traces in enumerate(dataset["rationales"]) if not usable_traces(traces)]
    if without:
        raise UsageError(
            f"{part}: {len(without)} of {len(dataset)} rows have no trace of the teacher in 'rationales', the first "
            f"is row {without[0]}. {way_out}, or leave these rows out"
        )


def usable_traces(traces: Any) -> list[str]:
    """The traces of a row that are not blank; a single text counts as one."""
    listed = [traces] if isinstance(traces, str) else traces or []
    return [trace for trace in listed if isinstance(trace, str) and trace.strip()]


def check_vocabulary(student: Any, teacher: Any) -> None:
    """Compare the tokenizers of the student and of a teacher in this process; raise `UsageError` where they differ.

    `student`: its tokenizer. `teacher`: a model, or its name. A model whose tokenizer cannot be found is let pass with
    a warning: the widths of the heads are all that can be compared then.
    """
    from transformers import AutoTokenizer

    name = teacher if isinstance(teacher, str) else str(teacher.config._name_or_path or "")
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    except UsageError:
        raise
    except Exception as error:
        if isinstance(teacher, str):
            raise UsageError(
                f"teacher {teacher!r} cannot be read: {str(error).splitlines()[0]}. Give a folder written by "
                f"save_pretrained, a hub id within reach, one of our names, a server (http://HOST:PORT/v1#MODEL), or "
                f"the folder of a teacher cache (it holds index.json)"
            ) from error
        logger.warning(
            "the teacher came as an object whose tokenizer is not known (%r): that it shares the student's vocabulary "
            "cannot be checked",
            name,
        )
        return
    common_vocabulary(student, tokenizer)
