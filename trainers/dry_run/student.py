"""The student as prompts meet it: its context, chat template, tokens that end a turn, and lengths in its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rlkd.data.loading import to_dataset
from rlkd.errors import UsageError
from rlkd.rendering import conversation_text, has_system_role, prompt_ids, text_ids, turn_end
from rlkd.teachers.traces import trace_text
from trainers.common.gold import SAMPLED_ROWS
from trainers.common.prompts import PromptCheck
from trainers.common.student import ModelFacts
from trainers.common.think_tags import opens_thought, special_tags
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.rows import spread
from trainers.vllm.checks import longest_prompt

_SHOWN = 300


def show_student(run: DryRun, student: ModelFacts, prompt: Any, template: Mapping[str, Any] | None = None) -> None:
    """Print the student's template and tokens. `prompt`: the first of the run, None where there is none."""
    run.section("student")
    context = "unknown" if student.context is None else f"{student.context} tokens"
    run.line("model", f"{student.name}, context {context}")
    tokenizer = student.tokenizer
    if tokenizer is None:
        run.line("tokenizer", "none that can be read: nothing below is measured in tokens")
        return
    run.line("template", template_line(tokenizer, prompt, template))
    if tags := special_tags(tokenizer):
        run.line("tags", f"{' and '.join(tags)} are special tokens: decoded completions lack them")
    run.line("end tokens", end_line(student, template))
    if prompt is not None and (isinstance(prompt, str) or tokenizer.chat_template):
        try:
            text = prompt if isinstance(prompt, str) else conversation_text(tokenizer, prompt, template)
        except UsageError:  # the checks report it
            return
        text = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
        run.line("first prompt", repr(text))


def template_line(tokenizer: Any, prompt: Any, template: Mapping[str, Any] | None = None) -> str:
    """The quirks of a chat template, as a line."""
    if not tokenizer.chat_template:
        return "the tokenizer has no chat template"
    if isinstance(prompt, str):
        return "there is one, and the prompts are texts, which do not go through it"
    system = "a system role" if has_system_role(tokenizer) else "no system role (a system prompt joins the question)"
    opened = prompt is not None and opens_thought(tokenizer, prompt, template)
    thought = "prompts end with an opened <think>" if opened else "prompts open no thought"
    given = f"; arguments {dict(template)}" if template else ""
    return f"{system}; {thought}{given}"


def end_line(student: ModelFacts, template: Mapping[str, Any] | None = None) -> str:
    """The token that ends a turn, and those that end a generation."""
    tokens = student.tokenizer.convert_ids_to_tokens(sorted(student.ends))
    ends, verb = ", ".join(map(repr, tokens)) or "none", "ends" if len(tokens) == 1 else "end"
    if not student.tokenizer.chat_template:
        return f"{ends} {verb} a generation"
    end = turn_end(student.tokenizer, template)
    turn = "nothing" if end is None else repr(student.tokenizer.convert_ids_to_tokens(end))
    return f"{turn} ends a turn; {ends} {verb} a generation"


def first_prompt(dataset: Any) -> Any:
    """The prompt of the first row, None where there is none."""
    if dataset is None or not len(dataset) or "prompt" not in dataset.column_names:
        return None
    return dataset[0]["prompt"]


def check_held_out_prompts(
    run: DryRun,
    script: Any,
    student: ModelFacts,
    rows: Sequence[Mapping[str, Any]],
    limit: int,
    template: Mapping[str, Any] | None = None,
) -> None:
    """Check that the held-out prompts leave room for `limit` tokens, as the run's evaluation does."""
    if rows:
        with run.catch():
            prompts = to_dataset(list(map(dict, rows)), **script.prompt_style)["prompt"]
            PromptCheck(student, limit, template=template).check_lengths(prompts, "the held-out rows")


def show_lengths(
    run: DryRun,
    student: ModelFacts,
    dataset: Any,
    *,
    completion: int | None = None,
    template: Mapping[str, Any] | None = None,
) -> None:
    """Print lengths of prompts and rationales in the student's tokens. `completion`: max_completion_length."""
    tokenizer = student.tokenizer
    if tokenizer is None or dataset is None or not len(dataset) or "prompt" not in dataset.column_names:
        return
    if not (isinstance(dataset[0]["prompt"], str) or tokenizer.chat_template):
        return
    run.section(f"lengths (tokens of {student.name})")
    rows = [dataset[index] for index in spread(range(len(dataset)), SAMPLED_ROWS)]
    prompts = [len(prompt_ids(tokenizer, row["prompt"], template)) for row in rows]
    longest = max(max(prompts), longest_prompt(dataset, tokenizer, template))
    of = f" ({len(rows)} rows sampled)" if len(rows) < len(dataset) else ""
    run.line("prompts", f"{distribution(prompts)}{of}; the longest of all {longest}")
    traces = [
        len(text_ids(tokenizer, trace_text(text, row.get("answer")), special=False)) + 1
        for row in rows
        for text in row.get("rationales") or []
        if text.strip()
    ]
    if traces:
        text = distribution(traces)
        if completion is not None:
            long = sum(length > completion for length in traces)
            text += f"; {long} of {len(traces)} are longer than max_completion_length {completion}"
            if 2 * long > len(traces):
                run.warn(
                    f"{long} of {len(traces)} rationales are longer than max_completion_length {completion}: a "
                    f"student that writes as much is truncated and has no answer. Raise it, or take shorter rationales"
                )
        run.line("rationales", f"{text}{of}")
    if completion is not None:
        most = longest + completion
        room = "" if student.context is None else f" of {student.context}"
        run.line("context", f"{longest} + max_completion_length {completion} = {most}{room}")


def distribution(lengths: Sequence[int]) -> str:
    """The smallest, the median and the largest length.

    >>> distribution([3, 1, 9])
    '1 to 9, median 3'
    """
    return f"{min(lengths)} to {max(lengths)}, median {median(lengths):g}"
