"""The reward `accuracy`: is the announced answer right?"""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from importlib.resources import files
from typing import Any

from rewards.contract import Failed, Provisional, RewardOptions
from rewards.verified import libraries
from rlkd.answers import VERIFY_SECONDS, Fallback, VerificationError, answer_and_gold, are_correct
from rlkd.data.rows import completion_text


class Accuracy:
    """1 for a completion whose announced answer equals the column `answer`, else 0; by math-verify.

    Not applicable where the row has no answer or an unreadable one. Failed only where the row's answer itself
    cannot be compared; an answer that makes the comparison hang is wrong.

    Args:
        fallback: `none` (default): an answer must be announced (`docs/answers.md` says how).
            `last_number`: without an announcement the last number counts, which also rewards a truncated text that
            stops at the right number.
        prefilled: the chat template opens the thought, so that a completion without a closing tag has no answer.
        seconds: time limit of one comparison; it is killed then, and tried once more alone; then the answer is wrong.
    """

    __name__ = "accuracy"
    gold_columns = ("answer",)
    # Comparisons that can take long run in worker processes of their own.
    reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None)

    def __init__(self, fallback: Fallback = "none", seconds: float = VERIFY_SECONDS, prefilled: bool = False):
        if fallback not in ("none", "last_number"):
            raise ValueError(f"fallback {fallback!r}: expected 'none' or 'last_number'")
        if not seconds > 0:
            raise ValueError(f"seconds {seconds!r}: expected more than 0")
        self.fallback: Fallback = fallback
        self.seconds = seconds
        self.prefilled = prefilled

    def __call__(
        self, completions: Sequence[Any], answer: Sequence[str | None], **columns: Any
    ) -> list[float | Failed | None]:
        """Score a batch."""
        judged = [i for i, gold in enumerate(answer) if gold is not None]
        texts, golds = [completion_text(completions[i]) for i in judged], [str(answer[i]) for i in judged]
        scores: list[float | Failed | None] = [None] * len(completions)
        stopped: set[int] = set()
        found = are_correct(
            texts, golds, self.fallback, prefilled=self.prefilled, seconds=self.seconds, stopped=stopped
        )
        for place, (i, correct) in enumerate(zip(judged, found, strict=True)):
            if isinstance(correct, VerificationError):
                scores[i] = Failed(str(correct))
            elif place in stopped:
                scores[i] = Provisional(0.0)
            else:
                scores[i] = None if correct is None else float(correct)
        return scores

    def keys(self, completions: Sequence[Any], answer: Sequence[str | None], **columns: Any) -> list[Any]:
        """What decides each score: the announced answer and the gold answer."""
        return [
            None
            if gold is None
            else answer_and_gold(completion_text(completion), str(gold), self.fallback, prefilled=self.prefilled)
            for completion, gold in zip(completions, answer, strict=True)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """What else decides scores: the code and libraries that read and compare answers."""
        folder = files("rlkd.answers")
        code = "".join(file.read_text() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".py"))
        return f"{sha256(code.encode()).hexdigest()} {libraries()}"
