r"""Find the program in a completion: the last block of Python code behind the thought.

>>> last_program("I double it:\n```py\nprint(2 * int(input()))\n```")
'print(2 * int(input()))\n'
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import dedent
from typing import NamedTuple

from rlkd.answers import after_thought

# A fence at the end of a line, with language and attributes.
_FENCE = re.compile(r"(?P<before>[^`~]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`~\n]*)")
_LIST_ITEM = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?")
_TAGS = re.compile(r"(?:\s|<[^<>]*>)*")
_PYTHON = re.compile(r"[{\s.]*(?:i?python|pypy|py)[ \t]*\d*(?:\.\d+)*(?![\w+#-])", re.IGNORECASE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_END = re.compile(r"(?:\s|<\|[^<>|]*\|>|</\w+>)+\Z")
# The marks of a quotation before a line.
_QUOTED = re.compile(r"[ \t]{0,3}(?:>[ \t]?)+")
_MARK = re.compile(r"\\.|'''|\"\"\"|['\"#]", re.DOTALL)
# A program that does nothing.
_NOTHING = re.compile(
    r"""(?>(?:\s|;|\#[^\n]*+|pass\b|\.\.\.
        |[rRuU]?(?:'''(?>(?:[^'\\]|\\.|'(?!''))*)'''|\"\"\"(?>(?:[^"\\]|\\.|"(?!""))*)\"\"\"
        |'(?!'')(?>(?:[^'\\\n]|\\.)*)'|"(?!"")(?>(?:[^"\\\n]|\\.)*)"))*)""",
    re.DOTALL | re.VERBOSE,
)
# CommonMark: a fence that is indented further than the block does not close it.
_INDENTATION = 3


class Opening(NamedTuple):
    """A line that opens a block: language and attributes, fence, its indentation, and whether it is quoted (`> `)."""

    info: str
    fence: str
    indentation: int
    quoted: bool


def last_program(text: str, prefilled: bool = False) -> str | None:
    """The last block of Python code in a text, or None.

    A block begins with three or more backquotes or tildes that name Python (`python`, `py`, `Python3`, with or without
    attributes) and ends with a line of them, unless a text of three quotes is open there and ends later, or with the
    text. Without a block that names Python, the last one that names no language counts. Blank blocks and those of
    comments alone are passed over, and so are those that do nothing (only texts, `pass` and `...`) beside others, and
    thoughts (`rlkd.answers.after_thought`, also for `prefilled`). A block that is indented as a whole is moved to the
    left; a quoted one (`> `) loses its marks.
    """
    named = unnamed = idle = None
    for info, program in _blocks(after_thought(text, prefilled)):
        is_python = bool(_PYTHON.match(info))
        if _NOTHING.fullmatch(program):
            if is_python and not all(line.lstrip()[:1] in ("", "#") for line in program.split("\n")):
                idle = program
        elif is_python:
            named = program
        elif not info:
            unnamed = program
    return next((program for program in (named, unnamed, idle) if program is not None), None)


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each block as (language and attributes, content)."""
    lines = _LINE.findall(text)
    position = 0
    has_quotes = True  # whether texts of three quotes are looked for: until one does not end
    while position < len(lines):
        start = position = position + 1
        opening = _opening(lines[start - 1])
        if opening is None:
            continue
        block, position = _block(lines, start, opening, has_quotes)
        if block is None:
            has_quotes = False
            block, position = _block(lines, start, opening, has_quotes)
        yield opening.info, block or ""


def _block(lines: list[str], start: int, opening: Opening, has_quotes: bool) -> tuple[str | None, int]:
    """The content of a block and the position behind it; None where a fence stands in a text that does not end."""
    found: list[str] = []
    quotes: str | None = None
    passed_fence = False
    has_quotes = has_quotes and (not opening.info or bool(_PYTHON.match(opening.info)))
    for position in range(start, len(lines)):
        line = _QUOTED.sub("", lines[position], count=1) if opening.quoted else lines[position]
        other = _opening(lines[position])
        # The fence that should have closed this block is missing.
        reopens = other is not None and bool(_PYTHON.match(other.info)) and other.indentation <= opening.indentation
        closes = _closes(line, opening)
        if quotes is None and (reopens or closes):
            return _content(found, opening, closed=closes and not reopens), position + (not reopens)
        passed_fence |= reopens or closes
        if has_quotes:
            quotes = _quotes_behind(line, quotes)
        found.append(line)
    return None if passed_fence else _content(found, opening, closed=False), len(lines)


def _quotes_behind(line: str, quotes: str | None) -> str | None:
    """The three quotes that are open behind a line of Python, given those open before it."""
    for mark in _MARK.findall(line):
        if quotes is None:
            if mark == "#":
                break
            quotes = mark if mark[0] != "\\" else None
        elif mark in (quotes, quotes * 3):
            quotes = None
    return quotes if quotes is not None and len(quotes) == 3 else None


def _opening(line: str) -> Opening | None:
    quoted = _QUOTED.match(line)
    line = line[quoted.end() :] if quoted is not None else line
    match = _FENCE.fullmatch(line.rstrip())
    if match is None:
        return None
    before, info = match["before"], match["info"].strip()
    item = _LIST_ITEM.match(before)
    indentation = item.end() if item is not None else 0
    # Behind words, only a fence that names its language is none of the sentence.
    if _TAGS.fullmatch(before, indentation) is None and not _PYTHON.match(info):
        return None
    return Opening(info, match["fence"], indentation, quoted is not None)


def _closes(line: str, opening: Opening) -> bool:
    bare = line.lstrip(" \t")
    if len(line) - len(bare) > opening.indentation + _INDENTATION or not bare.startswith(opening.fence):
        return False
    return _TAGS.fullmatch(bare.lstrip(opening.fence[0])) is not None


def _content(lines: list[str], opening: Opening, *, closed: bool) -> str:
    """The text of a block, moved to the left; `closed`: whether a fence on a line of its own ended it."""
    fence, indentation = opening.fence, opening.indentation
    if not closed:
        # It may stand at the end of a line, or have words behind it.
        ends = (i for i, line in enumerate(lines) if line.strip().startswith(fence) or line.rstrip().endswith(fence))
        if (last := next(ends, None)) is not None:
            rest = lines[last].partition(fence)[0]
            lines = [*lines[:last], *([rest + "\n"] if rest.strip() else [])]
        else:
            lines = _LINE.findall(_END.sub("\n", "".join(lines)))
    first = next((line for line in lines if line.strip()), "")
    if indentation and not first[:indentation].strip(" \t"):
        lines = [line[len(line[:indentation]) - len(line[:indentation].lstrip(" \t")) :] for line in lines]
        first = next((line for line in lines if line.strip()), "")
    # No program begins with a line that is indented.
    return dedent("".join(lines)) if first[:1] in (" ", "\t") else "".join(lines)
