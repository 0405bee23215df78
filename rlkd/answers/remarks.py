"""What follows an answer in its sentence and does not belong to it: reasons, remarks in brackets, contrasts.

>>> without_remark("5, because 2+3=5")
'5'
>>> without_remark("72 (48 + 24)")
'72'
>>> without_remark("4, maybe 5")
'4, maybe 5'
"""

from __future__ import annotations

import re

from rlkd.answers.calculations import calculated
from rlkd.answers.numbers import number, numbers

# Words that begin a reason or a contrast.
REASON = (
    r"(?:because|since|(?<!well )as(?! well| [b-hj-z]\b)|so|thus|hence|therefore|which|namely|meaning|making|"
    r"due to|that is|i\.? ?e\.?|for (?:a|the) (?:total|sum)|rather than|instead of|"
    r"(?:and |but )?not)(?![\w'])"
)
# The beginning of a calculation, which is no second answer: " 2 + 3", " 2 and 3".
_SUM = r"\s+\(?[$€£¥]?\d[\d.,]*\)?\s*[-+*/×·−]\s*\(?[$€£¥]?\d"
_WITH_COMMA = re.compile(
    rf"[,;:]\s++(?:{REASON}|(?:where|when|given|obtained|found|considering|after|by|with|using|adding|"
    r"equivalently|in other words)\b"
    rf"|(?:for|from)\b(?={_SUM}))",
    re.IGNORECASE,
)
# A text may hold "as", "so" or "where"; only these always begin a reason.
_BEHIND_TEXT = re.compile(
    r"\s++(?:because|since|due to)\b|\s*+—\s*+(?=(?:the|an?|it|this|that|which)\b)"
    r"|[,;]\s++(?:with |my )*confidence\b",
    re.IGNORECASE,
)
_NAMED_AGAIN = re.compile(r"\s++[-–−]+\s++(?=(?:the|this|that|which)\b)", re.IGNORECASE)
# Words that belong to a value, or doubt it.
_OF_VALUE = (
    r"(?:or|and|but|maybe|perhaps|possibly|probably|else|either|plus|minus|times|divided|over|to|mod|modulo|base|squared|"
    r"cubed|factorial|hundred|thousand|million|billion|trillion|dozen|half|halves|quarters?|percent|pi|theta|alpha|beta|"
    r"gamma|arc\w*|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)s?\b"
)
_NUMBER_WORD = (
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
)
_OTHER_VALUE = (
    rf"(?:{_OF_VALUE}|(?:no|wait|actually|rather|alternatively|otherwise|unless|if|assuming|{_NUMBER_WORD})\b)"
)
# "4 - the tax" subtracts; these words behind a dash speak about the number before it.
_RESTATES = (
    r"(?:(?:th(?:is|at|ese|ose)|which|it|we|he|she|they|I|because|since|as|exactly|so|not)\b"
    r"|(?:(?:the|our|my|a|an|its|his|her|their) )?"
    r"(?:(?:final|correct|right|total|only|same|required|combined|exact) )*"
    r"(?:sum|product|difference|quotient|ratio|total|result|number|amount|answer|value|count|solution|average|mean|"
    r"area|perimeter|volume|length|correct|required)\b)"
)
# Behind a number, any words without another value are a remark, and so is its calculation.
_BEHIND_NUMBER = re.compile(
    rf"[,;:]\s++(?:the|this|we|she|he|it|they)\b|[,;:]\s++(?=\d[\d\s.]*[-+*/×·][-+*/×·\d\s.]*=)"
    rf"|[,;]\s++(?=I\b|[^\W\d_]{{2}})(?!\D*\b{_OTHER_VALUE})(?=\D*$)"
    rf"|[,;]\s++and\s++(?=(?:I|we|that|this|it|you|so)\b)(?!\D*\b{_OTHER_VALUE})(?=\D*$)"
    rf"|\s++{REASON}|\s++I (?:think|believe|am sure)\b(?!\D*\b{_OTHER_VALUE})(?=\D*$)"
    rf"|\s++by [a-z]+ing\b|\s++from\b(?={_SUM})"
    r"|\s++(?:when|where)\b(?!.*(?:\b(?:and|or|but|if|otherwise|else)\b|[,;]))"
    r"|\s++\[\d\]\Z|,?\s++(?:in (?:all|total)|altogether)\b"
    rf"|\s++[-–−]+\s++(?={_RESTATES})|\s*+—\s*+(?!{_OTHER_VALUE})(?=[^\W\d_]{{3}}|(?:an?|it|we|he|I)\b)",
    re.IGNORECASE,
)
_NUMBER_LIKE = re.compile(r"(?:[A-Za-z]\s*+=\s*+)?[-+−–~≈(]?\s*+(?:[$€£¥(]|\\[$(]|\\d?t?frac|)\s*+[-−]?[\d.{]")
_BRACKETS = re.compile(r"(?P<before>[^()]*[^()\s])\s+[(\[](?P<inside>[^()]{1,200})[)\]]\s*+")
_DOUBT = re.compile(
    r"\b(?:wrong|incorrect|cannot|not (?:right|correct)|mistaken|impossible|maybe|perhaps|possibly|could|might|may be|"
    r"also|guess\w*|unsure|uncertain|not sure|doubt\w*|or \d)\b"
    r"|n['’]t be\b|\b(?:is|was|does)n['’]t\b|\bor (?:(?:maybe|even|rather) )?(?=\w+\W*\Z)",
    re.IGNORECASE,
)
_VALUE_WORD = rf"[$€£¥]?[-−]?\d[\d.,]*|(?:[a-z]+-)?(?:{_NUMBER_WORD})|(?-i:[a-z])"
# Words behind a number that change it, and those that deny it.
_CHANGES = re.compile(
    r"[\W_]*(?:(?:the|then|when|where|once|and|but|which|is|it|so|really|actually|by|if|its|their)\s+)*"
    r"(?:halv(?:ed|ing)|doubl(?:ed|ing)|tripl(?:ed|ing)|negat(?:ed|ing)|invert(?:ed|ing)|squar(?:ed|ing)|cub(?:ed|ing)|"
    r"negative|opposite|inverse|reciprocal|alternatives?|others?|less|"
    r"(?:reduced|increased|decreased|lowered|raised|divided|multiplied) by)\b",
    re.IGNORECASE,
)
_NOT = re.compile(rf"\bnot\b(?:\s+(?:the\s+)?(?P<value>(?:{_VALUE_WORD})(?!\w)))?", re.IGNORECASE)
_ENDS_IN_VALUE = re.compile(
    r"(?:[\s,:;—–-]|\b)(?:is|are|was|were|being|has|have|equals|so|thus|hence|therefore|which|namely|meaning|making|"
    r"that is|i\.? ?e\.?|really|actually),?\s+"
    rf"(?P<value>{_VALUE_WORD})\W*\Z",
    re.IGNORECASE,
)
_WHY = re.compile(
    r"\W*(?:because|since|as|due to|where|when|given|for|from|considering|after|with|using)\b", re.IGNORECASE
)
# "5, not 4 or 6"
_CONTRAST = re.compile(
    r"\b(?:not|rather than|instead of) [$€£¥]?\d[\d.,]*(?>(?:,? (?:or|nor) [$€£¥]?\d[\d.,]*)+)", re.I
)
_ONLY_REASON = re.compile(
    r"\s*,?\s*(?:because|since|namely|that is|i\.? ?e)(?!\w)|\s*,\s*(?:which|as|so|thus|hence|therefore)(?!\w)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{3}")
