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
    r"|\s++[-–−]+\s++(?=(?:the|this|that|which)\b)",
    re.IGNORECASE,
)
# Words that belong to a value, or doubt it.
_OF_VALUE = (
    r"(?:or|and|but|maybe|perhaps|possibly|probably|else|either|plus|minus|times|divided|over|to|mod|modulo|base|squared|"
    r"cubed|factorial|hundred|thousand|million|billion|trillion|dozen|half|halves|quarters?|percent|pi|theta|alpha|beta|"
    r"gamma|arc\w*|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt)s?\b"
)
_OTHER_VALUE = (
    rf"(?:{_OF_VALUE}|(?:no|wait|actually|rather|alternatively|otherwise|unless|if|assuming|zero|one|two|three|four|five|"
    r"six|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b)"
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
    rf"|\s++[-–—−]+\s++(?!{_OF_VALUE})(?=[^\W\d_]{{3}}|(?:an?|it|we|he)\b)"
    rf"|\s*+—\s*+(?!{_OF_VALUE})(?=[^\W\d_]{{3}})",
    re.IGNORECASE,
)
_NUMBER_LIKE = re.compile(r"(?:[A-Za-z]\s*+=\s*+)?[-+−–~≈(]?\s*+(?:[$€£¥(]|\\[$(]|\\d?t?frac|)\s*+[-−]?[\d.{]")
_BRACKETS = re.compile(r"(?P<before>[^()]*[^()\s])\s+[(\[](?P<inside>[^()]{1,200})[)\]]\s*+")
_DOUBT = re.compile(
    r"\b(?:wrong|incorrect|cannot|not (?:right|correct)|mistaken|impossible|maybe|perhaps|possibly|could|might|may be|"
    r"also|or \d)\b|n't be\b",
    re.IGNORECASE,
)
# "5, not 4 or 6"
_CONTRAST = re.compile(
    r"\b(?:not|rather than|instead of) [$€£¥]?\d[\d.,]*(?>(?:,? (?:or|nor) [$€£¥]?\d[\d.,]*)+)", re.I
)
_WORD = re.compile(r"[^\W\d_]{3}")
_LIST = re.compile(rf"(?<=\w),? and (?!{_OTHER_VALUE})", re.IGNORECASE)
_SIGNS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}


def without_remark(answer: str) -> str:
    """The answer without what follows it; an answer that is doubted or has alternatives stays as it is."""
    like_number = _NUMBER_LIKE.match(answer) is not None
    ends = [found.start() for found in (_WITH_COMMA.search(answer), _BEHIND_TEXT.search(answer)) if found]
    if like_number and (found := _BEHIND_NUMBER.search(answer)):
        ends.append(found.start())
    if ends and not _DOUBT.search(_CONTRAST.sub("", answer[min(ends) :])):
        answer = answer[: min(ends)].rstrip()
    brackets = _BRACKETS.fullmatch(answer) if like_number else None
    return brackets["before"] if brackets and _explains(brackets["inside"], brackets["before"]) else answer


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
    is_remark = _WORD.search(inside) or re.match(REASON, inside, re.IGNORECASE)
    return bool(is_remark) and not re.search(rf"\b{_OF_VALUE}", inside, re.IGNORECASE)
