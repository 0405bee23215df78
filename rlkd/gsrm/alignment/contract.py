"""What an alignment rule is, what it gets and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rlkd.structure import Structure

Pair = tuple[Structure, Structure]
"""Two structures, student and teacher, whose i-th steps a judge compares with each other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the fields of a student's step agree with those of a teacher's step.

    None: only one side has the field, so there is nothing to compare. Two steps that both lack it agree: True.
    """

    meta: bool
    question: bool | None
    answer: bool | None


@dataclass(frozen=True, slots=True)
class BranchScore:
    """The score of a student's structure against one branch of the teacher's, with everything that led to it.

    `verdicts`: those on the pairs of `steps`, in order; may end early, or be empty where a rule needs none. `matches`:
    which steps each pair of `steps` joins, as indices (student, teacher) from 0, both in ascending order or only the
    student's; None for the i-th with the i-th. `branch`: index of the teacher's branch, set by `GSRM`.
    """

    student: Structure
    teacher: Structure
    alignment: str
    steps: tuple[float, ...]
    divisor: float
    verdicts: tuple[Verdict, ...] = field(default=(), repr=False)
    matches: tuple[tuple[int, int], ...] | None = field(default=None, repr=False)
    branch: int = 0

    @property
    def value(self) -> float:
        """The sum of the step scores, divided."""
        return sum(self.steps) / self.divisor

    def student_scores(self) -> list[float]:
        """The share of `value` that each step of the student earned; they sum up to it."""
        shares = [0.0] * len(self.student)
        matches = self.matches if self.matches is not None else [(i, i) for i in range(len(self.steps))]
        for (own, _), score in zip(matches, self.steps, strict=True):
            shares[own] += score / self.divisor
        return shares

    def __str__(self) -> str:
        steps = " ".join(f"{score:g}" for score in self.steps) or "none to compare"
        return (
            f"{self.value:.3g} ({self.alignment}, branch {self.branch}, {len(self.student)} student steps, "
            f"{len(self.teacher)} teacher steps; per step: {steps})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON log; `from_dict` is the inverse."""
        return {
            "student": self.student.to_list(),
            "teacher": self.teacher.to_list(),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "steps": list(self.steps),
            "alignment": self.alignment,
            "branch": self.branch,
            "value": self.value,
            "divisor": self.divisor,
            "matches": None if self.matches is None else [list(pair) for pair in self.matches],
        }

    @classmethod
    def from_dict(cls, logged: Mapping[str, Any]) -> BranchScore:
        """Read a logged score back."""
        matches = logged["matches"]
        return cls(
            Structure.from_list(logged["student"]),
            Structure.from_list(logged["teacher"]),
            logged["alignment"],
            tuple(logged["steps"]),
            logged["divisor"],
            tuple(Verdict(**verdict) for verdict in logged["verdicts"]),
            None if matches is None else tuple((student, teacher) for student, teacher in matches),
            logged["branch"],
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a branch has its score: verdict and arithmetic per scored pair, the divisor's meaning, closing sentences."""

    verdicts: tuple[str, ...]
    steps: tuple[str, ...]
    divisor: str = ""
    notes: tuple[str, ...] = ()


class Alignment(ABC):
    """A rule that pairs the steps of two structures and scores the pairs. Frozen, and free of models.

    A subclass needs `pairs` and `score`; the rest has defaults. One that is a frozen dataclass may have parameters.
    """

    source: ClassVar[str] = "a rule of your own"
    """Whose rule it is, for the log of a run."""

    every_pair: ClassVar[bool] = False
    """Whether `pairs` compares every step with every other, which is much to pay for with a costly judge."""

    @property
    def name(self) -> str:
        """The rule's name in logs and reports."""
        return type(self).__name__

    @abstractmethod
    def pairs(self, student: Structure, branch: Structure) -> list[Pair]:
        """The structures that a judge must compare; whole ones to be followed step by step, or single steps."""

    @abstractmethod
    def score(
        self, student: Structure, branch: Structure, verdicts: Sequence[Sequence[Verdict]], n_longest: int
    ) -> BranchScore:
        """The score, given the judge's verdicts on each of `pairs`.

        `verdicts[k]` has a verdict per aligned step of the k-th pair, and may end early after one whose meta parts
        differ. `n_longest`: number of steps of the longest branch of the same problem, `branch` included.
        """

    def comparable(self, branch: Structure) -> bool:
        """Whether a student can match anything in a teacher's structure; if in none, the reward is not applicable."""
        return len(branch) > 0

    def explain(self, score: BranchScore) -> Explanation:
        """Words for a score of this rule."""
        return explain_plainly(score)


def explain_plainly(score: BranchScore) -> Explanation:
    """An explanation without knowledge of the rule: each pair's verdict and its score."""
    verdicts = [verdict_text(verdict) for verdict in score.verdicts]
    verdicts += ["not compared"] * (len(score.steps) - len(verdicts))
    steps = [f"{text} -> {points:g}" for text, points in zip(verdicts, score.steps, strict=True)]
    return Explanation(tuple(verdicts), tuple(steps))


def verdict_text(verdict: Verdict) -> str:
    """A verdict on meta, question and answer, such as "yes / yes / no"."""
    words = {True: "yes", False: "no", None: "missing"}
    return " / ".join(words[same] for same in (verdict.meta, verdict.question, verdict.answer))


def best_branch(scores: Sequence[BranchScore]) -> BranchScore:
    """The best of the scores against the teacher's branches; the first one wins a tie.

    Our choice: the paper has one teacher trace. The student may solve the problem in any of the teacher's ways, so it
    earns the maximum, and no average that would punish taking one of them.
    """
    return max(scores, key=lambda score: score.value)
