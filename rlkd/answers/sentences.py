"""Answers that a text announces in words: "The answer is 72.", "**Answer:** 72", or a heading "Answer" above 72.

>>> last_sentence("So the answer is 72, since 48 + 24 = 72.")
(7, '72, since 48 + 24 = 72.')
>>> last_sentence("I don't know if the answer is 72.")
"""

from __future__ import annotations

import re

from rlkd.answers.numbers import number, read_quantity
from rlkd.answers.remarks import without_remark

LONGEST = 1000
"""Characters of a line that are read as an answer: no answer to an exercise is longer, and it bounds the time."""

# The word itself, in the languages that models answer in.
_NOUN = (
    r"(?:(?<![^\W_])(?:answers?|ans|final result|(?:correct|right|best|final) (?:option|choice)|"
    r"respuestas?(?: final| correcta)?|antwort|r[ée]ponse(?: finale)?|resposta(?: final)?|"
    r"risposta(?: finale)?|ответ|(?P<result>result)|"
    r"(?:lösung|soluci[óo]n)(?=(?: ist| lautet| es)?:? [$\\]?[-−]?\d))(?![^\W_])|答案|答え|정답|(?<![가-힣])답)[*_]*+"
)
_ORDINAL = r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|\d+(?:st|nd|rd|th))\b"
_BRACKETS = r" ?\([^()\n]{0,40}\)"
# "The answer to this question", "Answer (in cm)", "the answer, rounded to two places,".
_TO_WHAT = (
    rf"(?: (?:to|for|of) (?:(?:this|the|that|our|your|each) )?(?:(?!{_ORDINAL})\w+ )?"
    r"(?:question|problem|exercise|task|puzzle|riddle)(?: \d+)?"
    rf"|{_BRACKETS}"
    r"|,? (?:rounded|in (?:simplest|lowest|standard)|to the nearest) [^\n.:;,]{1,40}?,?"
    r"|(?: that| which)?(?: we| I| you)(?: have)? (?:get|got|want|need|seek|find|found|obtain(?:ed)?|are looking for)"
    r"| here| in total| in this case)?"
)
_BEFORE_NUMBER = r"(?=,?:?[ ][*_(]*(?:\$|\\[($])?[-+−–]?\.?\d)"
# "The answer is ultimately 72", but not "hardly 72", nor "possibly 72".
_ADVERB = (
    r"(?!(?:un)?likely|(?:im)?(?:possibly|probably)|hardly|barely|scarcely|rarely|supposedly|presumably|allegedly|"
    r"falsely|wrongly|inaccurately|incorrectly|mistakenly|erroneously|potentially|conceivably|seemingly|"
    r"hopefully|theoretically|hypothetically|tentatively|arguably|part(?:ial)?ly|(?:hour|dai|week|month|year)ly)"
    rf"[a-z]{{2,20}}ly{_BEFORE_NUMBER}"
)
FILLER = (
    r"(?>(?:,? ?\b(?:therefore|thus|hence|then|so|indeed|now|simply|just|clearly|obviously|finally|also|still|exactly|"
    r"precisely|actually|really|always|definitely|certainly|surely|evidently|consequently|in fact|of course|"
    r"as follows|the following|(?:found|calculated|computed|determined) to be|calculated as|given (?:by|as)|equal to|"
    rf"about|approximately|approx\b\.?|around|roughly|the number|a total of|nothing but|none other than|{_ADVERB}|"
    rf"(?:(?:once )?again|in total|almost|close to){_BEFORE_NUMBER})(?!\w)[,:]?)*)"
)
_VERB = (
    r"(?: ?(?:=|＝|应该是|应为|是|为|為|は|은|는)"
    r"| (?:(?:is|was) going to be|is|are|was|were|(?:does )?equals?|becomes?|amounts? to|(?:adds|sums) up to"
    r"|es|est|ist|lautet|é|è"
    r"|(?:will|would|shall|should|must|can only|has to|have to|needs to|ought to)"
    r"(?: \w+ly| then| thus| hence| therefore| indeed)? (?:be|equal|come to)"
    r"|can be (?:found|shown|seen|calculated|computed|written) (?:to be|as)|ends up (?:being|as)"
    r"|(?:comes?|came|works?|worked|turns?|turned)(?: out)? (?:to be|to|as|at))(?![\w'])"
    r"|(?:['’]s| remains?| stays)(?= [-$\d\\]))"
)
_ANNOUNCED = re.compile(
    rf"{_NOUN}(?:(?P<sentence>{_TO_WHAT}{FILLER}{_VERB}{FILLER}[ \t]*+(?:[:：]|,(?=\s))?{FILLER})"
    rf"|(?P<label>{_TO_WHAT}(?:[*_ \t]*+(?:[:：=→⇒]|[-=]>)|[ \t]++[-–—](?=[ \t])"
    rf"|(?P<bracket>\])(?!\()[*_]*+:?){FILLER})"
    rf"|(?P<heading>(?:{_BRACKETS})?[*_]*+[ \t]*+(?=\n)))",
    re.IGNORECASE,
)

