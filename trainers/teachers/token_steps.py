"""The steps of a completion among its tokens.

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

from rlkd.steps import sentence_spans
from trainers.common.token_spans import token_spans


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
    parts = sentence_spans(text)
    if not parts:
        return []
    end_of_last = parts[-1][1]
    tokens: dict[int, list[int]] = {}
    step = -1
    for index, (start, stop) in enumerate(spans):
        while step + 1 < len(parts) and parts[step + 1][0] < stop:
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
