r"""GSM8K's mark, `#### 72`, and how it differs from a heading of Markdown, `#### Explanation`.

>>> last_mark("#### 72\n\n#### Explanation\n48 + 24 = 72")
(0, '72')
"""

from __future__ import annotations

import re

from rlkd.answers.numbers import read_quantity
from rlkd.answers.sentences import FILLER, LONGEST, unmarked, with_lines_below

_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")
_HEADING = re.compile(
    r"(?:(?:final|sanity|quick|double|cross)[ -])?(?:step|check|verif\w+|explanation|notes?|sources?|references?|"
    r"solution|summary|conclusion|reasoning|proof|details?|remarks?|case|part|method|example|approach|question|problem|"
    r"hint|analysis|calculations?|given|work(?:ing)?|end|key points)\b",
    re.IGNORECASE,
)
# Those that may be the label of an answer.
_RESULT = re.compile(r"(?:final )?(?:solution|summary|conclusion|calculations?|working)\b[^\w\n]*[:=]", re.IGNORECASE)
_WORDS = re.compile(r"(?!(?:yes|no|true|false)\b)(?:\d{1,2}[.)]\s+)?[^\W\d_]{2}", re.IGNORECASE)
_LABEL = re.compile(r"[^\W\d_]{2}[^\n:=\d]{1,40}[:=][*_]*\s+[*_]*(?=[-+−–]?\s*(?:[$€£¥]|\\)?[\d.])(?=([^:]*)$)")
_FILLER = re.compile(rf"\A{FILLER}\s*(?=[-+−–$\\\d])", re.IGNORECASE)


def last_mark(text: str) -> tuple[int, str] | None:
    """Start and text of the last marked line that is no heading; in linear time."""
    for match in reversed(list(_MARK.finditer(text))):
        line = unmarked(match[1][:LONGEST])
        followed = bool(text[match.end() : match.end() + LONGEST].strip())
        if line and not is_heading(line, followed):
            answer = unmarked(_FILLER.sub("", _without_label(line), count=1))
            return match.start(), with_lines_below(answer, text[match.end() + 1 :][:LONGEST])
    return None


def is_heading(line: str, followed: bool) -> bool:
    """Whether a marked line is a heading: a word of headings, or words with text below (`followed`).

    A label with one value behind it is none: `#### Total: 72`, `#### Solution: 48 + 24 = 72`.
    """
    labelled = _without_label(line) != line
    if _HEADING.match(line):
        return not (labelled and _RESULT.match(line) and read_quantity(_without_label(line)))
    return followed and _WORDS.match(line) is not None and not labelled


def _without_label(line: str) -> str:
    """One value, or a calculation with its result, without the label before it."""
    match = _LABEL.match(line)
    if match is None or ("=" in match[1] and read_quantity(unmarked(match[1])) is None):
        return line
    return line[match.end() :]
