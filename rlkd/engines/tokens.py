"""How a prompt and its continuation become tokens, for the engines that hold a tokenizer.

Each is tokenised on its own, and the ids are joined: the tokens scored are exactly those of the continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rlkd.engines.base import Prompt
from rlkd.models import resolve_model

S = TypeVar("S")

NO_TOKENS = "the prompt has no tokens: there is nothing to continue. Send at least one character."


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the prompt's ids: text with the tokenizer's special tokens, messages through the chat template.

    Raises `ValueError` where there is no chat template, the template refuses the messages, or no token is left.
    """
    if isinstance(prompt, str):
        ids = _ids(tokenizer, prompt, special=True)
    else:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: send text prompts, or name an instruct model.")
        try:
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise their own errors, such as "roles must alternate"
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        # The template writes the special tokens itself.
        ids = _ids(tokenizer, text, special=False)
    if not ids:
        raise ValueError(NO_TOKENS)
    return ids


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """Return the continuation's ids, without special tokens. Raises `ValueError` where the text is not valid."""
    return _ids(tokenizer, text, special=False)


def check_room(context: int | None, prompt: int, more: int, what: str) -> None:
    """Raise `ValueError` where the prompt's tokens and `more` do not fit the context; `what` introduces `more`."""
    if context is not None and prompt + more > context:
        raise ValueError(
            f"the prompt has {prompt} tokens and {what} {more}, together {prompt + more}; the model's context is "
            f"{context}. Shorten the request by {prompt + more - context} tokens."
        )


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches of similar lengths: rows x longest is at most `batch_tokens`, or a row is alone."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return batches(order, lambda batch: len(batch) * lengths[batch[-1]] <= batch_tokens)


def batches(rows: Sequence[S], fits: Callable[[list[S]], bool]) -> Iterator[list[S]]:
    """Cut the rows into runs that fit; a row that fits no batch is one by itself."""
    batch: list[S] = []
    for row in rows:
        if batch and not fits([*batch, row]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a folder or hub id. Raises `ValueError` where it does not load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve_model(name))
    except Exception as error:
        raise ValueError(
            f"the tokenizer {name!r} does not load ({type(error).__name__}: {error}). Give a folder or hub id."
        ) from None


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:  # half a surrogate pair; each tokenizer has its own error for it
        raise ValueError(f"the tokenizer refuses the text: {error}") from None
