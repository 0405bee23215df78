"""Compare answers: numbers, times and words as they are read, other mathematics by Math-Verify.

`docs/answers.md` says in tables what is equal.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

from rlkd.answers.announcements import Fallback, answer_and_gold, extract_answer
from rlkd.answers.clock import Clock, read_clock
from rlkd.answers.notation import plain
from rlkd.answers.numbers import Quantity, decimal_comma, read_quantity, squeezed
from rlkd.answers.remarks import REASON, without_reason, without_remark
from rlkd.answers.symbolic import compared, is_one_word, is_words, sound
from rlkd.workers.pool import Fault, WorkerPool, inside_worker

VERIFY_SECONDS = 5.0
"""Default time limit of one comparison: answers to exercises take milliseconds."""

_LISTED = re.compile(r"\s*[\[(]\s*['\"]")
# An answer that can equal a number must hold a digit, a command, or a constant.
_CALCULATES = re.compile(r"[\d\\=πi√∞]|(?<![A-Za-z])(?:e|inf|infinity)(?![A-Za-z])")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]{2,}")
_REMARK = re.compile(rf"\W*{REASON}", re.IGNORECASE)
_RATIO = re.compile(r"\d[\d.,]*(?:\s*:\s*\d[\d.,]*)+")
# Math-Verify reads some of these without their points.
_FIGURE = re.compile(
    r"\\(?P<kind>triangle|angle|widehat|vec|overline|overrightarrow|overleftrightarrow)(?![A-Za-z])\s*\{?\s*"
    r"(?P<points>(?:[A-Z]'*)+|[a-z])\s*\}?"
)
# A longer answer is no answer.
_LONGEST = 10_000
# Gold answers that can be compared, found where a comparison with them failed, by the function that tried them.
_sound_golds: set[tuple[Callable[..., Any], tuple[Any, ...]]] = set()


class VerificationError(RuntimeError):
    """A gold answer cannot be compared with anything, which does not mean that an answer is wrong."""


def is_correct(
    text: str,
    gold: str,
    fallback: Fallback = "none",
    *,
    prefilled: bool = False,
    seconds: float = VERIFY_SECONDS,
) -> bool | None:
    """Whether the answer announced in `text` equals `gold`; None if the gold answer is unreadable.

    A text without an announced answer is wrong. Raises `VerificationError` for a gold answer that cannot be compared.
    """
    return _raised(are_correct([text], [gold], fallback, prefilled=prefilled, seconds=seconds)[0])


def are_correct(
    texts: Sequence[str],
    golds: Sequence[str],
    fallback: Fallback = "none",
    *,
    prefilled: bool = False,
    seconds: float = VERIFY_SECONDS,
    stopped: set[int] | None = None,
) -> list[bool | VerificationError | None]:
    """`is_correct` for many texts, compared in parallel; a failed comparison gives its error as the result.

    `stopped` as in `equal_pairs`.
    """
    pairs = [
        answer_and_gold(text, gold, fallback, prefilled=prefilled) for text, gold in zip(texts, golds, strict=True)
    ]
    return equal_pairs(pairs, seconds=seconds, stopped=stopped)


def accuracy(row: Mapping[str, Any], text: str, *, prefilled: bool = False) -> float | None:
    """1 if the answer announced in `text` equals that of the row, else 0; None for a row without a readable answer.

    The metric of evaluations; `prefilled` as in `after_thought`. None also where the row's answer cannot be compared.
    """
    if row.get("answer") is None:
        return None
    try:
        correct = is_correct(text, row["answer"], prefilled=prefilled)
    except VerificationError:
        return None
    return None if correct is None else float(correct)


def equal(answer: str, gold: str, *, seconds: float = VERIFY_SECONDS) -> bool | None:
    """Whether two answers have the same value; None if `gold` cannot be read.

    Mathematics other than plain numbers is compared by `math-verify`, in a worker process that is killed after
    `seconds`, whichever thread calls. An answer that makes it hang or die is wrong; a gold answer that does so raises
    `VerificationError`.
    """
    return _raised(equal_pairs([(answer, gold)], seconds=seconds)[0])


def _raised(result: bool | VerificationError | None) -> bool | None:
    if isinstance(result, VerificationError):
        raise result
    return result


def equal_pairs(
    pairs: Sequence[tuple[str, str]], *, seconds: float = VERIFY_SECONDS, stopped: set[int] | None = None
) -> list[bool | VerificationError | None]:
    """`equal` for many pairs of answer and gold; a failed comparison gives its error as the result.

    Each distinct pair is compared once, several in parallel. An empty answer equals nothing. A gold answer may be
    announced ("#### 72"), as in `are_correct`. The places of answers that are wrong because their comparison was
    stopped are added to the set `stopped`, if given: on another day, the machine may be faster.
    """
    known: dict[tuple[str, str], bool | VerificationError | None] = {}
    hard: list[tuple[str, str]] = []
    for pair in dict.fromkeys(pairs):
        answer, gold = pair
        verdict = _equal_as_read(answer, gold if answer.strip() == gold.strip() else _gold(gold))
        if verdict == "mathematics":
            hard.append(pair)
        else:
            known[pair] = verdict
    read = [(without_reason(answer), _gold(gold)) for answer, gold in hard]
    late: set[int] = set()
    results = compare_or_blame(compared, read, sound, [(gold,) for _, gold in read], seconds, late)
    known.update(zip(hard, results, strict=True))
    if stopped is not None and late:
        late_pairs = {hard[i] for i in late}
        stopped.update(i for i, pair in enumerate(pairs) if pair in late_pairs)
    return [known[pair] for pair in pairs]


@lru_cache(maxsize=4096)
def _gold(text: str) -> str:
    """The answer in a gold text: announced, without a remark, or in a list of texts."""
    if answer := extract_answer(text):
        return answer
    if _LISTED.match(text) and (values := _listed(text)):
        return ", ".join(values)
    text = text.strip()
    answer = without_remark(text)
    rest = text[len(answer) :]
    # "4, ab" and "4 - xyz" are values.
    is_remark = not _LETTER.search(rest) or _REMARK.match(rest) or (len(_WORD.findall(rest)) > 1 and is_words(rest))
    return answer if is_remark else text


def _listed(text: str) -> list[str]:
    """The texts in a list of texts, written as in Python or JSON; none where it is anything else."""
    try:
        values = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return list(values) if isinstance(values, list | tuple) and all(isinstance(value, str) for value in values) else []


def _equal_as_read(answer: str, gold: str) -> bool | Literal["mathematics"] | None:
    """The verdict on numbers, times of a day and words, which needs no Math-Verify."""
    if not gold.strip():
        return None
    if answer.strip() == gold.strip():
        return True
    if len(answer) > _LONGEST:
        return False
    answer = without_reason(answer)
    left, right = read_quantity(answer), read_quantity(gold)
    if left is not None and right is not None:
        return left.equals(right)
    times = read_clock(plain(answer)), read_clock(plain(gold))
    if any(times):
        return _equal_times(times, (left, right), answer, gold)
    if (left is None) == (right is None) and _same_text(answer, gold):
        return True
    if any(
        quantity is not None and _RATIO.fullmatch(plain(text)) for text, quantity in ((answer, right), (gold, left))
    ):
        return False
    figures = _FIGURE.fullmatch(plain(answer)), _FIGURE.fullmatch(plain(gold))
    if figures[0] and figures[1]:
        return _same_figure(figures[0], figures[1])
    for text, quantity in ((answer, right), (gold, left)):
        if quantity is not None and (comma := decimal_comma(text, quantity.value)) is not None:
            return comma.equals(quantity)
    words = is_words(answer), is_words(gold)
    if words[1] or (not answer.strip() and right is not None):
        return is_one_word(gold) and not words[0] and left is None and "mathematics"
    if right is not None and (words[0] or not _CALCULATES.search(answer)):
        return False
    return "mathematics"


def _equal_times(
    times: tuple[Clock | None, Clock | None], numbers: tuple[Quantity | None, Quantity | None], answer: str, gold: str
) -> bool:
    """Whether two answers, at least one of which is a time of a day, are the same time."""
    first, second = times
    if first is not None and second is not None:
        return first.equals(second)
    time, quantity = (first, numbers[1]) if first is not None else (second, numbers[0])
    if time is not None and quantity is not None:
        # "3 pm" without its unit is "3"; "3:00" is not.
        return not time.exact and quantity.value == time.hours and not quantity.unit.kinds
    # "A : B = 11:21" is a ratio with its name.
    return squeezed(answer).rpartition("=")[2] == squeezed(gold).rpartition("=")[2]


def _same_figure(first: re.Match[str], second: re.Match[str]) -> bool:
    r"""Whether two angles, triangles, arcs or vectors have the same points; `\angle ABC` is `\angle CBA`."""
    names = first["points"], second["points"]
    backwards = "".join(reversed(re.findall(r"\w'*", names[1])))
    return first["kind"] == second["kind"] and (
        names[0] == names[1] or (first["kind"] == "angle" and names[0] == backwards)
    )


def _same_text(answer: str, gold: str) -> bool:
    """Whether two texts are the same but for spaces and notation; words also but for case."""
    first, second = (re.sub(r"^\(([^\W\d_])\)$", r"\1", plain(text)) for text in (answer, gold))
    if squeezed(first) != squeezed(second):
        return False
    # A variable x is no X.
    return (is_words(first) and is_words(second)) or re.sub(r"\s", "", first) == re.sub(r"\s", "", second)


def compare_or_blame(
    compare: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    sound: Callable[..., Any],
    golds: Sequence[tuple[Any, ...]],
    seconds: float,
    stopped: set[int] | None = None,
) -> list[Any]:
    """The results of `compare(*call)`; False where the answer makes it hang or die, an error where the gold does.

    A completion cannot choose to be a failure: where a comparison hangs or dies, `sound(*gold)` tries the gold answer
    of the call alone. If that does not work, the result is a `VerificationError`. If it does, a comparison that took
    too long is made once more, with nothing beside it, since the machine may have been busy; then the answer is at
    fault, and wrong. After one that takes too long again, no other is repeated: the machine is not the reason, and
    many hanging answers must not add up. The places of such answers are added to `stopped`.
    """
    results = compare_in_workers(compare, calls, seconds)
    faults = {gold: None for gold, result in zip(golds, results, strict=True) if isinstance(result, Fault)}
    suspects = [gold for gold in faults if (sound, gold) not in _sound_golds]
    alone = dict(zip(suspects, compare_in_workers(sound, suspects, seconds), strict=True))
    _sound_golds.update((sound, gold) for gold, found in alone.items() if not isinstance(found, Fault))
    may_be_busy = True
    for i, gold in enumerate(golds):
        if not isinstance(results[i], Fault):
            continue
        if (sound, gold) not in _sound_golds:
            message = f"the gold answer {str(gold[0])[:80]!r} cannot be compared: {alone[gold].message}"
            results[i] = VerificationError(message)
            continue
        if may_be_busy and results[i].kind == "timeout":
            [results[i]] = compare_in_workers(compare, [calls[i]], seconds)
            may_be_busy = not isinstance(results[i], Fault)
        if isinstance(results[i], Fault):
            results[i] = False
            if stopped is not None:
                stopped.add(i)
    return results


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
