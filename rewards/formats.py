"""Is the completion laid out as asked: thinking between think tags, then the answer?"""

import re
from collections.abc import Sequence
from typing import Any

from rlkd.data import completion_text

_THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>.*?</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_format(
    completions: Sequence[Any], *, answer_tags: bool = False, prefilled: bool = False, **columns: Any
) -> list[float]:
    """1 for `<think>...</think>` once, at the start, with something after it; else 0.

    `answer_tags`: what comes after must be one `<answer>...</answer>` (the strict layout of RLKD, arXiv 2505.16142).
    `prefilled`: the chat template opens `<think>` itself (DeepSeek-R1 and its distillates): it stands in the prompt.
    """
    return [float(_is_laid_out(text, answer_tags)) for text in _texts(completions, prefilled)]


def tag_count(completions: Sequence[Any], *, prefilled: bool = False, **columns: Any) -> list[float]:
    """A quarter for each of the four tags think, /think, answer, /answer that occurs exactly once.

    RLKD (arXiv 2505.16142), after open-r1. Unlike `think_format` it pays for every part of the way there. `prefilled`:
    as there.
    """
    texts = _texts(completions, prefilled)
    return [sum(text.count(tag) == 1 for tag in _TAGS) / len(_TAGS) for text in texts]


def _texts(completions: Sequence[Any], prefilled: bool) -> list[str]:
    return ["<think>" * prefilled + completion_text(completion) for completion in completions]


def _is_laid_out(text: str, answer_tags: bool) -> bool:
    match = _THINK.fullmatch(text)
    if match is None or text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    if answer_tags:
        once = text.count("<answer>") == 1 and text.count("</answer>") == 1
        return once and _ANSWER.fullmatch(match["rest"]) is not None
    return bool(match["rest"].strip())
