"""Prompts as a model reads them: one rule for training, evaluation, length checks, scorers and engines.

A text goes in as it is, with the special tokens that the tokenizer adds. A conversation goes through the chat
template, with its arguments (`chat_template_kwargs`) and the marker of the reply at its end; the template writes its
special tokens itself. Where a template has no system role, the system message is put before the first user message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.errors import UsageError

Conversation = Sequence[Mapping[str, Any]]


_PROBE = "rlkd probe"


def prompt_ids(
    tokenizer: Any, prompt: str | Conversation, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """The ids of a prompt, a text or a conversation.

    Raises `UsageError` where a conversation has no template, the template refuses it, or the tokenizer refuses a text.
    """
    if isinstance(prompt, str):
        return text_ids(tokenizer, prompt, special=True)
    return text_ids(tokenizer, conversation_text(tokenizer, prompt, chat_template_kwargs), special=False)


def conversation_text(
    tokenizer: Any, messages: Conversation, chat_template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """A conversation as text, with the marker of the reply at its end; raises `UsageError` as `prompt_ids` does."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("the tokenizer has no chat template: send text prompts, or name an instruct model.")
    [fitted] = fitted_conversations(tokenizer, [messages])
    try:
        return _render(tokenizer, fitted, chat_template_kwargs)
    except Exception as error:  # templates raise their own errors, such as "roles must alternate"
        raise UsageError(f"the chat template refuses these messages: {error}") from None


def engine_text(tokenizer: Any, messages: Conversation, chat_template_kwargs: Mapping[str, Any] | None = None) -> str:
    """`conversation_text` for an engine that continues a text and adds the tokenizer's special tokens itself.

    The template has written the first one already.
    """
    text, start = conversation_text(tokenizer, messages, chat_template_kwargs), tokenizer.bos_token
    if start and text.startswith(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text[len(start) :]
    return text


def fitted_conversations(tokenizer: Any, conversations: Sequence[Conversation]) -> list[Conversation]:
    """The conversations as the template takes them: without system messages where it has no system role."""
    if any(_opens_with_system(messages) for messages in conversations) and not has_system_role(tokenizer):
        return [_without_system(messages) for messages in conversations]
    return list(conversations)


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template shows a system message; one that refuses it, or leaves it out, has no such role.

    A template that refuses a plain question too is not judged by it.
    """
    question = {"role": "user", "content": "1 + 1?"}
    try:
        return _PROBE in _render(tokenizer, [{"role": "system", "content": _PROBE}, question])
    except Exception:
        try:
            return not _render(tokenizer, [question])
        except Exception:
            return True


def text_ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """The ids of a text, with the tokenizer's special tokens or without; raises `UsageError` for half a character."""
    try:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:  # half a surrogate pair; each tokenizer has its own error for it
        raise UsageError(f"the tokenizer refuses the text: {error}") from None


def turn_end(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> int | None:
    """The id of the token with which the chat template ends a reply; without one, the tokenizer's end token.

    These differ in some families: Gemma's template writes `<end_of_turn>`, and its end token is `<eos>`.
    """
    end: int | None = tokenizer.eos_token_id
    if not getattr(tokenizer, "chat_template", None):
        return end
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": _PROBE}]
    try:
        shown = _render(tokenizer, messages, chat_template_kwargs, marker=False)
    except Exception:
        return end
    _, found, after = shown.rpartition(_PROBE)
    known = tokenizer.added_tokens_decoder
    marks = (token for token in text_ids(tokenizer, after, special=False) if token in known and known[token].special)
    return next(marks, end) if found else end


def _render(
    tokenizer: Any, messages: Conversation, kwargs: Mapping[str, Any] | None = None, *, marker: bool = True
) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), add_generation_prompt=marker, tokenize=False, **(kwargs or {}))
    )


def _opens_with_system(messages: Conversation) -> bool:
    return bool(messages) and messages[0].get("role") == "system"


def _without_system(messages: Conversation) -> Conversation:
    """The system message, if there is one, as the opening of the first user message, an empty line between them."""
    if not _opens_with_system(messages):
        return messages
    system, *rest = messages
    if not rest or rest[0].get("role") != "user":
        return [{**system, "role": "user"}, *rest]
    first = rest[0]
    if isinstance(system["content"], str) and isinstance(first["content"], str):
        content: Any = f"{system['content']}\n\n{first['content']}"
    else:  # lists of parts
        content = [*_parts(system["content"]), {"type": "text", "text": "\n\n"}, *_parts(first["content"])]
    return [{**first, "content": content}, *rest[1:]]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
