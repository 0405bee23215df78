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
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from rlkd.workers.pool import Fault, WorkerPool, inside_worker

# The explicit ways to announce an answer. `\boxed{}` needs brace matching and is handled separately.
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
"""Default time limit of one comparison: answers to exercises take milliseconds."""

Fallback = Literal["none", "last_number"]


class VerificationError(RuntimeError):
    """Two answers could not be compared, which does not mean that they differ."""


def extract_answer(text: str, fallback: Fallback = "none") -> str | None:
    """Return the last explicitly announced answer of a text, or None.

    Announced means `#### ...`, `\\boxed{...}`, `<answer>...</answer>` or "the answer is ...". The last announcement
    counts; a truncated one does not, nor does anything before a closing think tag. `fallback="last_number"` takes the
    last number of a text without an announcement; that also rewards a truncated text that happens to stop at the right
    number.
    """
    text = text.rpartition("</think>")[2]
    found = [(match.start(), match[1]) for form in (_HASHES, _PHRASE) for match in form.finditer(text)]
    # After the last closing tag, the search from each opening tag would go to the end of the text.
    end = max((match.end() for match in _END_TAG.finditer(text)), default=0)
    found += [(match.start(), match[1]) for match in _TAG.finditer(text, 0, end)]
    boxed = _last_boxed(text)
    if boxed is not None:
        found.append(boxed)
    # Without special tokens and Markdown emphasis.
    found = [(start, _SPECIAL_TOKEN.sub("", answer).strip().strip("*_`").strip()) for start, answer in found]
    found = [(start, answer) for start, answer in found if answer]
    if found:
        answer = max(found)[1]
        inner = _last_boxed(answer)
        return inner[1].strip() if inner else answer
    if fallback == "last_number" and (numbers := _NUMBER.findall(text)):
        return numbers[-1]
    return None


def is_correct(text: str, gold: str, fallback: Fallback = "none", *, seconds: float = VERIFY_SECONDS) -> bool | None:
    """Whether the answer announced in `text` equals `gold`; None if the gold answer is unreadable.

    A text without an announced answer is wrong. Raises `VerificationError` if the comparison fails (see `equal`).
    """
    return _raised(are_correct([text], [gold], fallback, seconds=seconds)[0])


def are_correct(
    texts: Sequence[str], golds: Sequence[str], fallback: Fallback = "none", *, seconds: float = VERIFY_SECONDS
) -> list[bool | VerificationError | None]:
    """`is_correct` for many texts, compared in parallel; a failed comparison gives its error as the result."""
    answers = [extract_answer(text, fallback) for text in texts]
    pairs = [(answer or "", extract_answer(gold) or gold.strip()) for answer, gold in zip(answers, golds, strict=True)]
    return equal_pairs(pairs, seconds=seconds)


def accuracy(row: Mapping[str, Any], text: str) -> float | None:
    """1 if the answer announced in `text` equals that of the row, else 0; None for a row without a readable answer.

    The metric of evaluations: an answer that cannot be compared in time is wrong.
    """
    if row.get("answer") is None:
        return None
    try:
        correct = is_correct(text, row["answer"])
    except VerificationError:
        return 0.0
    return None if correct is None else float(correct)


def equal(answer: str, gold: str, *, seconds: float = VERIFY_SECONDS) -> bool | None:
    """Whether two answers have the same value; None if `gold` is not a readable mathematical value.

    Anything but plain numbers is compared by `math-verify`, in a worker process that is killed after `seconds`,
    whichever thread calls. Raises `VerificationError` then, and if the comparison breaks down.
    """
    return _raised(equal_pairs([(answer, gold)], seconds=seconds)[0])


def _raised(result: bool | VerificationError | None) -> bool | None:
    if isinstance(result, VerificationError):
        raise result
    return result


def equal_pairs(
    pairs: Sequence[tuple[str, str]], *, seconds: float = VERIFY_SECONDS
) -> list[bool | VerificationError | None]:
    """`equal` for many pairs of answer and gold; a failed comparison gives its error as the result.

    Each distinct pair is compared once, several in parallel. An empty answer equals nothing.
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
    for pair, result in zip(hard, compare_in_workers(_compared, hard, seconds), strict=True):
        if isinstance(result, Fault):
            result = VerificationError(f"comparing {pair[0][:80]!r} with {pair[1][:80]!r}: {result.message}")
        known[pair] = result
    return [known[pair] for pair in pairs]


def compare_in_workers(compare: Callable[..., Any], calls: Sequence[tuple[Any, ...]], seconds: float) -> list[Any]:
    """The results of `compare(*call)` in worker processes, a `Fault` for a call that takes over `seconds` or dies.

    `compare` is a module-level function that uses math-verify. Inside a worker, which has a limit already, it is
    called directly.
    """
    if not calls:
        return []
    if inside_worker():
        return [compare(*call) for call in calls]
    return comparison_pool(compare).map(calls, limit=seconds)


@cache
def comparison_pool(compare: Callable[..., Any]) -> WorkerPool:
    """The worker processes of `compare_in_workers`."""
    # Preloaded, so that a killed worker is replaced in milliseconds. Some comparisons use up memory instead of time.
    preload = ["math_verify", "latex2sympy2_extended", "sympy", compare.__module__]
    return WorkerPool(compare, preload=preload, memory=4 * 2**30)


@cache
def math_verify() -> Any:
    """The module math_verify, without its warnings that time limits are off: workers have their own."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.math_normalization"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


def read_by_math_verify(text: str, **options: Any) -> list[Any]:
    """The expressions that math-verify parses from a text; none if it cannot be read."""
    try:
        return list(math_verify().parse(text, parsing_timeout=None, raise_on_error=True, **options))
    except MemoryError:  # math-verify would treat this as unreadable
        raise
    except Exception:
        return []


def _compared(answer: str, gold: str) -> bool | None:
    """Whether math-verify finds two texts equal; None if it cannot read `gold`."""
    parsed_gold = _parse(gold)
    if not parsed_gold:
        return None
    return bool(math_verify().verify(parsed_gold, _parse(answer), timeout_seconds=None, raise_on_error=True))


def _parse(text: str) -> list[Any]:
    library = math_verify()
    expressions = [library.LatexExtractionConfig(), library.ExprExtractionConfig()]
    # With a fallback, any text would count as read.
    return read_by_math_verify(f"${text}$", extraction_config=expressions, fallback_mode="no_fallback")


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, with or without unit ("$1,200.50", "24 clips", "75%"), or None.

    Units and currency are ignored, since answers to word problems may omit them: "75%" reads as 75. A single letter is
    a variable, not a unit, and "5 million" is not read.
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
    """All numbers of a text in order, without sign, with thousands commas; those over 100 characters are left out.

    >>> [str(value) for value in numbers("1,200 clips at $.50: 600, then 3.")]
    ['1200', '1/2', '600', '3']
    """
    return [Fraction(found.replace(",", "")) for found in _ANY_NUMBER.findall(text) if len(found) <= 100]


def squeezed(text: str) -> str:
    """A text in lower case without dollar signs, spaces and a closing full stop, for comparison as text."""
    # A space between two digits stays: "1 1/2" is not "11/2".
    return re.sub(r"(?<!\d)\s++|\s++(?!\d)|\$", "", text.strip()).rstrip(".").casefold()


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Start and content of the last box; None if there is none, or it is empty or truncated."""
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
