"""Settings of the writing: which writers make candidates for a question, and how.

`docs/rationales.md` lists the writers; `bank` is D-RPC's (arXiv 2605.07139).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkd.engines import Contrast, Sampling
from rlkd.errors import UsageError
from rlkd.rationales.write.prompts import SCHEMA

CONTRASTIVE = ("contrast", "counterfactual")
WRITERS = ("ready", "free", "steps", "bank", "program", "student", *CONTRASTIVE)
# Writers without a request to the teacher.
_OTHERS = ("ready", "student")


@dataclass(frozen=True)
class Writing:
    """Settings of the writing.

    `candidates` is a number per question and writer; `wave` is the number of questions between two updates of the
    bank. `seed_share` of the questions (proportional to the column `category`, if there is one) get a step-keyed
    rationale first, from which the bank is made; `paths_offered` of its paths are shown to the teacher. `faithful` is
    the released method where it differs from ours (`docs/rationales.md`); it overrides other settings. Keys that begin
    with `contrast` are of the contrastive writers. Raises `UsageError` for values out of range.
    """

    writers: tuple[str, ...] = ("bank",)
    candidates: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    contrast_weight: float = 0.5
    contrast_plausibility: float = 0.1
    contrast_answer: str = "wrong"
    hinted_retry: bool = False
    wave: int = 32
    faithful: bool = False
    seed_share: float = 0.05
    paths_offered: int = 3
    category: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        unknown = [name for name in self.writers if name not in WRITERS]
        if unknown or not self.writers or len(set(self.writers)) < len(self.writers):
            raise UsageError(f"writers={list(self.writers)}: expected one or more of {', '.join(WRITERS)}, each once")
        if self.faithful:
            for name, value in {"candidates": 1, "temperature": 0.0, "wave": 1, "paths_offered": 1}.items():
                object.__setattr__(self, name, value)
        for name in ("candidates", "wave", "paths_offered"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.hinted_retry and "program" in self.writers:
            raise UsageError(
                "hinted_retry looks for a right answer among the written ones, and a program has none before the "
                "selector 'program' runs it: leave one of the two out"
            )
        if self.contrast_answer not in ("wrong", "empty"):
            raise UsageError(f"contrast_answer={self.contrast_answer!r}: expected wrong or empty")
        if not 0 < self.seed_share <= 1:
            raise UsageError(f"seed_share={self.seed_share}: expected a share above 0 and up to 1")
        if set(self.writers) - {"ready"} and self.candidates > 1 and self.temperature == 0:
            raise UsageError(
                f"candidates={self.candidates} with temperature 0 would be {self.candidates} times the same text: set "
                f"a temperature above 0, or candidates 1"
            )
        try:
            self.sampling(steps=True)
        except ValueError as error:
            raise UsageError(str(error)) from error
        try:
            self.contrast()
        except ValueError as error:
            raise UsageError(f"contrast_{error}") from error

    @property
    def needs_teacher(self) -> bool:
        """Whether any request goes to a teacher."""
        return self.hinted_retry or any(name not in _OTHERS for name in self.writers)

    def sampling(self, *, steps: bool) -> Sampling:
        """The teacher's sampling; `steps`: for a step-keyed reply."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            json_schema=SCHEMA if steps else None,
        )

    def contrast(self) -> Contrast:
        """How the contrastive writers decode."""
        return Contrast(self.contrast_weight, self.contrast_plausibility)
