"""Rewards that use math-verify: the accuracy rewards of TRL 1.16 and open-r1, and the cosine-scaled ones.

They return TRL's numbers, but nothing hangs: math-verify runs in worker processes with a time limit. Where a
comparison exceeds it or crashes, the solution is tried alone: if that works, the completion is at fault and scores
0.0, as in TRL; if not, the score is `Failed`. Each distinct comparison is made once, of the part of a completion that
decides the verdict (`deciding_text`). The gold solution is `solution`, or else `answer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from typing import Any, Literal

from rewards.contract import Failed, Provisional, RewardError, RewardOptions
from rlkd.answers import VERIFY_SECONDS, VerificationError, compare_or_blame, math_verify, read_by_math_verify
from rlkd.data.rows import completion_text

Rules = Literal["trl", "open_r1"]
Score = float | Failed | None
Column = Sequence[Any] | None

# What math-verify's LaTeX expressions begin and end with (version 0.9, `lazy_latex_regex`).
_FINAL_ANSWER_IS = re.compile(r"(?i:final answer is)")
_ANSWER = re.compile(r"(?i:answer)")
_LATEX = re.compile(r"\$|\[|\\\(|\\frac\{")
_PERCENT = re.compile(r"\s*(?:\\?%|[Pp]ercent(?:age)?|[Pp]ct)?\s*")


def deciding_text(text: str) -> str:
    """The part of a text that decides math-verify's verdict: the verdict on this part is the verdict on the text.

    This holds for the way TRL and open-r1 read completions: LaTeX only, boxes first, no expression without an
    announcement, the first match only. Among the matches of the highest priority, the one that ends last decides. So a
    prefix can be removed if no match begins there, and a suffix if none ends there. The characters that a match must
    begin with, must end with and cannot contain tell this in a fixed number of passes, whereas math-verify's own
    expressions may scan a text again and again.
    """
    box = text.find("\\boxed{")
    last_brace = text.rfind("}")
    if box < 0 or last_brace < box + len("\\boxed{") + 1:
        # No box can match; an expression after the word "answer" or "final answer" can.
        announced = _ANSWER.search(text)
        if announced is None:
            return ""
        rest = text[max(0, announced.start() - len("final ")) :]
        return rest if _LATEX.search(rest) else ""
    # The match of a bare box reaches from the first box to the last brace. Only a match that ends after that brace
    # could replace it: one in an environment that closes there, or one before the words "I hope".
    ends = [
        text.rfind(sign, last_brace) + len(sign) for sign in ("$", "]", "\\)", "I hope") if sign in text[last_brace:]
    ]
    if not ends:
        return text[box : last_brace + 1]
    percent = _PERCENT.match(text, max(ends))
    assert percent is not None
    start = _first_start(text, box)
    # Environments do not open after a backslash or a digit.
    before = text[start - 1 : start]
    context = before if before == "\\" or before.isdecimal() else ""
    return context + text[start : percent.end()]


def _first_start(text: str, box: int) -> int:
    """The earliest start of a match that contains the first box, at `box`: that of an environment open there."""
    starts = [box]
    # "final answer is ... I hope" contains any environment.
    words = _FINAL_ANSWER_IS.search(text, 0, box)
    if words is not None and "I hope" in text[words.end() :]:
        starts.append(words.start())
    line = text.rfind("\n", 0, box) + 1
    # $...$ contains no line break and only escaped dollar signs.
    if "$" in text[box:]:
        dollar = text.rfind("$", line, box)
        while dollar >= 0:
            starts.append(dollar)
            is_escaped = dollar > line and text[dollar - 1] == "\\"
            dollar = text.rfind("$", line, dollar) if is_escaped else -1
    # $$...$$ contains no $$.
    if "$$" in text[box:] and (dollars := text.rfind("$$", 0, box)) >= 0:
        starts.append(dollars - 1 if text[dollars - 1 : dollars] == "$" else dollars)
    # \(...\) contains no line break and no \).
    opening = text.find("\\(", max(line, text.rfind("\\)", 0, box)), box)
    starts.append(opening if opening >= 0 else box)
    # \[...\] contains no \].
    opening = text.find("\\[", max(0, text.rfind("\\]", 0, box)), box)
    starts.append(opening if opening >= 0 else box)
    # [...] contains no line break and no bracket, and follows a space that belongs to the match.
    bracket = max(text.rfind("[", line, box), text.rfind("]", line, box))
    if bracket > 0 and text[bracket] == "[" and text[bracket - 1].isspace():
        starts.append(bracket - 1)
    return min(starts)


def verdict(content: str, solution: str, rules: Rules = "trl") -> float | None:
    """1 if math-verify finds the solution's value in the content, else 0; None for an unreadable solution.

    Has no time limit of its own: worker processes run it.
    """
    gold = _gold(solution, rules)
    if not gold:
        return None
    found = _found(content, rules)
    if any(_depends_on_history(expression) for expression in (*gold, *found)):
        _clear_caches()
        gold, found = _gold.__wrapped__(solution, rules), _found.__wrapped__(content, rules)
    return float(any(_is_equal(left, right) for left, right in product(gold, found)))


def solution_alone(solution: str, rules: Rules) -> bool:
    """Whether a solution is readable; hangs, or dies, if it cannot be compared with itself and with 1."""
    import sympy

    gold = _gold(solution, rules)
    for expression in gold:
        _is_equal(expression, expression)
        _is_equal(expression, sympy.Integer(1))
    return bool(gold)


def _depends_on_history(expression: Any) -> bool:
    """Whether its verdict varies: math-verify sorts chains (x = y = 5) and sets in place, in sympy's own objects."""
    import sympy

    return isinstance(expression, (sympy.Basic, sympy.MatrixBase)) and expression.has(sympy.And, sympy.FiniteSet)


