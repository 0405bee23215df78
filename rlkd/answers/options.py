r"""Which of a few known words an answer names: letters of options, or yes and no.

>>> letters("(A), because B is wrong")
frozenset({'A'})
>>> sorted(letters("A and C"))
['A', 'C']
>>> letters("A big dog")
frozenset()
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from rlkd.answers.remarks import REASON

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mathsf|texttt)\s*\{([^{}]*)\}")
_DRESS = re.compile(r"\\[()\[\]]|[$*`\"“”]|(?<!\w)_+|_+(?!\w)")
# Between two words of a list, and between two that follow each other like a list.
_LISTED = re.compile(
    r"\s*[,;]?\s*(?:\b(?:and|or|plus|nor|then|vs\.?)(?!\w)|[-=]?>|[→⇒<=/&+|~…·•∙]|\\+)\s*|\s*[,;]\s*", re.IGNORECASE
)
_LOOSE = re.compile(r"\s*[.:!\-–—]*\s*")
_CLOSED = re.compile(r"[ \t]*\n|\s*(?:$|[.,;:!?)\]/&+|~–—]|-\s|(?:and|or|are|both|too|also)\b)", re.IGNORECASE)
_REASON = re.compile(rf"\s*[,;:]?\s*(?:[-–—]+\s*)?\b{REASON}", re.IGNORECASE)
_REASON_SENTENCE = re.compile(rf"\b{REASON}[^.!?\n]*", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|could|also|either|(?:is|are) (?:possible|plausible))\b", re.IGNORECASE
)
# "A (wrong)", "A, which is wrong", "Yes. That is not right."; "A) Wrong" is the text of an option.
_WRONG = re.compile(
    r"(?:\s*[,;(][\s(]*|\s+(?=not\b)|\s+(?:is|was)|"
    r"[\s,;(.!:)\]–—-]*(?:which|that|this|it)(?: ?(?:['’]s|is|was|seems|looks))?)\s*"
    r"(?:\b(?:is|was|obviously|clearly|just|simply) )*"
    r"(?:\b(?:wrong|incorrect|mistaken|false|untrue|not)|(?:\bis|was)?n['’]t)"
    r"(?: (?:it|so|right|correct|true|sure|really|the case|the answer))*\s*(?:[.,;:!)\]\n]|\Z)",
    re.IGNORECASE,
)
# "No, it is not" agrees; "No, it is" does not.
_IT_IS = re.compile(r"[\s,;(]*(?:it|that) (?:is|was)(?: true)?\s*(?:[.,;:!)\n]|\Z)", re.IGNORECASE)
_DOUBTED = re.compile(r"\bI (?:\w+ )?doubt\b", re.IGNORECASE)
# What comes before another answer: "A. But B is correct.", "Yes, actually no".
_INSTEAD = re.compile(
    r"\b(?:but|no|wait|actually|however|rather|else|otherwise|instead|means?|meant|hmm+|oops|sorry|now|then|well|better|"
    r"be|is|correction|thought)\b[\s,:.!…–—-]*|\b(?:it|that)['’]s\s+",
    re.IGNORECASE,
)
_RIGHT_OR_END = re.compile(r"\s+(?:is|was|would be|must be)\b(?! (?:not|wrong|incorrect|false)\b)", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*[?]|\s*[,;.]?\s*(?:or|nor|as well)\b", re.IGNORECASE)
# What may follow without a mark in between.
_IS_RIGHT = re.compile(r"\s+is (?:the )?(?:correct|right|best|true|answer|one)\b", re.IGNORECASE)
_FOLLOWS = re.compile(r"\s+(?:for (?:it|this|that|these)|given|where|only(?!\s+(?:if|when)))\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"\s+(?:it|they|he|she|we|you|I|the|this|that|these|those|there|its|their|all|both|is|are|indeed|of course|sir)\b"
)
_SENTENCE = re.compile(r"[.!?\n]")
_WORD = re.compile(r"\(?(yes|no|true|false)(?![\w'’]|-\w)\)?", re.IGNORECASE)
_TRUTH = {"YES": True, "TRUE": True, "NO": False, "FALSE": False}
_IN_BRACKETS = re.compile(r"(?<!\w)[(\[]?[A-Z][)\]]")


def letters(text: str, labels: Collection[str] = ()) -> frozenset[str]:
    """The letters of options that an answer names, as capitals: all of a list, none where they are doubted.

    `labels`: those that there are, which may be numbers; without any, all letters. After a letter may come a full
    stop, a bracket or another mark and any text, or a reason ("A because ..."); "A big dog" names none.
    """
    text = undressed(text)
    if labels and re.fullmatch(r"[A-Z]{2,}", text) and set(text) <= set(labels):
        return frozenset(text)
    item = _label(tuple(sorted(labels, key=len, reverse=True)))
    named, rest, bracketed = _named(text, item)
    if not named or _taken_back(rest, item, named) or _IN_BRACKETS.search(_said(rest)):
        return frozenset()
    free = (
        bracketed
        or not re.match(r"[ \t]+\w", rest)
        or _REASON.match(rest)
        or _IS_RIGHT.match(rest)
        or _FOLLOWS.match(rest)
    )
    return frozenset(named) if free else frozenset()


def truth(text: str) -> bool | None:
    """Whether an answer says yes (or true), or no (or false); None for neither, for both and for "No doubt"."""
    named, rest, _ = _named(undressed(text), _WORD)
    values = {_TRUTH[word] for word in named}
    same = {word for word, value in _TRUTH.items() if value in values}
    if len(values) != 1 or _taken_back(rest, _WORD, same):
        return None
    follows = re.match(r"[ \t]+\w", rest) and not (_REASON.match(rest) or _CLAUSE.match(rest))
    return None if follows else values.pop()


def undressed(text: str) -> str:
    r"""A text without LaTeX's `\text{}` and `\(`, Markdown emphasis and quotes."""
    return _DRESS.sub("", _WRAPPED.sub(r"\1", text)).strip().strip("'‘’").strip()


