"""The text and the ids of a teacher's trace, the same wherever it is cached, scored or trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlkd.answers import extract_answer
from rlkd.data.correctness import trace_verdicts
from rlkd.errors import UsageError
from rlkd.rendering import prompt_ids, turn_end
from rlkd.steps import strip_calculator_marks

if TYPE_CHECKING:
    from rlkd.engines import Prompt

_OPENING = re.compile(r"\s*<think>")
_PROMPT_END = re.compile(r"<think>(\s*)\Z")


def trace_ids(
    tokenizer: Any,
    prompt: Prompt,
    rationale: str,
    max_completion_length: int,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    end: int | None = None,
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of a teacher's trace after it, as a trainer of the student sees them.

    The prompt is rendered as everywhere (`rlkd.rendering`); the trace is tokenised separately and ends with the token
    that ends a turn of the conversation, or a text, or with `end`. A trace of more than `max_completion_length`
    tokens, end token included, is truncated like a rollout. A trace that begins with the `<think>` that the template
    has opened is used without it. Raises `UsageError` where the prompt has no tokens or no template, the trace is
    blank, or there is no end token.
    """
    if max_completion_length < 1:
        raise UsageError(f"max_completion_length={max_completion_length}: expected at least 1")
    if not rationale.strip():
        raise UsageError("the rationale is blank. Leave out such rows")
    if not isinstance(prompt, str) and not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the prompt is a conversation and the tokenizer has no chat template. Name an instruct model as the "
            "student, or use prompts that are texts"
        )
    ids = prompt_ids(tokenizer, prompt, chat_template_kwargs)
    if not ids:
        raise UsageError(f"the prompt {prompt!r} has no tokens")
    end = trace_end(tokenizer, prompt, chat_template_kwargs) if end is None else end
    if end is None:
        raise UsageError("the tokenizer has no end token (eos_token): a trace could not end. Set one")
    rationale = _without_repeated_opening(tokenizer, ids, rationale)
    completion = [*tokenizer(rationale, add_special_tokens=False)["input_ids"], end]
    return ids, completion[:max_completion_length]


def trace_end(tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> int | None:
    """The id of the token that ends a trace after a prompt: a turn's in a conversation, else the end token."""
    if isinstance(prompt, str):
        end: int | None = tokenizer.eos_token_id
        return end
    return turn_end(tokenizer, chat_template_kwargs)


def _without_repeated_opening(tokenizer: Any, prompt_ids: Sequence[int], rationale: str) -> str:
    """The rationale without the `<think>` that the end of the prompt has already, and the line break after it."""
    opening = _OPENING.match(rationale)
    if opening is None:
        return rationale
    end = _PROMPT_END.search(tokenizer.decode(list(prompt_ids)[-16:], skip_special_tokens=False))
    if end is None:
        return rationale
    rest = rationale[opening.end() :]
    return rest.removeprefix(end[1])


def trace_text(rationale: str, answer: str | None = None) -> str:
    """A row's rationale as a student should write it, the same text that `recipes/sft.py` trains on.

    Calculator marks are removed. The line `#### answer` is added where the rationale announces no answer and its last
    line comes to this one. A rationale that comes to another answer, or to none that can be read, stays as it is.

    >>> trace_text("She sold 48/2 = <<48/2=24>>24 clips.", "24")
    'She sold 48/2 = 24 clips.\\n#### 24'
    >>> trace_text("She sold 48/2 = <<48/2=24>>24 clips.", "25")
    'She sold 48/2 = 24 clips.'
    """
    text = strip_calculator_marks(rationale).strip()
    announces = answer is not None and extract_answer(text) is None and trace_verdicts([(rationale, answer)]) == [True]
    return f"{text}\n#### {extract_answer(answer or '') or answer}" if announces else text


def usable_traces(traces: Any) -> list[str]:
    """The traces of a row that are not blank; a single text is one trace."""
    listed = [traces] if isinstance(traces, str) else traces or []
    return [trace for trace in listed if isinstance(trace, str) and trace.strip()]