def _clear_caches() -> None:
    from math_verify.parser import parse_latex_cached
    from sympy.core.cache import clear_cache

    clear_cache()
    parse_latex_cached.cache_clear()


@lru_cache(maxsize=4096)
def _gold(solution: str, rules: Rules) -> tuple[Any, ...]:
    mode = "any_match" if rules == "trl" else "first_match"
    return tuple(read_by_math_verify(solution, extraction_mode=mode))


@lru_cache(maxsize=4096)
def _found(content: str, rules: Rules) -> tuple[Any, ...]:
    from latex2sympy2_extended import NormalizationConfig

    config = math_verify().LatexExtractionConfig(
        # open-r1 differs from TRL in `equations`: of "x = y = 3" the last part counts.
        normalization_config=NormalizationConfig(units=True, equations=rules == "open_r1"),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    return tuple(read_by_math_verify(content, extraction_config=[config], extraction_mode="first_match"))


def _is_equal(gold: Any, found: Any) -> bool:
    try:
        return bool(math_verify().verify(gold, found, timeout_seconds=None, raise_on_error=True))
    except MemoryError:  # math-verify would treat this as a difference
        raise
    except Exception:
        return False


def verdicts(
    contents: Sequence[str | None], solutions: Sequence[Any], *, rules: Rules = "trl", timeout: float = VERIFY_SECONDS
) -> list[Score]:
    """`verdict` for many, in worker processes; `Failed` for a solution that cannot be compared in time."""
    wanted = [comparison(content, solution) for content, solution in zip(contents, solutions, strict=True)]
    distinct = [pair for pair in dict.fromkeys(wanted) if isinstance(pair, tuple)]
    calls, golds = [(*pair, rules) for pair in distinct], [(solution, rules) for _, solution in distinct]
    stopped: set[int] = set()
    results = compare_or_blame(verdict, calls, solution_alone, golds, timeout, stopped)
    known: dict[Any, Score] = {None: None, 0.0: 0.0}
    for i, (pair, result) in enumerate(zip(distinct, results, strict=True)):
        if isinstance(result, VerificationError):
            known[pair] = Failed(str(result))
        elif i in stopped:
            known[pair] = Provisional(0.0)
        else:
            known[pair] = None if result is None else float(result)
    return [known[pair] for pair in wanted]


def comparison(content: str | None, solution: Any) -> tuple[str, str] | float | None:
    """Deciding text and solution, or the verdict itself: None without a solution, 0 without content."""
    if solution is None:
        return None
    return 0.0 if content is None else (deciding_text(content), str(solution))


def libraries() -> str:
    """The library versions that decide verdicts."""
    return " ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))


class AccuracyReward:
    """1 for a completion whose answer equals the solution, else 0; by math-verify, as TRL 1.16's `accuracy_reward`.

    An answer is a `\\boxed{}`, or LaTeX after the word "answer". "#### 72" and "the answer is 72" do not count; for
    these see the reward `accuracy`. Not applicable where the solution is unreadable.

    Args:
        rules: `trl`, or `open_r1` to read as open-r1 does: only the first expression of a solution, and only the last
            part of a chain of equations in the answer.
        timeout: seconds for one comparison. A completion that makes it take longer scores 0.
    """

    __name__ = "accuracy_reward"
    needs_any: tuple[str, ...] = ("solution", "answer")
    gold_columns = ("solution", "answer")
    reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None)

    def __init__(self, rules: Rules = "trl", timeout: float = VERIFY_SECONDS):
        if rules not in ("trl", "open_r1"):
            raise ValueError(f"rules {rules!r}: expected 'trl' or 'open_r1'")
        if not timeout > 0:
            raise ValueError(f"timeout {timeout!r}: expected seconds above 0")
        self.rules: Rules = rules
        self.timeout = timeout

    def __call__(
        self, completions: Sequence[Any], solution: Column = None, answer: Column = None, **columns: Any
    ) -> list[Score]:
        """Score a batch."""
        contents, solutions = self._compared(completions, solution, answer)
        return verdicts(contents, solutions, rules=self.rules, timeout=self.timeout)

    def keys(
        self, completions: Sequence[Any], solution: Column = None, answer: Column = None, **columns: Any
    ) -> list[Any]:
        """What decides each score: the deciding text and the solution."""
        return [comparison(*pair) for pair in zip(*self._compared(completions, solution, answer), strict=True)]

    def _compared(
        self, completions: Sequence[Any], solution: Column, answer: Column
    ) -> tuple[list[str | None], Sequence[Any]]:
        """Contents and solutions; raises `RewardError` without a column of solutions."""
        solutions = solution if solution is not None else answer
        if solutions is None:
            raise RewardError(
                f"reward {self.__name__!r} needs the column 'solution' or 'answer'; the data have neither"
            )
        return [self._content(completion_text(completion)) for completion in completions], solutions

    def _content(self, text: str) -> str | None:
        """The part of a completion to search for the answer, None to score 0."""
        return text

    @property
    def fingerprint(self) -> str:
        """What else decides scores: the parameters and the libraries."""
        parameters = {name: value for name, value in vars(self).items() if name != "timeout"}
        return f"{parameters} {libraries()}"


