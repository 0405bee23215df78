"""Find the final answer of a text: the announcements, and which of them counts."""

from __future__ import annotations

import re
from typing import Literal

from rlkd.answers.thoughts import after_thought

# The explicit ways to announce an answer. `\boxed{}` needs brace matching and is handled separately.
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_END_TAG = re.compile(r"</answer>", re.IGNORECASE)
_PHRASE = re.compile(r"\b(?:final )?answer is:?[ \t]*([^\n]+?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")

Fallback = Literal["none", "last_number"]


def extract_answer(text: str, fallback: Fallback = "none", *, prefilled: bool = False) -> str | None:
    """Return the last explicitly announced answer of a text, or None.

    Announced means `#### ...`, `\\boxed{...}`, `<answer>...</answer>` or "the answer is ...". The last announcement
    counts; a truncated one does not, nor does a thought (see `after_thought`, also for `prefilled`).
    `fallback="last_number"` takes the last number of a text without an announcement; that also rewards a truncated
    text that happens to stop at the right number.
    """
    text = after_thought(text, prefilled)
    found = [(match.start(), match[1]) for form in (_HASHES, _PHRASE) for match in form.finditer(text)]
    # After the last closing tag, the search from each opening tag would go to the end of the text.
    end = max((match.end() for match in _END_TAG.finditer(text)), default=0)
    found += [(match.start(), match[1]) for match in _TAG.finditer(text, 0, end)]
    boxed = _last_boxed(text)
    if boxed is not None:
        found.append(boxed)
    # Without special tokens and Markdown emphasis.
    found = [(start, _SPECIAL_TOKEN.sub("", answer).strip().strip("*_`").strip()) for start, answer in found]
    found = [(start, answer) for start, answer in found if answer]
    if found:
        answer = max(found)[1]
        inner = _last_boxed(answer)
        return inner[1].strip() if inner else answer
    if fallback == "last_number" and (numbers := _NUMBER.findall(text)):
        return numbers[-1]
    return None


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Start and content of the last box; None if there is none, or it is empty or truncated."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            content = text[start + len("\\boxed{") : position].strip()
            return (start, content) if content else None
    return None