@lru_cache(maxsize=256)
def _label(labels: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, labels)) if labels else "[A-Za-z]"
    before = r"(?:(?:the )?(?:(?:correct|right|best) )?(?:options?|choices?|letters?|answer)(?: is|:)?\s+)?"
    return re.compile(rf"{before}[(\[]?\s?({names})(?![\w'’])(?:\s?[)\]])?", re.IGNORECASE)


def _named(text: str, item: re.Pattern[str]) -> tuple[list[str], str, bool]:
    """The words of a list that a text begins with, in capitals; the rest; whether the last stands in brackets."""
    found: list[str] = []
    match = item.match(text)
    end = 0
    while match is not None:
        found.append(match[1].upper())
        end = match.end()
        between = [each.end() for each in (_LISTED.match(text, end), _LOOSE.match(text, end)) if each]
        following = [item.match(text, start) for start in between]
        match = next((each for each in following if each and _CLOSED.match(text, each.end())), None)
    return found, text[end:], text[:end].endswith((")", "]"))


def _taken_back(rest: str, item: re.Pattern[str], named: Collection[str]) -> bool:
    """Whether what follows in the sentence doubts an answer, or what follows at all names another one."""
    if _ALTERNATIVE.match(rest) or (_IT_IS if "NO" in named else _WRONG).match(rest):
        return True
    said = _said(rest)
    others = (item.match(said, match.end()) for match in _LISTED.finditer(said))
    if (
        _HEDGE.search(said)
        or _DOUBTED.search(said)
        or any(each and _CLOSED.match(said, each.end()) for each in others)
    ):
        return True
    unreasoned = _REASON_SENTENCE.sub("", rest)
    instead = (item.match(unreasoned, match.end()) for match in _INSTEAD.finditer(unreasoned))
    return any(
        each[1].upper() not in named
        for each in instead
        if each and (_CLOSED.match(unreasoned, each.end()) or _RIGHT_OR_END.match(unreasoned, each.end()))
    )


def _said(rest: str) -> str:
    """What follows an answer in its sentence, without a reason."""
    ends = [match.start() for match in (_REASON.search(rest), _SENTENCE.search(rest, 1)) if match]
    return rest[: min(ends, default=len(rest))]
