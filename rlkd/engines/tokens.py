"""How a prompt and its continuation become tokens, for the engines that hold a tokenizer.

Each is tokenised on its own, and the ids are joined: the tokens scored are exactly those of the continuation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rlkd.engines.base import Prompt
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.rendering import prompt_ids, text_ids

S = TypeVar("S")

NO_TOKENS = "the prompt has no tokens: there is nothing to continue. Send at least one character."


def encode_prompt(tokenizer: Any, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Return the prompt's ids (`rlkd.rendering`).

    Raises `ValueError` where there is no chat template, the template refuses the messages, or no token is left.
    """
    ids = prompt_ids(tokenizer, prompt, chat_template_kwargs)
    if not ids:
        raise ValueError(NO_TOKENS)
    return ids


def template_arguments(given: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """The arguments of the chat template, given as a mapping or as JSON; None without any. Raises `UsageError`."""
    read: Any = given
    if isinstance(given, str):
        try:
            read = json.loads(given)
        except ValueError:
            read = None
    if given is not None and not isinstance(read, Mapping):
        raise UsageError(f'chat_template_kwargs={given!r}: expected a mapping, as in {{"enable_thinking": false}}')
    return dict(read) if read else None


def template_suffix(chat_template_kwargs: Mapping[str, Any] | None) -> str:
    """The part of an engine's name for its template's arguments: results depend on them."""
    return f"?chat_template_kwargs={json.dumps(chat_template_kwargs, sort_keys=True)}" if chat_template_kwargs else ""


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """Return the continuation's ids, without special tokens. Raises `ValueError` where the text is not valid."""
    return text_ids(tokenizer, text, special=False)


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
