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
from rlkd.answers.numbers import number

# Words that begin a reason or a contrast.
REASON = (
    r"(?:because|since|(?<!well )as(?! well| [b-hj-z]\b)|so|thus|hence|therefore|which|namely|meaning|making|"
    r"due to|that is|i\.? ?e\.?|for (?:a|the) (?:total|sum)|rather than|instead of|(?:and |but )?not)(?![\w'])"
)
_WITH_COMMA = re.compile(
    rf"[,;:]\s++(?:{REASON}|(?:where|when|given|obtained|found|considering|after|by|with|using|adding)\b)",
    re.IGNORECASE,
)
# A text may hold "as", "so" or "where"; only these always begin a reason.
_BEHIND_TEXT = re.compile(
    r"\s++(?:because|since|due to)\b|\s*+—\s*+(?=(?:the|an?|it|this|that|which)\b)", re.IGNORECASE
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
    rf"|\s++{REASON}|,?\s++(?:in (?:all|total)|altogether)\b"
    rf"|\s++[-–—]+\s++(?!{_OF_VALUE})(?=[^\W\d_]{{3}}|(?:an?|it|we|he)\b)"
    rf"|\s*+—\s*+(?!{_OF_VALUE})(?=[^\W\d_]{{3}})",
    re.IGNORECASE,
)
_NUMBER_LIKE = re.compile(r"(?:[A-Za-z]\s*+=\s*+)?[-+−–~≈(]?\s*+(?:[$€£¥(]|\\[$(]|\\d?t?frac|)\s*+[-−]?[\d.{]")
_BRACKETS = re.compile(r"(?P<before>[^()]*[^()\s])\s+[(\[](?P<inside>[^()]{1,200})[)\]]\s*+")
_DOUBT = re.compile(
    r"\b(?:wrong|incorrect|cannot|not (?:right|correct)|mistaken|impossible|maybe|perhaps|possibly|could|might|also|"
    r"or \d)\b|n't be\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{3}")


def without_remark(answer: str) -> str:
    """The answer without what follows it; an answer that is doubted or has alternatives stays as it is."""
    like_number = _NUMBER_LIKE.match(answer) is not None
    ends = [found.start() for found in (_WITH_COMMA.search(answer), _BEHIND_TEXT.search(answer)) if found]
    if like_number and (found := _BEHIND_NUMBER.search(answer)):
        ends.append(found.start())
    if ends and not _DOUBT.search(answer, min(ends)):
        answer = answer[: min(ends)].rstrip()
    brackets = _BRACKETS.fullmatch(answer) if like_number else None
    return brackets["before"] if brackets and _explains(brackets["inside"], brackets["before"]) else answer


def _explains(inside: str, before: str) -> bool:
    """Whether brackets hold words on a number, or the calculation whose result it is, and no factor."""
    value = calculated(inside.split("=")[0])
    if value is not None:
        return value == number(before)
    is_remark = _WORD.search(inside) or re.match(REASON, inside, re.IGNORECASE)
    return bool(is_remark) and not re.search(rf"\b{_OF_VALUE}", inside, re.IGNORECASE)
