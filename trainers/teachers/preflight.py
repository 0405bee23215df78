"""What trainers check and open of teachers and scorers before any weights load."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.engines import Engine, EngineError, check_ready, open_engine
from rlkd.errors import UsageError
from rlkd.teachers.cache import CachedTeacher
from rlkd.teachers.engine import EngineTeacher
from rlkd.teachers.topk import TopKTeacher
from rlkd.teachers.vocabulary import vocabulary_fingerprint
from rlkd.validity.contract import load_scorer, reads_logprobs, reads_statistics
from trainers.common.models import loading_options
from trainers.common.sharding import refuse_sharded
from trainers.teachers.arguments import TeacherArguments
from trainers.teachers.kinds import kind_of_teacher


def check_teacher_options(args: TeacherArguments, kinds: Sequence[str]) -> None:
    """Put the options of teachers into the form that transformers takes; raise `UsageError` where none takes them.

    `kinds`: of the teachers, see `kind_of_teacher`.
    """
    given: Any = args.teacher_model_init_kwargs
    if given and "model" not in kinds:
        raise UsageError(
            f"teacher_model_init_kwargs {given} with a teacher whose weights are not loaded here. Leave the key out"
        )
    if given:
        args.teacher_model_init_kwargs = options = loading_options(given, "teacher_model_init_kwargs")
        if options.get("quantization_config"):
            refuse_sharded(args, "a teacher in 4 or 8 bit", "Load it in bfloat16, or serve it with vLLM")


def open_top_k(args: TeacherArguments, teacher: Any, tokenizer: Any, *, k: int, loads: bool = True) -> TopKTeacher:
    """A teacher that is an engine, a cache or a `TopKTeacher`, checked; raises `UsageError`.

    `k`: tokens per position requested from an engine.

    An engine gets a request for one token, so that a wrong address, model, tokenizer or k shows at once; without
    `loads` only a server, since an engine in this process would load its model.
    """
    kind = kind_of_teacher(teacher)
    if kind == "engine":
        opened = EngineTeacher(teacher, k, tokenizer=tokenizer)
        if args.process_index == 0 and (loads or opened.engine.is_remote):
            try:
                opened.top_k([[0, 1]], [1])
            except EngineError as error:
                raise UsageError(f"teacher check failed: {error}") from error
        return opened
    if kind == "cache":
        return CachedTeacher(Path(teacher).expanduser(), tokenizer=tokenizer)
    if teacher.vocabulary != vocabulary_fingerprint(tokenizer):
        raise UsageError(
            f"the teacher {teacher.name} was made for a tokenizer of fingerprint {teacher.vocabulary}, and the "
            f"student's has {vocabulary_fingerprint(tokenizer)}: their ids mean different tokens"
        )
    return teacher


def ready_scorer(args: TeacherArguments, kinds: Sequence[str]) -> Any | None:
    """The scorer of the run, checked, or None where its control needs none; raises `UsageError`.

    `kinds`: of the teachers.
    """
    if not args.needs_scorer:
        return None
    scorer = load_scorer(str(args.validity), args.scorer_parameters)
    if args.proposals == "expected" and not reads_statistics(scorer):
        raise UsageError(
            f"proposals: expected with validity: {args.validity}: a scorer needs the method from_token_statistics to "
            f"compare a step with an expectation over the model's distribution, as likelihood under the run's own "
            f"teacher does. Set proposals: generate, so that there is a step to score"
        )
    if args.proposals == "generate" and "cache" in kinds and reads_logprobs(scorer):
        raise UsageError(
            f"proposals: generate with validity: {args.validity} and a teacher cache: the scorer reads the teacher's "
            f"log-probabilities of steps that the student generates, and a cache has none of them. Set proposals: "
            f"expected, or a scorer with an engine of its own (validity_kwargs: {{engine: ...}})"
        )
    if callable(ready := getattr(scorer, "check_ready", None)) and not inspect.signature(ready).parameters:
        ready()
    return scorer


def open_proposal_engine(args: TeacherArguments, teacher: TopKTeacher | None) -> Engine | None:
    """The engine that writes the teacher's steps, checked; raises `UsageError`.

    None where a teacher in this process writes them, and where none are written.
    """
    if args.proposals != "generate" or not args.needs_scorer:
        return None
    if args.proposal_engine is None:
        return getattr(teacher, "engine", None)
    try:
        engine = open_engine(args.proposal_engine)
    except ValueError as error:
        raise UsageError(f"proposal_engine: {error}") from error
    if args.process_index == 0:
        check_ready(engine, "proposal_engine")
    return engine
