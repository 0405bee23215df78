"""Whether a teacher in this process fits the student: one vocabulary, one rendering of prompts, common end tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlkd.errors import UsageError, first_line
from rlkd.rendering import conversation_text
from rlkd.teachers.traces import trace_end
from rlkd.teachers.vocabulary import common_vocabulary
from trainers.common.student import ModelFacts, model_sources, read_model
from trainers.teachers.arguments import TeacherArguments

logger = logging.getLogger(__name__)


def check_teacher(
    args: TeacherArguments, student: ModelFacts, teacher: Any, dataset: Any
) -> tuple[ModelFacts, int | None]:
    """Compare a teacher in this process with the student; raise `UsageError` where it would score another language.

    They must have one vocabulary, render the prompts alike, and end a completion with the same token. `teacher`: a
    model, or its name. Returns the student's facts, with the shorter context of the two, and the token that ends
    traces where it is not the template's.
    """
    tokenizer = check_vocabulary(args, student.tokenizer, teacher)
    options: dict[str, Any] = {"revision": args.teacher_model_revision, "trust_remote_code": args.trust_remote_code}
    facts = read_model(teacher, tokenizer, **options)
    row = next(iter(dataset), None) if dataset is not None else None
    prompt = None if row is None else row.get("prompt")
    end = None
    is_readable = isinstance(prompt, str) or bool(student.tokenizer.chat_template)  # the prompts are checked later
    if tokenizer is not None and prompt and is_readable:
        _check_rendering(args, student, facts, prompt)
        end = _check_ends(args, student, facts, prompt)
    known = [each for each in (student, facts) if each.context is not None]
    return replace(student, context=min((each.context for each in known if each.context), default=None)), end


def _check_rendering(args: TeacherArguments, student: ModelFacts, teacher: ModelFacts, prompt: Any) -> None:
    template: Any = args.chat_template_kwargs
    if args.allow_other_template or isinstance(prompt, str):
        return
    way_out = (
        "Name a teacher with the student's template (instruct models of one family; a system_prompt replaces "
        "different default ones), or set allow_other_template: true"
    )
    if not teacher.tokenizer.chat_template:
        raise UsageError(
            f"the teacher {teacher.name} has no chat template, and would score conversations in the student's, which "
            f"it has never seen. {way_out}"
        )
    ours = conversation_text(student.tokenizer, prompt, template)
    theirs = conversation_text(teacher.tokenizer, prompt, template)
    if ours != theirs:
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        raise UsageError(
            f"student and teacher have different chat templates: from character {place} on, the first prompt is "
            f"{ours[place : place + 40]!r} to the student and {theirs[place : place + 40]!r} to the teacher, which "
            f"would score a form it has never seen. {way_out}"
        )


def _check_ends(args: TeacherArguments, student: ModelFacts, teacher: ModelFacts, prompt: Any) -> int | None:
    """Compare the tokens that end completions; returns the one for traces where it is not the template's.

    Two base models may have the template of their family, whose end of a turn ends a generation of neither.
    """
    template: Any = args.chat_template_kwargs
    eos, chosen = student.tokenizer.eos_token_id, None
    for one, role in ((student, "student"), (teacher, "teacher")):
        end = trace_end(one.tokenizer, prompt, template)
        owners = (("student", student.ends), ("teacher", teacher.ends))
        lacking = [(owner, ends) for owner, ends in owners if end is not None and ends and end not in ends]
        if len(lacking) == 2 and eos in student.ends & teacher.ends:
            chosen = eos
        elif lacking:
            owner, ends = lacking[0]
            tokens = student.tokenizer.convert_ids_to_tokens([end, *sorted(ends)])
            raise UsageError(
                f"the {role}'s completions end with {tokens[0]!r}, which ends nothing for the {owner} (only "
                f"{', '.join(map(repr, tokens[1:]))}): the student would learn not to end. Take student and teacher "
                f"with the same end tokens (both base, or both instruct models of a family), or train the student on "
                f"the teacher's texts first: recipes/sft.py with --eos_token"
            )
    if chosen is not None and args.process_index == 0:
        logger.warning(
            "the chat template ends a turn with a token that ends no generation of student and teacher (both may be "
            "base models): the teacher's traces end with %r instead",
            student.tokenizer.eos_token,
        )
    return chosen


def common_end(ends: Sequence[int | None], tokenizer: Any) -> int | None:
    """The one token that ends the traces of several teachers, from what `check_teacher` returned for each.

    Raises `UsageError` where they differ.
    """
    if len(set(ends)) > 1:
        named = ["the template's" if end is None else repr(tokenizer.convert_ids_to_tokens(end)) for end in ends]
        raise UsageError(
            f"the teachers end a completion with different tokens: {', '.join(named)}. Name teachers of one kind, "
            f"all base or all instruct models"
        )
    return ends[0] if ends else None


def check_vocabulary(args: TeacherArguments, student: Any, teacher: Any) -> Any:
    """Compare the tokenizers of the student and of a teacher in this process; raise `UsageError` where they differ.

    `student`: its tokenizer. `teacher`: a model, or its name. A model whose tokenizer cannot be found passes with a
    warning: only the widths of the heads can be compared then. Returns the teacher's tokenizer, None where unknown.
    """
    tokenizer = read_teacher_tokenizer(args, teacher)
    if tokenizer is None:
        if args.process_index == 0:
            logger.warning(
                "the teacher is an object whose tokenizer is unknown (%r): whether it shares the student's vocabulary "
                "cannot be checked",
                str(teacher.config._name_or_path or ""),
            )
        return None
    common_vocabulary(student, tokenizer)
    return tokenizer


def read_teacher_tokenizer(args: TeacherArguments, teacher: Any) -> Any:
    """The tokenizer of a teacher, a model or its name; None for a model whose tokenizer cannot be found.

    Raises `UsageError` for a name that cannot be read.
    """
    from transformers import AutoTokenizer

    name = teacher if isinstance(teacher, str) else str(teacher.config._name_or_path or "")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_sources(name)[1],
            revision=args.teacher_model_revision,
            trust_remote_code=args.trust_remote_code,
        )
    except UsageError:
        raise
    except Exception as error:
        if isinstance(teacher, str):
            raise UsageError(
                f"teacher {teacher!r} cannot be read: {first_line(error)}. Name a folder written by "
                f"save_pretrained, a reachable hub id, an embedded model, an engine (http://HOST:PORT/v1#MODEL), or "
                f"the folder of a teacher cache (it has index.json)"
            ) from error
        return None
    return tokenizer
