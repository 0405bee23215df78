"""Two tokenisations of one text: spans that begin and end at a token boundary of both, and tokens of the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.common.token_spans import token_spans

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"

Span = tuple[int, int, int, int]
"""Tokens [start, stop) of the one tokenisation and [start, stop) of the other."""


def aligned_spans(
    student: Any,
    student_ids: Sequence[int],
    teacher: Any,
    teacher_ids: Sequence[int],
    partners: Mapping[int, int],
) -> list[Span]:
    """The shortest spans of the same text, in order; the arguments are tokenizers and ids.

    Texts are compared up to their first difference (a tokenizer may normalise). Left out: special tokens, which have
    no text, and spans with incomplete characters. A span of several tokens that are partners (student's id ->
    teacher's) one by one is split into them: parts of a character have no text of their own.
    """
    texts, ends = [], []
    for tokenizer, ids in ((student, student_ids), (teacher, teacher_ids)):
        text, places = token_spans(tokenizer, ids)
        texts.append(text)
        ends.append(_ends(places))
    common = next((i for i, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    spans: list[Span] = []
    before, s, t = 0, ends[0].get(0, (0, 0))[1], ends[1].get(0, (0, 0))[1]
    for end in sorted(ends[0].keys() & ends[1].keys() - {0}):
        if end > common:
            break
        (s_stop, s_next), (t_stop, t_next) = ends[0][end], ends[1][end]
        pairs = list(zip(student_ids[s:s_stop], teacher_ids[t:t_stop], strict=False))
        if s_stop - s == t_stop - t and all(partners.get(one) == other for one, other in pairs):
            spans += [(s + i, s + i + 1, t + i, t + i + 1) for i in range(len(pairs))]
        elif _UNKNOWN not in texts[0][before:end]:
            spans.append((s, s_stop, t, t_stop))
        before, s, t = end, s_next, t_next
    return spans


@dataclass(frozen=True)
class TokenTexts:
    """The entry and the text of each id of a tokenizer, and its special and added ids.

    A text is what the token adds to a text before it.
    """

    texts: dict[int, tuple[str, str]]
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> TokenTexts:
        """Decodes the whole vocabulary: once for each tokenizer."""
        special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
        return cls(_texts(tokenizer), frozenset(special))

    @property
    def plain(self) -> dict[int, str]:
        """The text of each id, of those that have one and are not special."""
        return {
            index: text
            for index, (_, text) in self.texts.items()
            if text and _UNKNOWN not in text and index not in self.special
        }


def shared_tokens(student: TokenTexts, teacher: TokenTexts) -> list[tuple[int, int]]:
    """Pairs of ids, student's and teacher's, of tokens with the same text; each id is in one pair at most.

    A token's text is what it adds to a text before it, so that both notations of a leading space agree. Tokens that
    are parts of a character are the same where their entries in the vocabulary are.
    """
    sides = [side.texts for side in (student, teacher)]
    exact = {key: index for index, key in sides[1].items()}
    pairs = {index: exact[key] for index, key in sides[0].items() if key in exact}
    taken = set(pairs.values())
    by_text = {key[1]: index for index, key in reversed(sides[1].items()) if index not in taken}
    for index, (_, text) in sides[0].items():
        if index not in pairs and text and _UNKNOWN not in text and text in by_text:
            pairs[index] = by_text.pop(text)
    return sorted(pairs.items())


def prefixed_tokens(
    student: TokenTexts, teacher: TokenTexts, pairs: Sequence[tuple[int, int]]
) -> tuple[dict[int, int], ...]:
    """Of each side the tokens without a partner that begin as a pair's: id -> place in `pairs`.

    Where the student has " Ben has" and the teacher " Ben" and " has", the student's token counts with the pair of
    " Ben": whatever text follows, both models begin it with a token of that pair's. The longest beginning counts. If
    that token of the other side has no partner, its own beginning among the student's tokens counts, and so on.
    """
    sides = [side.plain for side in (student, teacher)]
    by_text: list[dict[str, int]] = [{text: index for index, text in reversed(side.items())} for side in sides]
    places = [{pair[side]: place for place, pair in enumerate(pairs)} for side in (0, 1)]
    for texts, side, known in zip(by_text, sides, places, strict=True):
        texts.update({side[index]: index for index in known if index in side})

    def place_of(side: int, index: int) -> int | None:
        while index not in places[side]:
            text, side = sides[side][index], 1 - side
            found = next(
                (i for end in range(len(text) - 1, 0, -1) if (i := by_text[side].get(text[:end])) is not None), None
            )
            if found is None:
                return None
            index = found
        return places[side][index]

    return tuple(
        {
            index: place
            for index in sides[side]
            if index not in places[side] and (place := place_of(side, index)) is not None
        }
        for side in (0, 1)
    )


def _texts(tokenizer: Any) -> dict[int, tuple[str, str]]:
    """The entry and the text of each id."""
    [anchor] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    entries = sorted((index, entry) for entry, index in tokenizer.get_vocab().items())
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode([anchor], **settings)
    decoded = tokenizer.batch_decode([[anchor, index] for index, _ in entries], **settings)
    return {index: (entry, text[len(before) :]) for (index, entry), text in zip(entries, decoded, strict=True)}


def _ends(places: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """For each character at which a token ends: the tokens up to it, without and with those that have no text."""
    ends: dict[int, tuple[int, int]] = {}
    for index, (start, stop) in enumerate(places):
        follows = places[index + 1] if index + 1 < len(places) else None
        if start == stop:
            ends[stop] = (ends[stop][0] if stop in ends else index, index + 1)
        elif follows != (start, stop):  # else they share a character
            ends[stop] = (index + 1, index + 1)
    return ends
