"""The text and the ids of a teacher's trace, the same wherever it is cached, scored or trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlkd.answers import extract_answer
from rlkd.data.correctness import trace_verdicts
from rlkd.errors import UsageError
from rlkd.steps import strip_calculator_marks

if TYPE_CHECKING:
    from rlkd.engines import Prompt


def trace_ids(
    tokenizer: Any,
    prompt: Prompt,
    rationale: str,
    max_completion_length: int,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of a teacher's trace after it, as a trainer of the student sees them.

    Messages get the chat template with a generation prompt, as in TRL; the trace is tokenised separately and ends with
    the end token. A trace of more than `max_completion_length` tokens, end token included, is truncated like a
    rollout. Raises `UsageError` where the prompt has no tokens, the trace is blank or there is no end token.
    """
    if max_completion_length < 1:
        raise UsageError(f"max_completion_length={max_completion_length}: expected at least 1")
    if not rationale.strip():
        raise UsageError("the rationale is blank. Leave out such rows")
    if isinstance(prompt, str):
        prompt_ids = tokenizer(prompt)["input_ids"]
    elif not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the prompt is a conversation and the tokenizer has no chat template. Name an instruct model as the "
            "student, or use prompts that are texts"
        )
    else:
        prompt_ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    if not len(prompt_ids):
        raise UsageError(f"the prompt {prompt!r} has no tokens")
    end = tokenizer.eos_token_id
    if end is None:
        raise UsageError("the tokenizer has no end token (eos_token): a trace could not end. Set one")
    completion = [*tokenizer(rationale, add_special_tokens=False)["input_ids"], end]
    return list(prompt_ids), completion[:max_completion_length]


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
    return f"{text}\n#### {answer}" if announces else text
