r"""Find the program in a completion: the last block of Python code behind the thought.

>>> last_program("I double it:\n```py\nprint(2 * int(input()))\n```")
'print(2 * int(input()))\n'
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlkd.answers import after_thought

# A fence at the end of a line, with language and attributes.
_FENCE = re.compile(r"(?P<before>[^`~]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`~\n]*)")
_LIST_ITEM = re.compile(r"[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?")
_TAGS = re.compile(r"(?:\s|<[^<>]*>)*")
_PYTHON = re.compile(r"[{\s.]*(?:python|py)[ \t]*\d*(?:\.\d+)*(?![\w+#-])", re.IGNORECASE)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_END = re.compile(r"(?:\s|<\|[^<>|]*\|>|</\w+>)+\Z")
# CommonMark: a fence that is indented further than the block does not close it.
_INDENTATION = 3


def last_program(text: str, prefilled: bool = False) -> str | None:
    """The last block of Python code in a text, or None.

    A block begins with three or more backquotes or tildes that name Python (`python`, `py`, `Python3`, with or without
    attributes) and ends with a line of them, or with the text. Without a block that names Python, the last one that
    names no language counts. Blocks without code (blank, only comments) are passed over, and so are thoughts
    (`rlkd.answers.after_thought`, also for `prefilled`). A block that is indented as a whole is moved to the left.
    """
    named = unnamed = None
    for info, program in _blocks(after_thought(text, prefilled)):
        if not any(line.strip() and not line.lstrip().startswith("#") for line in program.split("\n")):
            continue
        if _PYTHON.match(info):
            named = program
        elif not info:
            unnamed = program
    return unnamed if named is None else named


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each block as (language and attributes, content)."""
    opened: tuple[str, str, int] | None = None
    lines: list[str] = []
    for line in _LINE.findall(text):
        opening = _opening(line)
        if opened is not None:
            info, fence, indentation = opened
            # The fence that should have closed this block is missing.
            reopens = opening is not None and bool(_PYTHON.match(opening[0])) and opening[2] <= indentation
            if not reopens and not _closes(line, fence, indentation):
                lines.append(line)
                continue
            yield info, _content(lines, fence if reopens else None, indentation)
            opened, lines = None, []
            if not reopens:
                continue
        opened = opening
    if opened is not None:
        yield opened[0], _content(lines, opened[1], opened[2])


def _opening(line: str) -> tuple[str, str, int] | None:
    """Language and attributes, fence, and indentation of a line that opens a block."""
    match = _FENCE.fullmatch(line.rstrip())
    if match is None:
        return None
    before, info = match["before"], match["info"].strip()
    item = _LIST_ITEM.match(before)
    indentation = item.end() if item is not None else 0
    # Behind words, only a fence that names its language is none of the sentence.
    if _TAGS.fullmatch(before, indentation) is None and not _PYTHON.match(info):
        return None
    return info, match["fence"], indentation


def _closes(line: str, fence: str, indentation: int) -> bool:
    bare = line.lstrip(" \t")
    if len(line) - len(bare) > indentation + _INDENTATION or not bare.startswith(fence):
        return False
    return _TAGS.fullmatch(bare.lstrip(fence[0])) is not None


def _content(lines: list[str], missing: str | None, indentation: int) -> str:
    """The text of a block, moved to the left; `missing`: the fence that did not close it on a line of its own."""
    if missing is not None:
        # It may stand at the end of a line, or have words behind it.
        ends = (
            i for i, line in enumerate(lines) if line.strip().startswith(missing) or line.rstrip().endswith(missing)
        )
        if (last := next(ends, None)) is not None:
            rest = lines[last].partition(missing)[0]
            lines = [*lines[:last], *([rest + "\n"] if rest.strip() else [])]
        else:
            lines = _LINE.findall(_END.sub("\n", "".join(lines)))
    first = next((line for line in lines if line.strip()), "")
    if indentation and not first[:indentation].strip(" \t"):
        lines = [line[len(line[:indentation]) - len(line[:indentation].lstrip(" \t")) :] for line in lines]
    return "".join(lines)
