"""The characters of a completion that each of its tokens writes, and the tokens that belong to a part of the text.

The text is never tokenised again: a sampled completion often differs from the tokenizer's output for its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The decoder's output for the bytes of an incomplete character.
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Limit of tokens decoded together while a character is incomplete: a character has up to four bytes, and a damaged one
# never completes.
_LONGEST_CHARACTER = 8

Place = tuple[int, int]
"""The characters [start, stop) of a text."""


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Place]]:
    """The text of the tokens without special ones, and the characters [start, stop) that each token adds to it.

    Tokens that share a character, as in byte-level vocabularies, share its span; a special token has an empty one. A
    token is decoded with the few before it, since its text may depend on them (a leading space).
    """
    pieces: list[str] = []
    spans: list[Place] = []
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


def token_owners(text: str, spans: Sequence[Place], places: Sequence[Place | None]) -> list[int | None]:
    """For each token the index of the last place that it has a character of; None where it has one of none.

    `text`, `spans`: as `token_spans` returns them. `places`: parts of that text in order, None for one that was not
    found. White space does not make a token part of a place, except for tokens of nothing else: these go with the
    place directly before them.
    """
    owners: list[int | None] = [None] * len(text)
    for index, place in enumerate(places):
        if place is None:
            continue
        start, stop = place
        while stop < len(text) and text[stop].isspace():
            stop += 1
        owners[start:stop] = [index] * len(owners[start:stop])
    found = []
    for start, stop in spans:
        written = [position for position in range(start, stop) if not text[position].isspace()]
        own = [owner for position in written or range(start, stop) if (owner := owners[position]) is not None]
        found.append(max(own, default=None))
    return found


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
