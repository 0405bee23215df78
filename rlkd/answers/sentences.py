"""Answers that a text announces in words: "The answer is 72.", "**Answer:** 72", or a heading "Answer" above 72.

>>> last_sentence("So the answer is 72, since 48 + 24 = 72.")
(7, '72, since 48 + 24 = 72.')
>>> last_sentence("I don't know if the answer is 72.")
"""

from __future__ import annotations

import re

from rlkd.answers.numbers import number

LONGEST = 1000
"""Characters of a line that are read as an answer: no answer to an exercise is longer, and it bounds the time."""

# The word itself, in the languages that models answer in.
_NOUN = (
    r"(?:(?<![^\W_])(?:answers?|ans|final result|(?:correct|right|best|final) (?:option|choice)|"
    r"respuestas?(?: final| correcta)?|antwort|r[ée]ponse(?: finale)?|resposta(?: final)?|"
    r"risposta(?: finale)?|ответ)(?![^\W_])|答案|答え|정답)[*_]*+"
)
# "The answer to this question", "Answer (in cm)", "the answer, rounded to two places,".
_TO_WHAT = (
    r"(?: (?:to|for|of) (?:(?:this|the|that|our|your|each) )?(?:\w+ )?"
    r"(?:question|problem|exercise|task|puzzle|riddle)(?: \d+)?| ?\([^()\n]{0,40}\)"
    r"|,? (?:rounded|in (?:simplest|lowest|standard)|to the nearest) [^\n.:;,]{1,40}?,?"
    r"|(?: that| which)?(?: we| I| you)(?: have)? (?:get|got|want|need|seek|find|found|obtain(?:ed)?|are looking for)"
    r"| here| in total| in this case)?"
)
FILLER = (
    r"(?>(?:,? ?\b(?:therefore|thus|hence|then|so|indeed|now|simply|just|clearly|obviously|finally|also|still|exactly|"
    r"precisely|actually|really|always|definitely|certainly|surely|evidently|consequently|in fact|of course|"
    r"as follows|the following|(?:found|calculated|computed|determined) to be|calculated as|given (?:by|as)|equal to|"
    r"about|approximately|approx\b\.?|around|roughly|the number|a total of|nothing but|none other than)\b[,:]?)*)"
)
_VERB = (
    r"(?: ?(?:=|＝|应该是|应为|是|为|為|は|은|는)"
    r"| (?:is|are|was|were|(?:does )?equals?|becomes?|amounts? to|(?:adds|sums) up to|es|est|ist|lautet|é|è"
    r"|(?:will|would|should|must|has to|have to|needs to|ought to)"
    r"(?: \w+ly| then| thus| hence| therefore| indeed)? (?:be|equal|come to)"
    r"|can be (?:found|shown|seen|calculated|computed|written) (?:to be|as)|ends up (?:being|as)"
    r"|(?:comes?|came|works?|worked|turns?|turned)(?: out)? (?:to be|to|as|at))(?![\w'])|['’]s(?= [-$\d\\]))"
)
_ANNOUNCED = re.compile(
    rf"{_NOUN}(?:(?P<sentence>{_TO_WHAT}{FILLER}{_VERB}{FILLER}[ \t]*+[:：]?{FILLER})"
    rf"|(?P<label>{_TO_WHAT}(?:[*_ \t]*+(?:[:：=→⇒]|[-=]>)|[ \t]++[-–—](?=[ \t])){FILLER})"
    rf"|(?P<heading>[ \t]*+(?=\n)))",
    re.IGNORECASE,
)

# A clause before an announcement may take it back; a label may name another answer than the text's own final one.
_CLAUSE = re.compile(r"[.!?;:,\n]|\b(?:so|but|hence|thus|therefore|then|because|means)\b", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:if|whether|unless|suppos\w+|assum\w+|imagine|doubt\w*|never|not|cannot|no longer|nobody|no one|false|"
    r"without|what|nor|or|either)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:check\w*|verif\w+|validat\w+|confirm\w*|test\w*|wrong|incorrect|other|previous|first|sample|example|possible|"
    r"expected|his|her|their|old|initial|intermediate|partial)\b|['’]s\b",
    re.IGNORECASE,
)
# "The answer is reasonable" speaks about an answer.
_COMMENT = re.compile(
    r"(?:(?:indeed|also|therefore|thus) )?(?:correct|right|consistent|reasonable|plausible|confirmed|verified|valid|"
    r"sensible|checked|(?:shown |given |found )?(?:above|below))\b",
    re.IGNORECASE,
)
_ALONE = re.compile(r"[\s>#*_\-•\d.)(]*(?:(?:the|my|our|final|correct) )*", re.IGNORECASE)
_END = re.compile(
    r"(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)\.|!(?!\s*[=+\-*/^]))(?=[\"'”’*_)]*+(?:\s|$))|[。！]"
)
_STRONG = re.compile(r"(?<!\S)\*\*([^*\n]{1,200})\*\*(?!\w)")
_ORNAMENTS = "*_` \t\r\n✓✔✅☑🎉🎯👍🙂😊\ufe0f"
_RULE = re.compile(r"[=\-]{3,}")
_QUESTION = re.compile(r"[?？]")
_FENCES = {"$$": "$$", "\\[": "\\]", "```": "```"}


def last_sentence(text: str) -> tuple[int, str] | None:
    """Start and text of the last announcement in words, to the end of its line; in linear time."""
    # A text with so many announcements that announce nothing is not worth the time.
    for match in reversed(list(_ANNOUNCED.finditer(text))[-200:]):
        if (answer := _announced(text, match)) is not None:
            return match.start(), answer
    return None


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence, without the full stop."""
    end = _END.search(text)
    return text[: end.start()].rstrip(".…") if end and end.start() else text


def unmarked(text: str) -> str:
    """The text without Markdown emphasis, white space and ornaments around it."""
    return _STRONG.sub(r"\1", text).strip(_ORNAMENTS)


def _announced(text: str, match: re.Match[str]) -> str | None:
    start, end = match.span()
    line = text[max(0, start - 200) : start].rpartition("\n")[2]
    clause = _CLAUSE.split(line)[-1]
    if _HEDGED.search(clause) or (match["sentence"] is None and _OTHERS.search(clause)):
        return None
    if match["heading"] is not None:
        return _below(text, end) if _ALONE.fullmatch(line) else None
    rest, line_end, _ = text[end : end + LONGEST].partition("\n")
    rest = re.split("</answer>", rest, maxsplit=1, flags=re.IGNORECASE)[0]
    answer = unmarked(rest)
    if not answer:
        return _below(text, end + len(rest)) if line_end else None
    if _QUESTION.search(first_sentence(answer)):
        return None
    return None if match["sentence"] is not None and _COMMENT.match(answer) else answer


def _below(text: str, start: int) -> str | None:
    """The answer in the lines below an announcement: one value, or a paragraph of one line."""
    lines = [line.strip() for line in text[start : start + LONGEST].split("\n")]
    while lines and (_RULE.fullmatch(lines[0]) or not unmarked(lines[0])) and lines[0] not in _FENCES:
        lines.pop(0)
    if not lines:
        return None
    first = lines.pop(0)
    closing = first.replace("\\begin{", "\\end{") if first.startswith("\\begin{") else _FENCES.get(first)
    if closing:
        return " ".join(filter(None, lines[: lines.index(closing)])) or None if closing in lines else None
    answer = unmarked(re.sub(r"^(?:[-*>•]\s+)+(?=\S)", "", first))
    alone = not lines or not lines[0] or " " not in answer or number(answer) is not None
    return answer if alone else None
