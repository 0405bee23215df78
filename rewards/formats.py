"""Rewards for the format of a completion: think tags, answer tags, code blocks, steps.

Each scans a text a fixed number of times, whatever it contains, so they run in the trainer's process. Tags around
nothing earn nothing, or a policy learns to skip the thought; only TRL's `think_format_reward` keeps TRL's numbers.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rewards.contract import CHEAP
from rlkd.data.rows import completion_text

_THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAGS_ON_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
_STEP = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,", re.MULTILINE)

F = TypeVar("F", bound=Callable[..., Any])


def _cheap(function: F) -> F:
    function.reward_options = CHEAP  # type: ignore[attr-defined]
    return function


@_cheap
def think_format(
    completions: Sequence[Any], *, answer_tags: bool = False, prefilled: bool = False, **columns: Any
) -> list[float]:
    """1 for `<think>...</think>` once, at the start, around a thought, with something after it; else 0.

    `answer_tags`: the rest must be one `<answer>...</answer>` around an answer (the strict format of RLKD, arXiv
    2505.16142). `prefilled`: the chat template opens `<think>` itself (DeepSeek-R1 and its distillates), so it is in
    the prompt.
    """
    return [float(_is_laid_out(text, answer_tags)) for text in _texts(completions, prefilled)]


@_cheap
def think_format_reward(completions: Sequence[Any], *, prefilled: bool = False, **columns: Any) -> list[float]:
    """1 for a text that begins with its only `<think>` and has a `</think>`; else 0 (TRL 1.16).

    TRL's numbers, which pay for an empty thought and for an empty rest: `think_format` does not. `prefilled`: as in
    `think_format`.
    """
    return [
        float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text)
        for text in _texts(completions, prefilled)
    ]


@_cheap
def format_of_lines(completions: Sequence[Any], *, prefilled: bool = False, **columns: Any) -> list[float]:
    """1 for open-r1's format, with each tag on its own line; else 0. Registered as `format`.

    The format: `<think>`, the thought, `</think>`, `<answer>`, the answer, `</answer>`, then optionally more lines.
    open-r1 gives 1 for an empty thought or answer too. `prefilled`: as in `think_format`, for a template that writes
    `<think>` and the line break.
    """
    texts = _texts(completions, prefilled, "<think>\n")
    return [float(_holds_in_order(text, "</answer>")) for text in texts]


class CodeFormat:
    """1 for the format of `format` with a fenced code block, not an empty one, in the answer; else 0 (open-r1).

    Column: `language` of the block, optional.

    Args:
        language: of the block for data without that column.
        prefilled: as in `format`.
    """

    __name__ = "code_format"
    reward_options = CHEAP

    def __init__(self, language: str = "python", prefilled: bool = False):
        self.language = language
        self.prefilled = prefilled

    def __call__(
        self, completions: Sequence[Any], language: Sequence[str | None] | None = None, **columns: Any
    ) -> list[float]:
        """Score a batch."""
        languages = [self.language] * len(completions) if language is None else language
        return [
            float(_holds_in_order(text, f"```{name or self.language}", "```", "</answer>"))
            for text, name in zip(_texts(completions, self.prefilled, "<think>\n"), languages, strict=True)
        ]


@_cheap
def tag_count(
    completions: Sequence[Any], *, on_lines: bool = False, prefilled: bool = False, **columns: Any
) -> list[float]:
    """A quarter for each of the four tags think, /think, answer, /answer that occurs exactly once.

    RLKD (arXiv 2505.16142), after open-r1. Unlike `think_format` it rewards partial progress. Tags in another order
    earn nothing, nor do two tags around nothing. `on_lines`: open-r1's numbers: a tag counts only with the line breaks
    of open-r1's format around it, in any order and around anything. `prefilled`: as in `think_format`.
    """
    texts = _texts(completions, prefilled, _TAGS_ON_LINES[0] if on_lines else _TAGS[0])
    if on_lines:
        return [sum(text.count(tag) == 1 for tag in _TAGS_ON_LINES) / len(_TAGS) for text in texts]
    return [len(_tags_in_order(text)) / len(_TAGS) for text in texts]


@_cheap
def reasoning_steps(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A third for each step marker with text before the next one, at most 1 (open-r1).

    Markers: `Step 1:`, a number and a full stop at the start of a line, a line after the first that begins with `-` or
    `*`, and the words `First,`, `Second,`, `Next,` and `Finally,`. open-r1 counts markers without text too.
    """
    return [min(1.0, _steps(text) / 3) for text in _texts(completions)]


def _texts(completions: Sequence[Any], prefilled: bool = False, opening: str = "<think>") -> list[str]:
    return [opening * prefilled + completion_text(completion) for completion in completions]


def _is_empty(text: str) -> bool:
    """Whether a text shows nothing: white space and characters without a shape."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def _is_laid_out(text: str, answer_tags: bool) -> bool:
    match = _THINK.fullmatch(text)
    if match is None or text.count("<think>") != 1 or text.count("</think>") != 1 or _is_empty(match["thought"]):
        return False
    if answer_tags:
        once = text.count("<answer>") == 1 and text.count("</answer>") == 1
        answer = _ANSWER.fullmatch(match["rest"])
        return once and answer is not None and not _is_empty(answer["answer"])
    return not _is_empty(match["rest"])


def _holds_in_order(text: str, *parts: str) -> bool:
    """Whether a text has open-r1's format with these parts in order, the last on its own line; in linear time.

    The thought must not be empty, nor the code inside a fence, nor an answer for which no fence is required.
    """
    opening = "<think>\n"
    if not text.startswith(opening):
        return False
    position = len(opening)
    *inner, last = parts
    for part in ("\n</think>\n<answer>\n", *inner):
        start = text.find(part, position)
        if start < 0 or (part in ("```", "\n</think>\n<answer>\n") and _is_empty(text[position:start])):
            return False
        position = start + len(part)
    end = text.find(f"\n{last}\n", position)
    if end < 0 and text.endswith(f"\n{last}", position):
        end = len(text) - len(last) - 1
    return end >= 0 and (bool(inner) or not _is_empty(text[position:end]))


def _tags_in_order(text: str) -> list[str]:
    """The tags that occur once; none if they are in another order, without two tags that have nothing between them."""
    places = {tag: text.find(tag) for tag in _TAGS if text.count(tag) == 1}
    if list(places.values()) != sorted(places.values()):
        return []
    for opening, closing in (_TAGS[:2], _TAGS[2:]):
        if {opening, closing} <= set(places) and _is_empty(text[places[opening] + len(opening) : places[closing]]):
            del places[opening], places[closing]
    return list(places)


def _steps(text: str) -> int:
    """The number of step markers with text behind them, before the next."""
    markers = [match.span() for match in _STEP.finditer(text)]
    nexts = [*(start for start, _ in markers), len(text)][1:]
    pieces = (text[end:following] for (_, end), following in zip(markers, nexts, strict=True))
    return sum(any(map(str.isalnum, piece)) for piece in pieces)
