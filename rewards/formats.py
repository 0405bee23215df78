"""Rewards for the format of a completion: think tags, answer tags, code blocks, steps.

Each scans a text a fixed number of times, whatever it contains, so they run in the trainer's process.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rewards.contract import CHEAP
from rlkd.data.rows import completion_text

_THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>.*?</answer>\s*", re.DOTALL)
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
    """1 for `<think>...</think>` once, at the start, with something after it; else 0.

    `answer_tags`: the rest must be one `<answer>...</answer>` (the strict format of RLKD, arXiv 2505.16142).
    `prefilled`: the chat template opens `<think>` itself (DeepSeek-R1 and its distillates), so it is in the prompt.
    """
    return [float(_is_laid_out(text, answer_tags)) for text in _texts(completions, prefilled)]


@_cheap
def think_format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for a text that begins with its only `<think>` and has a `</think>`; else 0 (TRL 1.16)."""
    return [
        float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text)
        for text in _texts(completions)
    ]


@_cheap
def format_of_lines(completions: Sequence[Any], *, prefilled: bool = False, **columns: Any) -> list[float]:
    """1 for open-r1's format, with each tag on its own line; else 0. Registered as `format`.

    The format: `<think>`, the thought, `</think>`, `<answer>`, the answer, `</answer>`, then optionally more lines.
    `prefilled`: as in `think_format`, for a template that writes `<think>` and the line break.
    """
    texts = _texts(completions, prefilled, "<think>\n")
    return [float(_holds_in_order(text, "</answer>")) for text in texts]


class CodeFormat:
    """1 for the format of `format` with a fenced code block in the answer; else 0 (open-r1).

    Column: `language` of the block, optional.

    Args:
        language: of the block for data without that column.
    """

    __name__ = "code_format"
    reward_options = CHEAP

    def __init__(self, language: str = "python"):
        self.language = language

    def __call__(
        self, completions: Sequence[Any], language: Sequence[str | None] | None = None, **columns: Any
    ) -> list[float]:
        """Score a batch."""
        languages = [self.language] * len(completions) if language is None else language
        return [
            float(_holds_in_order(completion_text(completion), f"```{name or self.language}", "```", "</answer>"))
            for completion, name in zip(completions, languages, strict=True)
        ]


@_cheap
def tag_count(
    completions: Sequence[Any], *, on_lines: bool = False, prefilled: bool = False, **columns: Any
) -> list[float]:
    """A quarter for each of the four tags think, /think, answer, /answer that occurs exactly once.

    RLKD (arXiv 2505.16142), after open-r1. Unlike `think_format` it rewards partial progress. `on_lines`: a tag counts
    only with the line breaks of open-r1's format around it, which gives open-r1's numbers. `prefilled`: as in
    `think_format`.
    """
    tags = _TAGS_ON_LINES if on_lines else _TAGS
    texts = _texts(completions, prefilled, tags[0])
    return [sum(text.count(tag) == 1 for tag in tags) / len(tags) for text in texts]


@_cheap
def reasoning_steps(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A third for each step marker, at most 1 (open-r1).

    Markers: `Step 1:`, a number and a full stop at the start of a line, a line after the first that begins with `-` or
    `*`, and the words `First,`, `Second,`, `Next,` and `Finally,`.
    """
    return [min(1.0, sum(1 for _ in _STEP.finditer(text)) / 3) for text in _texts(completions)]


def _texts(completions: Sequence[Any], prefilled: bool = False, opening: str = "<think>") -> list[str]:
    return [opening * prefilled + completion_text(completion) for completion in completions]


def _is_laid_out(text: str, answer_tags: bool) -> bool:
    match = _THINK.fullmatch(text)
    if match is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    if answer_tags:
        once = text.count("<answer>") == 1 and text.count("</answer>") == 1
        return once and _ANSWER.fullmatch(match["rest"]) is not None
    return bool(match["rest"].strip())


def _holds_in_order(text: str, *parts: str) -> bool:
    """Whether a text has open-r1's format with these parts in order, the last on its own line; in linear time."""
    opening = "<think>\n"
    if not text.startswith(opening):
        return False
    position = len(opening)
    *inner, last = parts
    for part in ("\n</think>\n<answer>\n", *inner):
        start = text.find(part, position)
        if start < 0:
            return False
        position = start + len(part)
    return text.find(f"\n{last}\n", position) >= 0 or text.endswith(f"\n{last}", position)
