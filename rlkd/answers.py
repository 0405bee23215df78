"""Final answers: find them in a text, and compare them.

    >>> extract_answer("48/2 = 24 in May, so 72 in all.\\n#### 72")
    '72'
    >>> is_correct("... so it is \\\\boxed{1{,}000}", "1000")
    True

Comparison is exact arithmetic where both answers are plain numbers, and `math-verify` (symbolic) otherwise.
"""

from __future__ import annotations

import re
import threading
from fractions import Fraction
from typing import Any, Literal

# The explicit ways in which an answer is announced. `\boxed{}` needs brace matching and is handled apart.
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_PHRASE = re.compile(r"\b(?:final )?answer is:?[ \t]*([^\n]+?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_ANY_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")

_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
_MULTIPLIERS = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "quarter"])

VERIFY_SECONDS = 3


class VerificationError(RuntimeError):
    """Two answers could not be compared (not: they differ)."""


def extract_answer(text: str, fallback: Literal["none", "last_number"] = "none") -> str | None:
    """Return the last explicitly announced answer of a text, or None.

    Announced means `#### ...`, `\\boxed{...}`, `<answer>...</answer>` or "the answer is ..."; the one that stands last
    counts, and one that is cut off does not. What stands before a closing think tag is thought, not answer, and is
    passed over. `fallback="last_number"` takes the last number of a text without any of these; that rewards a cut-off
    text that happens to stop at the right number.
    """
    text = text.rpartition("</think>")[2]
    found = [(match.start(), match[1]) for form in (_HASHES, _TAG, _PHRASE) for match in form.finditer(text)]
    boxed = _last_boxed(text)
    if boxed is not None:
        found.append(boxed)
    # Special tokens, and Markdown's emphasis around the answer.
    found = [(place, _SPECIAL_TOKEN.sub("", answer).strip().strip("*_`").strip()) for place, answer in found]
    found = [(place, answer) for place, answer in found if answer]
    if found:
        answer = max(found)[1]
        inner = _last_boxed(answer)
        return inner[1].strip() if inner else answer
    if fallback == "last_number" and (numbers := _NUMBER.findall(text)):
        return numbers[-1]
    return None


def is_correct(text: str, gold: str, fallback: Literal["none", "last_number"] = "none") -> bool | None:
    """Whether the answer announced in `text` equals `gold`; None where the gold answer itself cannot be read.

    Raises `VerificationError` where a comparison is needed that cannot be made (see `equal`). A text without an
    announced answer is wrong, not unreadable.
    """
    gold_answer = extract_answer(gold) or gold.strip()
    answer = extract_answer(text, fallback)
    if answer is not None:
        return equal(answer, gold_answer) if gold_answer else None
    return False if is_readable(gold_answer) else None


def equal(answer: str, gold: str) -> bool | None:
    """Whether two answers are the same value; None where `gold` is no mathematical value that can be read.

    `math-verify` limits its time by signals, which work on the main thread only. Elsewhere an answer that is no plain
    number raises `VerificationError` instead of risking an endless evaluation; so does a comparison that takes longer
    than `VERIFY_SECONDS`.
    """
    left, right = number(answer), number(gold)
    if left is not None and right is not None:
        return left == right
    if squeezed(answer) == squeezed(gold):
        return True
    parsed_gold = _parse(gold)
    if not parsed_gold:
        return None
    parsed = _parse(answer)
    from math_verify import verify
    from math_verify.errors import TimeoutException

    try:
        return bool(verify(parsed_gold, parsed, timeout_seconds=VERIFY_SECONDS, raise_on_error=True))
    except TimeoutException as error:
        raise VerificationError(f"comparing {answer[:80]!r} takes more than {VERIFY_SECONDS} s") from error
    except Exception as error:
        raise VerificationError(f"comparing {answer[:80]!r} with {gold[:80]!r}: {error!r}") from error


def is_readable(gold: str) -> bool:
    """Whether a gold answer is a value that answers can be compared with."""
    return number(gold) is not None or bool(gold and _parse(gold))


def _parse(text: str) -> list[Any]:
    if threading.current_thread() is not threading.main_thread():
        raise VerificationError(
            "math-verify has a time limit on the main thread only; this call came from another one"
        )
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # Without "no_fallback" any text at all would count as read.
    return parse(
        f"${text}$",
        extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=VERIFY_SECONDS,
    )


def number(text: str) -> Fraction | None:
    """The exact value of a plain number with its usual trimmings ("$1,200.50", "24 clips", "75%"), or None.

    Units and currency are ignored, as answers to word problems name them or not at will: "75%" reads as 75. A single
    letter is no unit but a variable, and "5 million" is not read.
    """
    cleaned = text.strip().rstrip(".").replace("\\$", "").replace("$", "").replace("{,}", "").replace("\\%", "%")
    cleaned = re.sub(r"(?<=\d)[,\s](?=\d{3}\b)", "", cleaned)
    match = re.fullmatch(
        rf"({_PLAIN_NUMBER.pattern})(?:\s*+%)?+(?:\s++([A-Za-z]{{2,}}+[A-Za-z ]*+))?", cleaned.strip()
    )
    if not match or len(match[1]) > 100 or (match[2] and _MULTIPLIERS & set(match[2].lower().split())):
        return None
    numerator, _, denominator = match[1].partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / (int(denominator) if denominator else 1)


def numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order, without sign; thousands commas belong to it.

    >>> [str(value) for value in numbers("1,200 clips at $.50: 600, then 3.")]
    ['1200', '1/2', '600', '3']
    """
    return [Fraction(found.replace(",", "")) for found in _ANY_NUMBER.findall(text)]


def squeezed(text: str) -> str:
    """A text without case, currency signs, spaces and a closing full stop, for comparing texts as such."""
    # A space between two digits stays: "1 1/2" is not "11/2".
    return re.sub(r"(?<!\d)\s++|\s++(?!\d)|\$", "", text.strip()).rstrip(".").casefold()


def _last_boxed(text: str) -> tuple[int, str] | None:
    """The place and content of the last box; None for none, an empty one, or one that is cut off."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            content = text[start + len("\\boxed{") : position].strip()
            return (start, content) if content else None
    return None
