"""Rewards that penalise repetition: (1 - distinct / all n-grams) x max_penalty (arXiv 2502.03373, appendix C.2).

TRL counts tokens and open-r1 counts words, so there are two.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

from rewards.contract import CHEAP
from rlkd.data.rows import completion_text


class TokenRepetition:
    """The penalty over tokens, as TRL 1.16's `get_repetition_penalty_reward`.

    Args:
        ngram_size: tokens in an n-gram; a shorter completion earns 0.
        max_penalty: limit for a text that only repeats itself; 0 or below.
    """

    __name__ = "repetition_penalty_reward"
    reward_options = CHEAP
    penalises = True

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0):
        if ngram_size < 1:
            raise ValueError(f"ngram_size {ngram_size!r}: expected at least 1")
        if max_penalty > 0:
            raise ValueError(f"max_penalty {max_penalty!r}: expected 0 or below")
        self.ngram_size = ngram_size
        self.max_penalty = max_penalty

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """Score a batch."""
        return [penalty(ids, self.ngram_size, self.max_penalty) for ids in completion_ids]


class WordRepetition(TokenRepetition):
    """The penalty over words, as open-r1's `repetition_penalty`.

    Args:
        ngram_size: words in an n-gram; a shorter completion earns 0.
        max_penalty: limit for a text that only repeats itself; 0 or below.
        language: `en`: words are separated by spaces and compared in lower case. `zh`: words by `jieba`, which must be
            installed.
    """

    __name__ = "repetition_penalty"

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0, language: Literal["en", "zh"] = "en"):
        super().__init__(ngram_size, max_penalty)
        if language not in ("en", "zh"):
            raise ValueError(f"language {language!r}: expected 'en' or 'zh'")
        if language == "zh":
            _jieba()
        self.language = language

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:  # type: ignore[override]
        """Score a batch."""
        return [
            penalty(self._words(completion_text(completion)), self.ngram_size, self.max_penalty)
            for completion in completions
        ]

    def _words(self, text: str) -> list[str]:
        return text.lower().split() if self.language == "en" else _jieba().lcut(text)


def penalty(items: Sequence[Hashable], size: int, most: float) -> float:
    """The share of n-grams that repeat an earlier one, times `most`; 0 for a sequence without n-grams."""
    count = len(items) - size + 1
    if count < 1:
        return 0.0
    distinct = len({tuple(items[start : start + size]) for start in range(count)})
    return (1 - distinct / count) * most if distinct < count else 0.0


def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        raise ValueError("language 'zh' needs the package jieba: pip install jieba") from None
    return jieba
