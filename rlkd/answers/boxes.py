r"""Boxes of LaTeX in a text: `\boxed{72}`, `\fbox{72}`, `\framebox{72}`, and a number without braces, `\boxed 72`.

>>> last_boxes(r"first \boxed{71}, then \boxed{72}")
(23, '72')
>>> last_boxes(r"the roots are $\boxed{3}$ and $\boxed{4}$")
(31, '3, 4')
"""

from __future__ import annotations

import re

from rlkd.answers.numbers import number

# A brace behind a backslash is a character, and no group.
_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*+)(?P<brace>\{)?|\\[{}]|[{}]")
_BARE = re.compile(r"[-+]?\d[\d,]*+(?:\.\d++)?(?:/\d++)?(?![\w^\\])")
# What may stand between two boxes of one answer: white space, marks, "and", "or".
_BETWEEN = re.compile(
    r"(?:[\s,;.$&*_]|\\[()\[\],;:! \\]|\\q?quad|\\(?:text|mbox)\{\s*+(?:and|or)\s*+\}|\b(?:and|or)\b)*"
)
_BETWEEN_AT_MOST = 60


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the boxes that hold something, in order of their starts; linear in the text.

    Of nested boxes only the innermost counts. A box that is not closed is none.
    """
    found: list[tuple[int, int, str]] = []
    # Of each open brace, where its box starts and its content, or None for a group.
    open_braces: list[tuple[int, int] | None] = []
    nested_after = -1
    for match in _TOKEN.finditer(text):
        if match["box"] is not None:
            if match["brace"]:
                open_braces.append((match.start(), match.end()))
            elif bare := _BARE.match(text, match.end()):
                found.append((match.start(), bare.end(), bare[0]))
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces and (opened := open_braces.pop()) is not None:
            start, content = opened
            # A box that was found inside makes this one a frame around it.
            if start > nested_after and (inner := text[content : match.start()].strip()):
                found.append((start, match.end(), inner))
                nested_after = start
    return found


def last_boxes(text: str) -> tuple[int, str] | None:
    """Start and content of the last box; where boxes are listed, of all of them, with commas in between.

    Boxes with nothing in between but white space, commas, "and" and "or" are one answer of several values.
    """
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and _joined(text[found[first - 1][1] : found[first][0]]):
        first -= 1
    return found[-1][0], ", ".join(distinct([content for _, _, content in found[first:]]))


def distinct(values: list[str]) -> list[str]:
    """The values without those that repeat an earlier one, also as a number."""
    known: dict[object, str] = {}
    for value in values:
        exact = number(value)
        known.setdefault(value if exact is None else exact, value)
    return list(known.values())


def _joined(between: str) -> bool:
    return len(between) <= _BETWEEN_AT_MOST and _BETWEEN.fullmatch(between) is not None
