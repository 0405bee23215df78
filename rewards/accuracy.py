"""Is the final answer right?"""

from collections.abc import Sequence
from typing import Any, Literal

from rewards.contract import Failed
from rlkd.answers import VerificationError, is_correct
from rlkd.data import completion_text


class Accuracy:
    """1 for a completion whose announced answer equals the column `answer`, else 0; by math-verify.

    Not applicable where the row has no answer, or one that cannot be read.

    Args:
        fallback: `none` (default): an answer must be announced by `####`, `\\boxed{}`, `<answer>` or "the answer is".
            `last_number`: else the last number counts, which also rewards a cut-off text that stops at the right one.
    """

    __name__ = "accuracy"

    def __init__(self, fallback: Literal["none", "last_number"] = "none"):
        if fallback not in ("none", "last_number"):
            raise ValueError(f"fallback {fallback!r}: expected 'none' or 'last_number'")
        self.fallback: Literal["none", "last_number"] = fallback

    def __call__(
        self, completions: Sequence[Any], answer: Sequence[str | None], **columns: Any
    ) -> list[float | Failed | None]:
        """Score a batch."""
        return [self._score(completion_text(c), gold) for c, gold in zip(completions, answer, strict=True)]

    def _score(self, text: str, gold: str | None) -> float | Failed | None:
        if gold is None:
            return None
        try:
            correct = is_correct(text, gold, self.fallback)
        except VerificationError as error:
            return Failed(str(error))
        return None if correct is None else float(correct)
