"""Where the steps of a completion lie among its tokens.

A weight belongs to a step and acts on tokens, so each step needs the place of its tokens among the completion's own
ids. The text is never tokenised anew: a sampled completion is often not what the tokenizer would make of its text.

    >>> [(step.start, step.stop, step.text) for step in token_steps(tokenizer, ids)]  # doctest: +SKIP
    [(0, 9, '3 + 4 = 7 teachers.'), (9, 15, ' 70 / 7 = 10.')]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlkd.steps import sentences

# What the decoder puts where the bytes of a character are not all there yet.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Tokens that are decoded together while a character is unfinished: the longest has four bytes, and a damaged one never
# ends.
_LONGEST_CHARACTER = 8


@dataclass(frozen=True)
class TokenStep:
    """A step of a completion: its tokens [start, stop), their text, and that of the tokens before them.

    The tokens that are scored are [start, end): without those that hold nothing but the white space behind the step.
    What stands there is how the writer's line went on, and one of two proposals often ends without it.
    """

    start: int
    stop: int
    end: int
    text: str
    prefix: str
    open: bool
    """Whether nothing stands behind the step, not even white space: where generation was cut off, it may go on."""


def token_steps(tokenizer: Any, ids: Sequence[int], written: Sequence[int] | None = None) -> list[TokenStep]:
    """The steps of a completion (those of `rlkd.steps.sentences`), in order, each with at least one token.

    `written`: for each token whether the model wrote it; where a tool did (0), it belongs to no step, and a step that
    it interrupts ends there. None: all of them.

    A token belongs to the last step of which it holds a character; white space between two steps goes with the first
    of them. Tokens before the first step, and those behind the last one (the closing `#### 72`, the end token), belong
    to none. A step whose characters all share a token with a later one is left out. Linear in the number of tokens.
    """
    text, spans = token_spans(tokenizer, ids)
    places = _places(text)
    if not places:
        return []
    end_of_last = places[-1][1]
    tokens: dict[int, list[int]] = {}
    step = -1
    for index, (start, stop) in enumerate(spans):
        while step + 1 < len(places) and places[step + 1][0] < stop:
            step += 1
        if start >= end_of_last and not text[start:stop].isspace():
            break
        if step >= 0 and (written is None or written[index]):
            tokens.setdefault(step, []).append(index)
    found = []
    for owned in tokens.values():
        stop = next((one + 1 for one, other in pairwise(owned) if other > one + 1), owned[-1] + 1)
        first, last = spans[owned[0]][0], spans[stop - 1][1]
        end = stop
        while end > owned[0] + 1 and text[slice(*spans[end - 1])].isspace():
            end -= 1
        is_open = stop == len(ids) and not text[first:last][-1:].isspace()
        found.append(TokenStep(owned[0], stop, end, text[first:last], text[:first], is_open))
    return found


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of the tokens without special ones, and the characters [start, stop) that each token adds to it.

    Tokens that share a character, as byte-level vocabularies have them, share its span; a special token has an empty
    one. A token is decoded with the few before it, since its text may depend on them (a leading space).
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    context, read = 0, 0  # tokens [context, read) are shown before the new ones
    shown = ""
    for place in range(len(ids)):
        whole = _decode(tokenizer, ids[context : place + 1])
        if whole.endswith(_UNFINISHED) and place - read < _LONGEST_CHARACTER and place + 1 < len(ids):
            continue
        added = whole[len(shown) :]
        spans.extend([(length, length + len(added))] * (place + 1 - read))
        pieces.append(added)
        length += len(added)
        context, read = read, place + 1
        shown = _decode(tokenizer, ids[context:read])
    return "".join(pieces), spans


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _places(text: str) -> list[tuple[int, int]]:
    """Where the sentences stand in the text, as [start, stop) of each."""
    places = []
    position = 0
    for sentence in sentences(text):
        start = text.index(sentence, position)
        position = start + len(sentence)
        places.append((start, position))
    return places