# A clause before an announcement may take it back; a label may name another answer than the text's own final one.
_CLAUSE = re.compile(r"[.!?;:,\n]|\b(?:so|but|hence|thus|therefore|then|because|means)\b", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:if|whether|unless|suppos\w+|assum\w+|imagine|doubt\w*|never|not|cannot|no longer|nobody|no one|false|"
    r"without|what|nor|or|either)\b"
    r"|n['’]t\b|\bno(?: (?!the|my|our)\w+)? *\Z",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:check\w*|verif\w+|validat\w+|confirm\w*|test\w*|wrong|incorrect|other|previous|first|sample|example|possible|"
    r"expected|his|her|their|old|initial|intermediate|partial)\b|['’]s\b",
    re.IGNORECASE,
)
# "The third answer is 72" names one of several; "2 points/answer = 48 points" names a rate.
_ONE_OF_SEVERAL = re.compile(
    rf"\b(?:{_ORDINAL}|previous|next|other|wrong|incorrect|old|initial|intermediate|partial|sample|example) \Z"
    r"|\d[^\n]*/\Z",
    re.IGNORECASE,
)
# "The answer is reasonable" speaks about an answer.
_COMMENT = re.compile(
    r"(?:(?:indeed|also|therefore|thus) )?(?:correct|right|consistent|reasonable|plausible|confirmed|verified|valid|"
    r"sensible|checked|(?:shown |given |found )?(?:above|below))\b",
    re.IGNORECASE,
)
# These also may be answers: they count where nothing else is announced.
_REMARK = re.compile(
    r"(?:(?:now|also|therefore|thus|hence|then|indeed|quite|very|so|pretty|fairly|already) )*"
    r"(?:(?:clear|obvious|evident|unique|simple|straightforward|easy|exact|final|complete|unchanged|justified|supported|"
    r"derived|obtained|known|proved|proven|boxed|stated)\b|"
    r"as (?:required|expected|desired|needed|claimed|stated|shown|"
    r"given|wanted|above|below|before|follows)\b|(?:the same )?as (?:above|before)\b|in (?:agreement|line|accordance|"
    r"the box|bold)\b|[a-z]+ed (?:by|in|from|above|below|using|through) (?!\d))[^\d$\\=]*\Z"
)
_ALONE = re.compile(r"[\s>#*_\-•\d.)(]*(?:(?:the|my|our|final|correct) )*", re.IGNORECASE)
# A line that stands in brackets, quotes or bars of a table as a whole.
_OPENED = re.compile(
    r"[\s>#*_]*+(\"|“|\(|\[|\||\$|\\\()[ \t]*+[*_]*+(?:(?:the|my|our|final|correct) )*", re.IGNORECASE
)
_CLOSING = {'"': '"', "“": "”", "(": ")", "[": "]", "|": "|", "$": "$", "\\(": "\\)"}
_PLAIN = re.compile(
    r"^[ \t>#*_\-•]*+(?:the |my |our )?(?:(?:final )?result[*_]*+[ \t]*+:|final answer[*_]*+(?=[ \t]))"
    r"[*_]*+([^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"(?:(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bi\.e)(?<!\be\.g)\.|…|(?<!!)!++(?!\s*[=+\-*/^]))"
    r"(?=[\"'”’*_)]*+(?:\s|$))|[。！]"
)
_STRONG = re.compile(r"(?<!\S)\*\*([^*\n]{1,200})\*\*(?!\w)")
_ORNAMENTS = "*_` \t\r\n✓✔✅☑🎉🎯👍👏💪🚀⭐🌟✨💯🥳🙂😀😁😃😄😆😉😊😎😇🤗∎■□◼\ufe0f\u200d"
_AT_THE_END = re.compile(
    r"(?:(?<=\s)[:;]-?\)|\\(?:blacksquare|square|qed)\b\$?|(?<=\d)\s?(?:です|입니다|이다|である))\Z"
)
# A list with one item begins with 1.
_FIRST_MARK = re.compile(r"(?:(?:[-*>•]|1[.)])\s+)+(?=\S)")
_LIST_MARK = re.compile(r"(?:[-*>•]|\d{1,2}[.)])\s+(?=\S)")
_LETTER = re.compile(r"(?:option )?[(\[]?([A-Z])[)\].]*")
_LETTER_FIRST = re.compile(r"(?:option )?[(\[]?[A-Z](?:[)\].:,]\s|[)\]])")
_RULE = re.compile(r"[=\-]{3,}")
_QUESTION = re.compile(r"[?？]")
_FENCES = {"$$": "$$", "\\[": "\\]", "```": "```"}


