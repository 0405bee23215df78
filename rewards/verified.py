"""Rewards that rest on math-verify: the accuracy rewards of TRL 1.16 and open-r1, and the cosine-scaled ones.

They give TRL's numbers, with three differences:

1. Nothing hangs, on whichever thread. math-verify runs in worker processes, and a comparison that takes longer than
   its limit, or dies, is `Failed`. TRL counts it as 0.0 on the main thread, and waits for ever on any other.
2. Each distinct question is asked once: what math-verify decides on is cut out of a completion before it is compared
   (`deciding_text`), so that completions that announce the same answer in the same way are one question.
3. The gold solution stands in the column `solution`, or else in `answer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import product
from typing import Any, Literal

from rewards.contract import Failed, RewardError, RewardOptions
from rlkd.data.rows import completion_text
from rlkd.workers.pool import Fault, WorkerPool, inside_worker

Rules = Literal["trl", "open_r1"]
Verdict = float | Failed | None

# What takes longer than a few milliseconds is no answer to an exercise.
SECONDS = 5.0

_OPTIONS = RewardOptions(per_sample=True, isolate=False, timeout=None)

# The words and signs that math-verify's expressions for LaTeX begin and end with (0.9, `lazy_latex_regex`).
_FINAL_ANSWER_IS = re.compile(r"(?i:final answer is)")
_ANSWER = re.compile(r"(?i:answer)")
_LATEX = re.compile(r"\$|\[|\\\(|\\frac\{")
_PERCENT = re.compile(r"\s*(?:\\?%|[Pp]ercent(?:age)?|[Pp]ct)?\s*")


def deciding_text(text: str) -> str:
    """The part of a text that math-verify's verdict rests on: the verdict of the part is the verdict of the text.

    It holds for the way in which TRL and open-r1 read completions: LaTeX only, boxes first, no expression without an
    announcement, the first match only. Of the expressions of the highest priority that match, the match that ends last
    decides, and nothing else counts. So a prefix can go if no match begins there, and an ending if none ends there.
    Whether one can is told by the signs that a match must begin with, must end with and cannot contain; that takes a
    fixed number of passes, where math-verify's own expressions may go through a text again and again.
    """
    box = text.find("\\boxed{")
    last_brace = text.rfind("}")
    if box < 0 or last_brace < box + len("\\boxed{") + 1:
        # No box can match. What is left are expressions after the word "answer", or "final answer".
        announced = _ANSWER.search(text)
        if announced is None:
            return ""
        rest = text[max(0, announced.start() - len("final ")) :]
        return rest if _LATEX.search(rest) else ""
    # The expression for a bare box reaches from the first box to the last brace. Only a match that ends behind that
    # brace could take its place: one in an environment that is closed there, or one before the words "I hope".
    ends = [
        text.rfind(sign, last_brace) + len(sign) for sign in ("$", "]", "\\)", "I hope") if sign in text[last_brace:]
    ]
    if not ends:
        return text[box : last_brace + 1]
    percent = _PERCENT.match(text, max(ends))
    assert percent is not None
    start = _first_start(text, box)
    # Environments do not open behind a backslash or a digit.
    before = text[start - 1 : start]
    context = before if before == "\\" or before.isdecimal() else ""
    return context + text[start : percent.end()]


def _first_start(text: str, box: int) -> int:
    """Where the earliest match can begin that takes in the first box, at `box`: an environment that is open there."""
    starts = [box]
    # "final answer is ... I hope" takes in any environment.
    words = _FINAL_ANSWER_IS.search(text, 0, box)
    if words is not None and "I hope" in text[words.end() :]:
        starts.append(words.start())
    line = text.rfind("\n", 0, box) + 1
    # $...$ holds no line break and no dollar sign but escaped ones.
    if "$" in text[box:]:
        dollar = text.rfind("$", line, box)
        while dollar >= 0:
            starts.append(dollar)
            is_escaped = dollar > line and text[dollar - 1] == "\\"
            dollar = text.rfind("$", line, dollar) if is_escaped else -1
    # $$...$$ holds no $$.
    if "$$" in text[box:] and (dollars := text.rfind("$$", 0, box)) >= 0:
        starts.append(dollars - 1 if text[dollars - 1 : dollars] == "$" else dollars)
    # \(...\) holds no line break and no \).
    opening = text.find("\\(", max(line, text.rfind("\\)", 0, box)), box)
    starts.append(opening if opening >= 0 else box)
    # \[...\] holds no \].
    opening = text.find("\\[", max(0, text.rfind("\\]", 0, box)), box)
    starts.append(opening if opening >= 0 else box)
    # [...] holds no line break and no bracket, and stands behind a space, which belongs to the match.
    bracket = max(text.rfind("[", line, box), text.rfind("]", line, box))
    if bracket > 0 and text[bracket] == "[" and text[bracket - 1].isspace():
        starts.append(bracket - 1)
    return min(starts)


def verdict(content: str, solution: str, rules: Rules = "trl") -> float | None:
    """1 if math-verify finds the solution's value in the content, else 0; None for a solution that it cannot read.

    Without any limit of time: this is what a worker process runs.
    """
    gold = _gold(solution, rules)
    if not gold:
        return None
    found = _read(content, rules)
    if any(_depends_on_the_past(expression) for expression in (*gold, *found)):
        _forget()
        gold, found = _gold.__wrapped__(solution, rules), _read.__wrapped__(content, rules)
    return float(any(_is_equal(left, right) for left, right in product(gold, found)))


def _depends_on_the_past(expression: Any) -> bool:
    """Whether math-verify's verdict on it varies with what it compared before.

    It keeps the order of the parts of chains (x = y = 5) and sets on objects that sympy's cache hands to everybody;
    sorting them for one comparison changes them for the next.
    """
    import sympy

    return isinstance(expression, (sympy.Basic, sympy.MatrixBase)) and expression.has(sympy.And, sympy.FiniteSet)


def _forget() -> None:
    from math_verify.parser import parse_latex_cached
    from sympy.core.cache import clear_cache

    clear_cache()
    parse_latex_cached.cache_clear()


@lru_cache(maxsize=4096)
def _gold(solution: str, rules: Rules) -> tuple[Any, ...]:
    parse = _math_verify().parse
    mode = "any_match" if rules == "trl" else "first_match"
    return _parsed(lambda: parse(solution, extraction_mode=mode, parsing_timeout=None, raise_on_error=True))


@lru_cache(maxsize=4096)
def _read(content: str, rules: Rules) -> tuple[Any, ...]:
    from latex2sympy2_extended import NormalizationConfig

    library = _math_verify()
    config = library.LatexExtractionConfig(
        # open-r1 differs from TRL in `equations`: of "x = y = 3" the last part counts.
        normalization_config=NormalizationConfig(units=True, equations=rules == "open_r1"),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    return _parsed(
        lambda: library.parse(
            content,
            extraction_config=[config],
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=True,
        )
    )


def _parsed(parse: Any) -> tuple[Any, ...]:
    try:
        return tuple(parse())
    except MemoryError:
        raise
    except Exception:  # as math-verify itself has it: not readable
        return ()


def _is_equal(gold: Any, found: Any) -> bool:
    try:
        return bool(_math_verify().verify(gold, found, timeout_seconds=None, raise_on_error=True))
    except MemoryError:  # math-verify would call this a difference
        raise
    except Exception:
        return False


@cache
def _math_verify() -> Any:
    import logging

    import math_verify

    # They warn that there is no limit of time, and that `equations` is old.
    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.math_normalization"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


@cache
def _pool() -> WorkerPool:
    # Preloaded, so that a killed worker is replaced in milliseconds. Some answers do not hang, they eat memory.
    return WorkerPool(verdict, preload=["math_verify", "latex2sympy2_extended", "rewards.verified"], memory=4 * 2**30)


def verdicts(
    contents: Sequence[str], solutions: Sequence[Any], *, rules: Rules = "trl", timeout: float = SECONDS
) -> list[Verdict]:
    """`verdict` for many, each distinct question once, in worker processes with `timeout` seconds for each.

    None also for a solution that is None; `Failed` where there is no verdict.
    """
    pairs = [question(content, solution) for content, solution in zip(contents, solutions, strict=True)]
    distinct = [pair for pair in dict.fromkeys(pairs) if pair is not None]
    if inside_worker():  # which is under a limit already
        results: list[Any] = [verdict(*pair, rules) for pair in distinct]
    else:
        results = _pool().map([(*pair, rules) for pair in distinct], limit=timeout)
    known: dict[Any, Verdict] = {None: None}
    for pair, result in zip(distinct, results, strict=True):
        if isinstance(result, Fault):
            result = Failed(f"comparing {pair[0][-80:]!r} with {pair[1][-80:]!r}: {result.message}")
        known[pair] = result
    return [known[pair] for pair in pairs]


def question(content: str, solution: Any) -> tuple[str, str] | None:
    """What a verdict rests on: deciding text and solution; None where there is no solution."""
    return None if solution is None else (deciding_text(content), str(solution))


def golds(name: str, solution: Sequence[Any] | None, answer: Sequence[Any] | None) -> Sequence[Any]:
    """The column that holds the gold solutions. Raises `RewardError` where there is none."""
    column = solution if solution is not None else answer
    if column is None:
        raise RewardError(f"reward {name!r} needs the column 'solution' or 'answer'; the data have neither")
    return column


def checked_seconds(timeout: float) -> float:
    """A time limit as the config gives it; raises ValueError unless it is above 0."""
    if not timeout > 0:
        raise ValueError(f"timeout {timeout!r}: expected seconds above 0")
    return timeout


def checked_rules(rules: Rules) -> Rules:
    """Whose rules to read by, as the config gives it; raises ValueError for another."""
    if rules not in ("trl", "open_r1"):
        raise ValueError(f"rules {rules!r}: expected 'trl' or 'open_r1'")
    return rules


def libraries() -> str:
    """The versions that verdicts rest on."""
    return " ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy"))


class AccuracyReward:
    """1 for a completion whose answer equals the solution, else 0; by math-verify, as TRL 1.16's `accuracy_reward`.

    An answer is a `\\boxed{}`, or LaTeX after the word "answer"; "#### 72" and "the answer is 72" are none, for these
    see the reward `accuracy`. Not applicable where the solution cannot be read.

    Args:
        rules: `trl`, or `open_r1` for the way in which open-r1 reads: of a solution only the first expression that is
            found, of a chain of equations in the answer only the last part.
        timeout: seconds for one comparison; what takes longer has failed.
    """

    __name__ = "accuracy_reward"
    needs_any = ("solution", "answer")
    reward_options = _OPTIONS

    def __init__(self, rules: Rules = "trl", timeout: float = SECONDS):
        self.rules = checked_rules(rules)
        self.timeout = checked_seconds(timeout)

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """Score a batch."""
        texts = [completion_text(completion) for completion in completions]
        return verdicts(texts, golds(self.__name__, solution, answer), rules=self.rules, timeout=self.timeout)

    def keys(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Any]:
        """What a score rests on: the deciding text and the solution."""
        texts = [completion_text(completion) for completion in completions]
        return [question(t, s) for t, s in zip(texts, golds(self.__name__, solution, answer), strict=True)]

    @property
    def fingerprint(self) -> str:
        """What scores rest on besides."""
        return f"{self.rules} {libraries()}"


class ReasoningAccuracyReward:
    """`AccuracyReward` on what comes after the reasoning; 0 where the reasoning does not end (TRL 1.16).

    Args:
        reasoning_delimiters: what reasoning ends with, `["</think>"]` where None. The first of them that a completion
            contains counts, at its last occurrence.
        timeout: as in `AccuracyReward`.
    """

    __name__ = "reasoning_accuracy_reward"
    needs_any = ("solution", "answer")
    reward_options = _OPTIONS

    def __init__(self, reasoning_delimiters: Sequence[str] | None = None, timeout: float = SECONDS):
        self.reasoning_delimiters = ["</think>"] if reasoning_delimiters is None else list(reasoning_delimiters)
        if isinstance(reasoning_delimiters, str) or not all(self.reasoning_delimiters):
            raise ValueError(
                f"reasoning_delimiters {reasoning_delimiters!r}: expected a list of texts, none of it empty"
            )
        self.timeout = checked_seconds(timeout)

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """Score a batch."""
        texts = [self._after_reasoning(completion) for completion in completions]
        gold = list(golds(self.__name__, solution, answer))
        complete = [i for i, text in enumerate(texts) if text is not None]
        scores: list[Verdict] = [None if solution is None else 0.0 for solution in gold]
        contents = [texts[i] or "" for i in complete]
        for i, score in zip(
            complete, verdicts(contents, [gold[i] for i in complete], timeout=self.timeout), strict=True
        ):
            scores[i] = score
        return scores

    def keys(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Any]:
        """What a score rests on: the deciding text after the reasoning, if it ended, and the solution."""
        texts = [self._after_reasoning(completion) for completion in completions]
        gold = golds(self.__name__, solution, answer)
        return [
            question(text, solution) if text is not None else ["unfinished", solution is None]
            for text, solution in zip(texts, gold, strict=True)
        ]

    def _after_reasoning(self, completion: Any) -> str | None:
        text = completion_text(completion)
        for delimiter in self.reasoning_delimiters:
            if delimiter in text:
                return text.rpartition(delimiter)[2]
        return None

    @property
    def fingerprint(self) -> str:
        """What scores rest on besides."""
        return f"{self.reasoning_delimiters} {libraries()}"


def cosine_scaled(length: float, max_len: float, at_start: float, at_end: float) -> float:
    """From `at_start` at length 0 to `at_end` at `max_len` and beyond, along half a cosine wave.

    arXiv 2502.03373, appendix C.1, equation of the cosine reward.
    """
    progress = min(length / max_len, 1.0)
    return at_end + 0.5 * (at_start - at_end) * (1.0 + math.cos(progress * math.pi))


class CosineScaledReward:
    """A right answer pays more the shorter it is, a wrong one costs less the longer it is (arXiv 2502.03373, C.1).

    As TRL 1.16's `get_cosine_scaled_reward`; not applicable where the solution cannot be read.

    Args:
        max_len: the length at which the scale ends, and beyond which it stays, in `unit`.
        min_value_wrong, max_value_wrong: for a wrong answer, at length 0 and at `max_len`.
        min_value_correct, max_value_correct: for a right answer, at `max_len` and at length 0.
        unit: `tokens` (TRL), or `characters` of the text (open-r1).
        rules, timeout: as in `AccuracyReward`.
    """

    __name__ = "get_cosine_scaled_reward"
    needs_any = ("solution", "answer")
    reward_options = _OPTIONS

    def __init__(
        self,
        max_len: int,
        min_value_wrong: float = -1.0,
        max_value_wrong: float = -0.5,
        min_value_correct: float = 0.5,
        max_value_correct: float = 1.0,
        unit: Literal["tokens", "characters"] = "tokens",
        rules: Rules = "trl",
        timeout: float = SECONDS,
    ):
        if not max_len > 0:
            raise ValueError(f"max_len {max_len!r}: expected a length above 0")
        if unit not in ("tokens", "characters"):
            raise ValueError(f"unit {unit!r}: expected 'tokens' or 'characters'")
        self.max_len = max_len
        self.wrong = (min_value_wrong, max_value_wrong)
        self.correct = (max_value_correct, min_value_correct)
        self.unit = unit
        self.rules = checked_rules(rules)
        self.timeout = checked_seconds(timeout)

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """Score a batch."""
        texts = [completion_text(completion) for completion in completions]
        gold = golds(self.__name__, solution, answer)
        right = verdicts(texts, gold, rules=self.rules, timeout=self.timeout)
        return [
            score if score is None or isinstance(score, Failed) else self._scaled(score, length)
            for score, length in zip(right, self._lengths(texts, completion_ids), strict=True)
        ]

    def keys(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        solution: Sequence[Any] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Any]:
        """What a score rests on: the deciding text, the solution and the length."""
        texts = [completion_text(completion) for completion in completions]
        gold = golds(self.__name__, solution, answer)
        lengths = self._lengths(texts, completion_ids)
        return [
            [question(text, solution), min(length, self.max_len)]
            for text, solution, length in zip(texts, gold, lengths, strict=True)
        ]

    def _scaled(self, correct: float, length: int) -> float:
        return cosine_scaled(length, self.max_len, *(self.correct if correct else self.wrong))

    def _lengths(self, texts: Sequence[str], completion_ids: Sequence[Sequence[int]] | None) -> list[int]:
        if self.unit == "characters":
            return [len(text) for text in texts]
        if completion_ids is None:
            raise RewardError(f"reward {self.__name__!r} counts tokens, and there are no completion_ids")
        return [len(ids) for ids in completion_ids]

    @property
    def fingerprint(self) -> str:
        """What scores rest on besides."""
        return f"{self.max_len} {self.wrong} {self.correct} {self.unit} {self.rules} {libraries()}"


def cosine(
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
    timeout: float = SECONDS,
) -> CosineScaledReward:
    """open-r1's cosine reward: `CosineScaledReward` over characters, by open-r1's rules."""
    return CosineScaledReward(
        max_len,
        min_value_wrong,
        max_value_wrong,
        min_value_correct,
        max_value_correct,
        unit="characters",
        rules="open_r1",
        timeout=timeout,
    )