class ReasoningAccuracyReward(AccuracyReward):
    """`AccuracyReward` of the text after the reasoning, as TRL 1.16's `reasoning_accuracy_reward`.

    0 for a completion whose reasoning does not end.

    Args:
        reasoning_delimiters: marks that end the reasoning. The first of the list that occurs counts, at its last
            occurrence. Default: `</think>`.
        timeout: as in `AccuracyReward`.
    """

    __name__ = "reasoning_accuracy_reward"

    def __init__(self, reasoning_delimiters: Sequence[str] | None = None, timeout: float = VERIFY_SECONDS):
        super().__init__(timeout=timeout)
        self.reasoning_delimiters = ["</think>"] if reasoning_delimiters is None else list(reasoning_delimiters)
        if isinstance(reasoning_delimiters, str) or not all(self.reasoning_delimiters):
            raise ValueError(f"reasoning_delimiters {reasoning_delimiters!r}: expected a list of non-empty texts")

    def _content(self, text: str) -> str | None:
        for delimiter in self.reasoning_delimiters:
            if delimiter in text:
                return text.rpartition(delimiter)[2]
        return None


def cosine_scaled(length: float, max_len: float, at_start: float, at_end: float) -> float:
    """From `at_start` at length 0 to `at_end` at `max_len` and beyond, along half a cosine wave.

    arXiv 2502.03373, appendix C.1, equation of the cosine reward.
    """
    progress = min(length / max_len, 1.0)
    return at_end + 0.5 * (at_start - at_end) * (1.0 + math.cos(progress * math.pi))


