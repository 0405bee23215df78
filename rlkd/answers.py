"""Final answers: find them in a text, and compare them.

    >>> extract_answer("48/2 = 24 in May, so 72 in all.\\n#### 72")
    '72'
    >>> is_correct("... so it is \\\\boxed{1{,}000}", "1000")
    True

Comparison is exact arithmetic where both answers are plain numbers, and `math-verify` (symbolic) otherwise.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from rlkd.workers.pool import Fault, WorkerPool, inside_worker

# The explicit ways in which an answer is announced. `\boxed{}` needs brace matching and is handled apart.
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_END_TAG = re.compile(r"</answer>", re.IGNORECASE)
_PHRASE = re.compile(r"\b(?:final )?answer is:?[ \t]*([^\n]+?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
_ANY_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?|\.[0-9]+")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")

_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
_MULTIPLIERS = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "quarter"])

VERIFY_SECONDS = 5.0


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
    found = [(match.start(), match[1]) for form in (_HASHES, _PHRASE) for match in form.finditer(text)]
    # Behind the last closing tag, every opening one would be searched to the end of the text.
    end = max((match.end() for match in _END_TAG.finditer(text)), default=0)
    found += [(match.start(), match[1]) for match in _TAG.finditer(text, 0, end)]
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


def is_correct(
    text: str,
    gold: str,
    fallback: Literal["none", "last_number"] = "none",
    *,
    seconds: float = VERIFY_SECONDS,
) -> bool | None:
    """Whether the answer announced in `text` equals `gold`; None where the gold answer itself cannot be read.

    Raises `VerificationError` where a comparison is needed that cannot be made (see `equal`). A text without an
    announced answer is wrong, not unreadable.
    """
    return equal(extract_answer(text, fallback) or "", extract_answer(gold) or gold.strip(), seconds=seconds)


def are_correct(
    texts: Sequence[str],
    golds: Sequence[str],
    fallback: Literal["none", "last_number"] = "none",
    *,
    seconds: float = VERIFY_SECONDS,
) -> list[bool | VerificationError | None]:
    """`is_correct` for many texts, with the error in the place of a result; comparisons run side by side."""
    answers = [extract_answer(text, fallback) for text in texts]
    pairs = [(answer or "", extract_answer(gold) or gold.strip()) for answer, gold in zip(answers, golds, strict=True)]
    return equal_pairs(pairs, seconds=seconds)


def equal(answer: str, gold: str, *, seconds: float = VERIFY_SECONDS) -> bool | None:
    """Whether two answers are the same value; None where `gold` is no mathematical value that can be read.

    What is no plain number is compared by `math-verify`, in a worker process that is killed after `seconds`, on
    whichever thread this is called. Raises `VerificationError` then, and where the comparison breaks down.
    """
    result = equal_pairs([(answer, gold)], seconds=seconds)[0]
    if isinstance(result, VerificationError):
        raise result
    return result


def equal_pairs(
    pairs: Sequence[tuple[str, str]], *, seconds: float = VERIFY_SECONDS
) -> list[bool | VerificationError | None]:
    """`equal` for many pairs of answer and gold, with the error in the place of a result.

    Each distinct pair is compared once, several at a time. An empty answer equals nothing.
    """
    known: dict[tuple[str, str], bool | VerificationError | None] = {}
    hard: list[tuple[str, str]] = []
    for pair in dict.fromkeys(pairs):
        answer, gold = pair
        left, right = number(answer), number(gold)
        if right is not None and (left is not None or not answer.strip()):
            known[pair] = left == right
        elif not gold.strip():
            known[pair] = None
        elif squeezed(answer) == squeezed(gold):
            known[pair] = True
        else:
            hard.append(pair)
    for pair, result in zip(hard, _in_workers(hard, seconds), strict=True):
        if isinstance(result, Fault):
            result = VerificationError(f"comparing {pair[0][:80]!r} with {pair[1][:80]!r}: {result.message}")
        known[pair] = result
    return [known[pair] for pair in pairs]


def _in_workers(pairs: list[tuple[str, str]], seconds: float) -> list[Any]:
    if not pairs:
        return []
    if inside_worker():  # which is under a limit already
        return [_compared(*pair) for pair in pairs]
    return _pool().map(pairs, limit=seconds)


@cache
def _pool() -> WorkerPool:
    # Loaded before workers are forked, so that a replacement starts in milliseconds. Some comparisons do not hang,
    # they eat memory.
    return WorkerPool(_compared, preload=["math_verify", "latex2sympy2_extended", "sympy"], memory=4 * 2**30)


def _compared(answer: str, gold: str) -> bool | None:
    """What math-verify says of two texts; None for a gold answer that it cannot read."""
    from math_verify import verify

    parsed_gold = _parse(gold)
    if not parsed_gold:
        return None
    return bool(verify(parsed_gold, _parse(answer), timeout_seconds=None, raise_on_error=True))


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # It warns that its own limit is off: that one works by signals, on the main thread only. Ours is the worker's.
    for module in ("parser", "grader"):
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    try:
        # Without "no_fallback" any text at all would count as read.
        return parse(
            f"${text}$",
            extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
    except MemoryError:  # math-verify would call this unreadable
        raise
    except Exception:
        return []


def number(text: str) -> Fraction | None:
    """The exact value of a plain number with its usual trimmings ("$1,200.50", "24 clips", "75%"), or None.

    Units and currency are ignored, as answers to word problems name them or not at will: "75%" reads as 75. A single
    letter is no unit but a variable, and "5 million" is not read.
    """
    cleaned = text.strip().rstrip(".").replace("\\$", "").replace("$", "").replace("{,}", "").replace("\\%", "%")
    cleaned = re.sub(r"(?<=\d)[,\s](?=\d{3}\b)", "", cleaned)
    match = re.fullmatch(
        rf"({_PLAIN_NUMBER.pattern})(?>(?:\s*+%)?)(?:\s++([A-Za-z]{{2,}}+[A-Za-z ]*+))?", cleaned.strip()
    )
    if not match or len(match[1]) > 100 or (match[2] and _MULTIPLIERS & set(match[2].lower().split())):
        return None
    numerator, _, denominator = match[1].partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / (int(denominator) if denominator else 1)


def numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order, without sign; thousands commas belong to it. None of over 100 characters.

    >>> [str(value) for value in numbers("1,200 clips at $.50: 600, then 3.")]
    ['1200', '1/2', '600', '3']
    """
    return [Fraction(found.replace(",", "")) for found in _ANY_NUMBER.findall(text) if len(found) <= 100]


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
