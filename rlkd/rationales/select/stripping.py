"""Removes the answer from a rationale, so that its difficulty is not measured on a text that gives the answer away.

Only the announcement and the result of the last calculation are removed, since answers are often small numbers that
the question contains too; `leaks` tells whether the answer still occurs.
"""

from __future__ import annotations

import re
from itertools import pairwise

from rlkd.answers import announcement, number, numbers
from rlkd.steps import strip_calculator_marks

# Each run of signs is matched once, from its start, and given up as a whole: linear.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'’”)\]*]*+(?=\s|\Z)")
_ANNOUNCEMENT = re.compile(r"####|\\boxed\{|</?answer>|\banswer is\b|\banswer:", re.IGNORECASE)
# A line that is an answer and nothing else: `A: 18`, `A: $1.50 a day.`; not a step of a text in parts, `A: 5 + 3 = 8`.
_LABELLED_ANSWER = re.compile(r"\s*+A:\s*+[^\s=]*+(?>(?:\s++[^\W\d_]++){0,2})[\s.!]*+", re.IGNORECASE)
_ANSWER_BLOCK = re.compile(r"<answer>(?:(?!<answer>).)*?</answer>", re.IGNORECASE | re.DOTALL)
# An equals sign; not of <=, >=, != or ==.
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)|≈|\\approx\b|\bequals\b")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def strip_answer(text: str) -> str:
    """A rationale without the sentences that announce its answer and without the right side of the last equation.

    Announcements are those that `rlkd.answers.announcement` reads, and a last line of `A:` with nothing but an answer
    after it. The right side of an equation ends with its sentence. Calculator marks are removed too.
    Takes time linear in the text.

    >>> strip_answer("48/2 = <<48/2=24>>24 in May.\\nSo 48 + 24 = 72 clips in all.\\n#### 72")
    '48/2 = 24 in May.\\nSo 48 + 24 ='
    """
    text = strip_announcement(text)
    right_side = _last_right_side(text)
    if right_side is None:
        return text
    line_end = text.find("\n", right_side)
    line_end = len(text) if line_end < 0 else line_end
    sentence_end = _SENTENCE_END.search(text, right_side, line_end)
    after = text[sentence_end.end() if sentence_end else line_end :]
    return (text[:right_side] + after).strip()


def strip_announcement(text: str) -> str:
    """A rationale without the sentences that announce its answer; the first part of `strip_answer`.

    >>> strip_announcement("48/2 = <<48/2=24>>24 in May.\\nSo 48 + 24 = 72 clips in all.\\n#### 72")
    '48/2 = 24 in May.\\nSo 48 + 24 = 72 clips in all.'
    """
    text = strip_calculator_marks(text).rpartition("</think>")[2]
    text = _ANSWER_BLOCK.sub("", text)
    lines = []
    for line in text.split("\n"):
        sentences = _sentences(line)
        left = [each for each in sentences if not _ANNOUNCEMENT.search(each) and announcement(each) is None]
        if left or not line.strip():
            lines.append(line if len(left) == len(sentences) else "".join(left).rstrip())
    text = "\n".join(lines).strip()
    before, _, last = text.rpartition("\n")
    return before.rstrip() if _LABELLED_ANSWER.fullmatch(last) else text


def leaks(stripped: str, answer: str) -> bool:
    """Whether a text contains an answer: as a number if it is one, else as a word.

    Signs, currency, units and thousands commas do not matter for a number, nor case for a word of several letters.
    """
    value = number(answer)
    if value is not None:
        return abs(value) in numbers(stripped)
    answer = answer.strip()
    flags = re.IGNORECASE if len(answer) > 1 else 0
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", stripped, flags) is not None


def _last_right_side(text: str) -> int | None:
    """The start of the right side of the last equation: after an equals sign with more text on its line."""
    end = len(text)
    for line in reversed(text.split("\n")):
        last = max((match.start() for match in _LETTER_OR_DIGIT.finditer(line)), default=-1)
        signs = [match.end() for match in _EQUALS.finditer(line) if match.end() <= last]
        if signs:
            return end - len(line) + signs[-1]
        end -= len(line) + 1
    return None


def _sentences(line: str) -> tuple[str, ...]:
    """The sentences of a line; joined, they are the line."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    cuts = [0, *ends, len(line)]
    return tuple(line[start:stop] for start, stop in pairwise(cuts) if stop > start)