def last_sentence(text: str, remarks: bool = False) -> tuple[int, str] | None:
    """Start and text of the last announcement in words, to the end of its line; in linear time.

    `remarks`: also where it may speak about an answer, "The answer is clear".
    """
    # A text with so many announcements that announce nothing is not worth the time.
    for match in reversed(list(_ANNOUNCED.finditer(text))[-200:]):
        answer = _announced(text, match)
        if answer is not None and (remarks or not (match["sentence"] and _REMARK.match(first_sentence(answer)))):
            return match.start(), answer
    return None


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence, without the full stop."""
    end = _END.search(text)
    return text[: end.start()].rstrip(".…") if end and end.start() else text


def unmarked(text: str) -> str:
    """The text without Markdown emphasis, white space and ornaments around it."""
    return _AT_THE_END.sub("", _STRONG.sub(r"\1", text).strip(_ORNAMENTS)).rstrip(_ORNAMENTS)


def last_plain_result(text: str) -> tuple[int, str] | None:
    """Start and text of the number in the last line that is only "Result: 72" or "Final answer 72"."""
    for match in reversed(list(_PLAIN.finditer(text))[-200:]):
        answer = unmarked(match[1][:LONGEST])
        if _is_number(answer):
            return match.start(), answer
    return None


def _announced(text: str, match: re.Match[str]) -> str | None:
    start, end = match.span()
    line = text[max(0, start - 200) : start].rpartition("\n")[2]
    clause = _CLAUSE.split(line)[-1]
    opened = _OPENED.fullmatch(line)
    if _ONE_OF_SEVERAL.search(clause) or (match["bracket"] and not (opened and opened[1] == "[")):
        return None
    if _HEDGED.search(clause) or (match["sentence"] is None and _OTHERS.search(clause)):
        return None
    if match["result"]:
        return _result_below(text, end, line)
    if match["heading"] is not None:
        return _below(text, end) if _ALONE.fullmatch(line) else None
    rest, line_end, _ = text[end : end + LONGEST].partition("\n")
    rest = re.split("</answer>", rest, maxsplit=1, flags=re.IGNORECASE)[0]
    answer = unmarked(rest)
    if opened and not match["bracket"]:
        answer = _without_closing(answer, _CLOSING[opened[1]])
    if not answer:
        return _below(text, end + len(rest)) if line_end else None
    if _QUESTION.search(first_sentence(answer)):
        return None
    if match["sentence"] is not None and _COMMENT.match(answer):
        return None
    return with_lines_below(answer, text[end : end + LONGEST].partition("\n")[2]) if line_end else answer


def with_lines_below(answer: str, below: str) -> str:
    """An answer as a list, where each line right below it is another one alone: a number, a letter, yes or no."""
    first = without_remark(first_sentence(answer))
    letter = _LETTER_FIRST.match(answer)
    kind = _alone(letter[0].strip(" :,") if letter else first)
    listed = [first]
    for line in below.split("\n"):
        other = _alone(unmarked(_LIST_MARK.sub("", line.strip())))
        if kind is None or other is None or other[0] != kind[0]:
            break
        if other != kind:
            listed.append(unmarked(_LIST_MARK.sub("", line.strip())))
    return ", ".join(listed) if len(listed) > 1 else answer


def _alone(text: str) -> tuple[str, object] | None:
    """Kind and value of a text that is only one value: a number, the letter of an option, yes or no."""
    text = text.rstrip(".!")
    if (value := number(text)) is not None:
        return "number", value
    if letter := _LETTER.fullmatch(text):
        return "letter", letter[1]
    word = text.casefold()
    return ("truth", word) if word in ("yes", "no", "true", "false") else None


def _without_closing(answer: str, closing: str) -> str:
    said = answer.rstrip(".!")
    opens = said.count("(") if closing == ")" else 0
    return unmarked(said.removesuffix(closing)) if said.count(closing) > opens else answer


def _is_number(answer: str) -> bool:
    return read_quantity(without_remark(first_sentence(answer))) is not None


def _result_below(text: str, start: int, line: str) -> str | None:
    """The number below a heading "Result": a line with `#`, or a bold one. "The result is 72" announces nothing."""
    if not (
        _ALONE.fullmatch(line)
        and ("#" in line or "**" in line)
        and not unmarked(text[start : start + LONGEST].partition("\n")[0])
    ):
        return None
    answer = _below(text, start)
    return answer if answer is not None and _is_number(answer) else None


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
    answer = unmarked(_FIRST_MARK.sub("", first, count=1) if _FIRST_MARK.match(first) else first)
    alone = not lines or not lines[0] or " " not in answer or number(answer) is not None
    return with_lines_below(answer, "\n".join(lines)) if alone else None
