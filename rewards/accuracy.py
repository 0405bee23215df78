"""Is the final answer right?"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from rewards.contract import Failed, RewardOptions
from rewards.verified import libraries
from rlkd import answers
from rlkd.answers import VERIFY_SECONDS, VerificationError, are_correct, extract_answer
from rlkd.data.rows import completion_text


class Accuracy:
    """1 for a completion whose announced answer equals the column `answer`, else 0; by math-verify.

    Not applicable where the row has no answer, or one that cannot be read. Failed where comparing takes too long.

    Args:
        fallback: `none` (default): an answer must be announced by `####`, `\\boxed{}`, `<answer>` or "the answer is".
            `last_number`: else the last number counts, which also rewards a cut-off text that stops at the right one.
        seconds: limit for one comparison; what takes longer is killed.
    """

    __name__ = "accuracy"
    # The comparisons themselves run in worker processes, those that need any.
    reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None)

    def __init__(self, fallback: Literal["none", "last_number"] = "none", seconds: float = VERIFY_SECONDS):
        if fallback not in ("none", "last_number"):
            raise ValueError(f"fallback {fallback!r}: expected 'none' or 'last_number'")
        if not seconds > 0:
            raise ValueError(f"seconds {seconds!r}: expected more than 0")
        self.fallback: Literal["none", "last_number"] = fallback
        self.seconds = seconds

    def __call__(
        self, completions: Sequence[Any], answer: Sequence[str | None], **columns: Any
    ) -> list[float | Failed | None]:
        """Score a batch."""
        judged = [i for i, gold in enumerate(answer) if gold is not None]
        texts, golds = [completion_text(completions[i]) for i in judged], [str(answer[i]) for i in judged]
        scores: list[float | Failed | None] = [None] * len(completions)
        for i, correct in zip(judged, are_correct(texts, golds, self.fallback, seconds=self.seconds), strict=True):
            if isinstance(correct, VerificationError):
                scores[i] = Failed(str(correct))
            else:
                scores[i] = None if correct is None else float(correct)
        return scores

    def keys(self, completions: Sequence[Any], answer: Sequence[str | None], **columns: Any) -> list[Any]:
        """What a score rests on: the announced answer and the gold one."""
        return [
            [extract_answer(completion_text(completion), self.fallback), None if gold is None else str(gold)]
            for completion, gold in zip(completions, answer, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """What scores rest on besides: how answers are read and compared."""
        return f"{sha256(inspect.getsource(answers).encode()).hexdigest()} {libraries()}"
