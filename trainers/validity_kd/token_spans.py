"""The token spans of the steps of a completion.

A weight belongs to a step and acts on tokens, so each step needs the span of its tokens in the completion's own ids.
The text is never tokenised again: a sampled completion often differs from the tokenizer's output for its text.

    >>> [(step.start, step.stop, step.text) for step in token_steps(tokenizer, ids)]  # doctest: +SKIP
    [(0, 9, '3 + 4 = 7 teachers.'), (9, 15, ' 70 / 7 = 10.')]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlkd.steps import sentences

# The decoder's output for the bytes of an incomplete character.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Limit of tokens decoded together while a character is incomplete: a character has up to four bytes, and a damaged one
# never completes.
_LONGEST_CHARACTER = 8


@dataclass(frozen=True)
class TokenStep:
    """A step of a completion: its tokens [start, stop), their text, and that of the tokens before them.

    The scored tokens are [start, end), without tokens of white space only after the step: they show how the line
    continues, and one of the two proposals often ends without them.
    """

    start: int
    stop: int
    end: int
    text: str
    prefix: str
    open: bool
    """Whether nothing follows the step, not even white space: a truncated completion may end within it."""


def token_steps(tokenizer: Any, ids: Sequence[int], written: Sequence[int] | None = None) -> list[TokenStep]:
    """The steps of a completion (those of `rlkd.steps.sentences`), in order, each with at least one token.

    `written`: for each token whether the model wrote it, None for all. A tool's token (0) belongs to no step, and a
    step that it interrupts ends there.

    A token belongs to the last step that it has a character of; white space between two steps goes with the first.
    Tokens before the first step, and those after the last one (the closing `#### 72`, the end token), belong to none.
    A step whose characters all share a token with a later one is left out. Linear in the number of tokens.
    """
    text, spans = token_spans(tokenizer, ids)
    sentence_spans = _sentence_spans(text)
    if not sentence_spans:
        return []
    end_of_last = sentence_spans[-1][1]
    tokens: dict[int, list[int]] = {}
    step = -1
    for index, (start, stop) in enumerate(spans):
        while step + 1 < len(sentence_spans) and sentence_spans[step + 1][0] < stop:
            step += 1
        if start >= end_of_last and not text[start:stop].isspace():
            break
        if step >= 0 and (written is None or written[index]):
            tokens.setdefault(step, []).append(index)
    steps = []
    for owned in tokens.values():
        stop = next((one + 1 for one, other in pairwise(owned) if other > one + 1), owned[-1] + 1)
        first, last = spans[owned[0]][0], spans[stop - 1][1]
        end = stop
        while end > owned[0] + 1 and text[slice(*spans[end - 1])].isspace():
            end -= 1
        is_open = stop == len(ids) and not text[first:last][-1:].isspace()
        steps.append(TokenStep(owned[0], stop, end, text[first:last], text[:first], is_open))
    return steps


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the tokens without special ones, and the characters [start, stop) that each token adds to it.

    Tokens that share a character, as in byte-level vocabularies, share its span; a special token has an empty one. A
    token is decoded with the few before it, since its text may depend on them (a leading space).
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    context, read = 0, 0  # tokens [context, read) are decoded together with the new ones
    before = ""
    for index in range(len(ids)):
        whole = _decode(tokenizer, ids[context : index + 1])
        if whole.endswith(_UNFINISHED) and index - read < _LONGEST_CHARACTER and index + 1 < len(ids):
            continue
        added = whole[len(before) :]
        spans.extend([(length, length + len(added))] * (index + 1 - read))
        pieces.append(added)
        length += len(added)
        context, read = read, index + 1
        before = _decode(tokenizer, ids[context:read])
    return "".join(pieces), spans


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _sentence_spans(text: str) -> list[tuple[int, int]]:
    """The characters [start, stop) of each sentence."""
    spans = []
    position = 0
    for sentence in sentences(text):
        start = text.index(sentence, position)
        position = start + len(sentence)
        spans.append((start, position))
    return spans
