"""Separate what a completion says from what it thinks.

>>> after_thought("<think>maybe 71</think>It is 72.")
'It is 72.'
>>> after_thought("<think>maybe 71, or 72")
''
"""

from __future__ import annotations

import re

from rlkd.answers.sentences import last_sentence

# The marks around thoughts: of Qwen, DeepSeek and most others; Seed; Magistral; Kimi; OpenThinker; gpt-oss, whose
# thoughts are channels that are not called final.
_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning)"
_OPENING = re.compile(
    rf"<{_NAMES}\s?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>(?:analysis|commentary)", re.IGNORECASE
)
_CLOSING = re.compile(
    rf"</{_NAMES}\s?>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
_SENTENCE = re.compile(r"[^.!?\n]{0,300}[.!?\n]")
_QUOTES = "`'\"‘’“”"


def after_thought(text: str, prefilled: bool = False) -> str:
    """The text after the last thought; empty where a thought is not finished.

    `prefilled`: the chat template opens the thought, so the completion begins inside it. The text alone does not tell:
    without this, a completion without any tag counts as finished. Takes time linear in the text.
    """
    end = max((match.end() for match in _CLOSING.finditer(text)), default=0)
    if prefilled and not end:
        return ""
    return "" if any(_opens(text, *match.span()) for match in _OPENING.finditer(text, end)) else text[end:]


def ends_in_thought(prompt: str) -> bool:
    """Whether a rendered prompt ends with an opening tag, so that a completion begins inside a thought.

    >>> ends_in_thought("<|User|>2 + 3?<|Assistant|><think>\\n")
    True
    """
    *_, last = ["", *_OPENING.findall(prompt[-100:])]
    return bool(last) and prompt.rstrip().endswith(last)


def _opens(text: str, start: int, end: int) -> bool:
    """Whether a tag opens a thought, and is no word of a sentence: "The tag <think> opens a thought."."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    quoted = before[-1:] and before[-1] in _QUOTES and after[:1] and after[0] in _QUOTES
    if quoted or not (re.search(r"\w[ \t]\Z", before) and re.match(r"[ \t]\w", after)):
        return not quoted
    sentence = _SENTENCE.match(text, end)
    # An answer in the rest of the sentence is thought: "Okay <think> maybe \boxed{72}."
    return sentence is None or "\\boxed" in sentence[0] or last_sentence(sentence[0]) is not None