class CosineScaledReward(AccuracyReward):
    """A right answer pays more the shorter it is, a wrong one costs less the longer it is (arXiv 2502.03373, C.1).

    As TRL 1.16's `get_cosine_scaled_reward`; not applicable where the solution is unreadable.

    Args:
        max_len: length in `unit` at which the scale ends; the reward is constant beyond.
        min_value_wrong, max_value_wrong: reward of a wrong answer at length 0 and at `max_len`.
        min_value_correct, max_value_correct: reward of a right answer at `max_len` and at length 0.
        unit: `tokens` (TRL), or `characters` of the text (open-r1).
        rules, timeout: as in `AccuracyReward`.
    """

    __name__ = "cosine_scaled_reward"

    def __init__(
        self,
        max_len: int,
        min_value_wrong: float = -1.0,
        max_value_wrong: float = -0.5,
        min_value_correct: float = 0.5,
        max_value_correct: float = 1.0,
        unit: Literal["tokens", "characters"] = "tokens",
        rules: Rules = "trl",
        timeout: float = VERIFY_SECONDS,
    ):
        super().__init__(rules, timeout)
        if not max_len > 0:
            raise ValueError(f"max_len {max_len!r}: expected a length above 0")
        if unit not in ("tokens", "characters"):
            raise ValueError(f"unit {unit!r}: expected 'tokens' or 'characters'")
        self.max_len = max_len
        self.wrong = (min_value_wrong, max_value_wrong)
        self.correct = (max_value_correct, min_value_correct)
        self.unit = unit

    def __call__(  # type: ignore[override]  # TRL's order of arguments
        self,
        completions: Sequence[Any],
        solution: Column = None,
        completion_ids: Column = None,
        answer: Column = None,
        **columns: Any,
    ) -> list[Score]:
        """Score a batch."""
        lengths = self._lengths(completions, completion_ids)
        scores = super().__call__(completions, solution, answer)
        return [
            score if score is None or isinstance(score, Failed) else self._scaled(score, length)
            for score, length in zip(scores, lengths, strict=True)
        ]

    def keys(  # type: ignore[override]
        self,
        completions: Sequence[Any],
        solution: Column = None,
        completion_ids: Column = None,
        answer: Column = None,
        **columns: Any,
    ) -> list[Any]:
        """What decides each score: the deciding text, the solution and the length."""
        keys = super().keys(completions, solution, answer)
        lengths = self._lengths(completions, completion_ids)
        return [[key, min(length, self.max_len)] for key, length in zip(keys, lengths, strict=True)]

    def _scaled(self, correct: float, length: int) -> float:
        score = cosine_scaled(length, self.max_len, *(self.correct if correct else self.wrong))
        return Provisional(score) if isinstance(correct, Provisional) else score

    def _lengths(self, completions: Sequence[Any], completion_ids: Column) -> list[int]:
        if self.unit == "characters":
            return [len(completion_text(completion)) for completion in completions]
        if completion_ids is None:
            raise RewardError(f"reward {self.__name__!r} counts tokens, and there are no completion_ids")
        return [len(ids) for ids in completion_ids]


def cosine(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
    timeout: float = VERIFY_SECONDS,
) -> CosineScaledReward:
    """open-r1's cosine reward: `CosineScaledReward` over characters, with open-r1's rules."""
    values = (min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)
    return CosineScaledReward(max_len, *values, unit="characters", rules="open_r1", timeout=timeout)
