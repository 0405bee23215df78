"""Is the completion laid out as asked: thinking between think tags, then the answer, in steps, with code?

All of these go through a text a fixed number of times, whatever it holds: they run in the trainer's process.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rewards.contract import RewardOptions
from rlkd.data.rows import completion_text

_THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>.*?</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAGS_ON_LINES = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
_STEP = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,", re.MULTILINE)

F = TypeVar("F", bound=Callable[..., Any])


def _cheap(function: F) -> F:
    """Declare that a reward is a pure function of a sample, and too cheap to be sent elsewhere or looked up."""
    function.reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None, cache=False)  # type: ignore[attr-defined]
    return function


@_cheap
def think_format(
    completions: Sequence[Any], *, answer_tags: bool = False, prefilled: bool = False, **columns: Any
) -> list[float]:
    """1 for `<think>...</think>` once, at the start, with something after it; else 0.

    `answer_tags`: what comes after must be one `<answer>...</answer>` (the strict layout of RLKD, arXiv 2505.16142).
    `prefilled`: the chat template opens `<think>` itself (DeepSeek-R1 and its distillates): it stands in the prompt.
    """
    return [float(_is_laid_out(text, answer_tags)) for text in _texts(completions, prefilled)]


@_cheap
def think_format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for a text that begins with `<think>`, has no second one, and closes it; else 0 (TRL 1.16)."""
    return [
        float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text)
        for text in _texts(completions)
    ]


@_cheap
def format_of_lines(completions: Sequence[Any], *, prefilled: bool = False, **columns: Any) -> list[float]:
    """1 for open-r1's layout, with each tag on its own line; else 0. Registered as `format`.

    That is: `<think>`, the thought, `</think>`, `<answer>`, the answer, `</answer>`. Something may follow on later
    lines. `prefilled`: as in `think_format`, for a template that writes `<think>` and the line break.
    """
    texts = _texts(completions, prefilled, "<think>\n")
    return [float(_holds_in_order(text, "</answer>")) for text in texts]


class CodeFormat:
    """1 for the layout of `format` with a fenced block of code in the answer; else 0 (open-r1).

    The block's language is that of the column `language` where the data have one.

    Args:
        language: where there is no such column.
    """

    __name__ = "code_format"
    reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None, cache=False)

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

    RLKD (arXiv 2505.16142), after open-r1. Unlike `think_format` it pays for every part of the way there. `on_lines`:
    a tag counts only with the line breaks of open-r1's layout around it, which gives open-r1's numbers. `prefilled`:
    as in `think_format`.
    """
    tags = _TAGS_ON_LINES if on_lines else _TAGS
    texts = _texts(completions, prefilled, tags[0])
    return [sum(text.count(tag) == 1 for tag in tags) / len(tags) for text in texts]


@_cheap
def reasoning_steps(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A third for each sign of a step, at most 1 (open-r1).

    Signs: `Step 1:`, a number and a full stop at the start of a line, a line after the first that begins with `-` or
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
    r"""Whether open-r1's layout holds, with these parts in the answer: `<think>\n.*?\n</think>\n<answer>\n.*?` and on.

    Parts in order are found by taking each as early as it comes; a regular expression may try each with all others.
    The last part begins a line and ends it.
    """
    opening, middle = "<think>\n", "\n</think>\n<answer>\n"
    place = text.find(middle, len(opening)) if text.startswith(opening) else -1
    if place < 0:
        return False
    place += len(middle)
    *inner, last = parts
    for part in inner:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return text.find(f"\n{last}\n", place) >= 0 or text.endswith(f"\n{last}", place)