# "4: two plus two", "4 - two plus two"
_CALCULATION = re.compile(r"(?::|\s[-–−]+|—)\s+")
_LONGEST = 200
_LIST = re.compile(rf"(?<=\w),? and (?!{_OTHER_VALUE})", re.IGNORECASE)
_SIGNS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}


def without_remark(answer: str) -> str:
    """The answer without what follows it; an answer that is doubted or has alternatives stays as it is."""
    like_number = _NUMBER_LIKE.match(answer) is not None
    ends = [found.start() for found in (_WITH_COMMA.search(answer), _BEHIND_TEXT.search(answer)) if found]
    if found := (_BEHIND_NUMBER if like_number else _NAMED_AGAIN).search(answer):
        ends.append(found.start())
    if ends and not _takes_back(answer[min(ends) :], answer[: min(ends)].rstrip()):
        answer = answer[: min(ends)].rstrip()
    elif like_number and (mark := _CALCULATION.search(answer)):
        value = calculated(_in_signs(answer[mark.end() :][:_LONGEST]))
        if value is not None and value == number(answer[: mark.start()]):
            answer = answer[: mark.start()].rstrip()
    brackets = _BRACKETS.fullmatch(answer) if like_number else None
    return brackets["before"] if brackets and _explains(brackets["inside"], brackets["before"]) else answer


def without_reason(answer: str) -> str:
    """The answer without a reason behind it; contrasts and other remarks stay."""
    short = without_remark(answer)
    return short if _ONLY_REASON.match(answer[len(short) :]) else answer


def _takes_back(tail: str, answer: str) -> bool:
    """Whether what follows an answer doubts it; behind a number also: changes or denies it, or names another value."""
    if _DOUBT.search(_CONTRAST.sub("", tail)):
        return True
    value = number(answer)
    if value is None or _CHANGES.match(tail):
        return value is not None
    if _WHY.match(tail):
        return False
    denied = any(not each["value"] or number(each["value"]) == value for each in _NOT.finditer(tail))
    last = _ENDS_IN_VALUE.search(tail)
    return denied or (last is not None and number(last["value"]) != value)


def _in_signs(calculation: str) -> str:
    """A calculation in words ("two plus 3") in digits and signs."""
    for name, sign in _SIGNS.items():
        calculation = re.sub(rf"\b{name}\b", sign, calculation)
    return re.sub(r"[a-z]+(?:[ -][a-z]+)*", _in_digits, calculation)


def _in_digits(match: re.Match[str]) -> str:
    value = number(match[0])
    return match[0] if value is None else str(value)


def _explains(inside: str, before: str) -> bool:
    """Whether brackets hold words on a number, or the calculation whose result it is, and no factor."""
    parts = [calculated(_in_signs(part)) for part in inside.removeprefix("=").split("=")]
    if parts[0] is not None:
        return set(parts) <= {number(before), None}
    # "72 (April and May)" and "72 (48 in April and 24 in May)" explain; "72 (and 73)" does not.
    if _LIST.search(inside) and (not re.search(r"\d", inside) or sum(numbers(inside)) == number(before)):
        inside = _LIST.sub(",", inside)
    if _CHANGES.match(inside):
        return False
    is_remark = _WORD.search(inside) or re.match(REASON, inside, re.IGNORECASE)
    return bool(is_remark) and not re.search(rf"\b{_OF_VALUE}", inside, re.IGNORECASE)
