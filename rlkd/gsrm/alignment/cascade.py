"""The cascade of RLKD (arXiv 2505.16142): the i-th step against the i-th, until the meta parts differ.

With n_T = 4 teacher steps and n_S = 3 student steps, the third of which pursues another sub-question:

    >>> from rlkd.structure import Step
    >>> student, teacher = Structure([Step("?")] * 3), Structure([Step("?")] * 4)
    >>> verdicts = [Verdict(True, True, False), Verdict(True, False, True), Verdict(False, True, True)]
    >>> Sum().score(student, teacher, [verdicts], 4).steps
    (0.5, 0.5, 0.0)
    >>> Sum().score(student, teacher, [verdicts], 4).value, Teacher().score(student, teacher, [verdicts], 4).value
    (1.0, 0.25)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlkd.gsrm.alignment.contract import Alignment, BranchScore, Explanation, Pair, Verdict, verdict_text
from rlkd.structure import Structure

MEAN_OF_STEPS = "mean of {} student and {} teacher steps"


def step_scores(verdicts: Sequence[Verdict], *, missing_is_mismatch: bool) -> list[float]:
    """The score of each pair of steps, one in {0, 1/4, 1/2, 1} for each verdict (RLKD, arXiv 2505.16142).

        g_i = m_1 * ... * m_i                                             (m: the meta parts agree)
        r_i = g_i * (1/2)^[questions differ] * (1/2)^[answers differ]

    `missing_is_mismatch`: the effect of None. False is the released code: no penalty. True halves the step (our choice
    for normalised scores, where leaving a field out must not pay better than filling it in).
    """
    scores = []
    alive = True
    for verdict in verdicts:
        alive = alive and verdict.meta
        scores.append(0.5 ** len(halvings(verdict, missing_is_mismatch=missing_is_mismatch)) if alive else 0.0)
    return scores


def halvings(verdict: Verdict, *, missing_is_mismatch: bool) -> list[str]:
    """The reasons for which a pair of steps with agreeing meta parts loses half of its score."""
    reasons = []
    for field, same in (("question", verdict.question), ("answer", verdict.answer)):
        if same is False:
            reasons.append(f"{field} differs")
        elif same is None and missing_is_mismatch:
            reasons.append(f"{field} missing on one side")
    return reasons


def halving_arithmetic(verdict: Verdict, score: float, *, missing_is_mismatch: bool) -> str:
    """The arithmetic of a pair of steps with agreeing meta parts."""
    halved = halvings(verdict, missing_is_mismatch=missing_is_mismatch)
    factors = f"{' and '.join(halved)}: 1{' x 1/2' * len(halved)} =" if halved else "nothing halved ->"
    return f"{factors} {score:g}"


class Cascade(Alignment):
    """The cascade; the rules differ in what the sum of the step scores is divided by.

    `steps` has min(n_student, n_teacher) scores, zeros after the break included.
    """

    missing_is_mismatch: ClassVar[bool] = True
    divisor_text: ClassVar[str]

    @abstractmethod
    def divisor(self, n_student: int, n_teacher: int, n_longest: int) -> float:
        """The divisor of the sum of the step scores; one below 1 counts as 1."""

    def pairs(self, student: Structure, branch: Structure) -> list[Pair]:
        """See `Alignment`: the two structures as a whole."""
        return [(student, branch)]

    def score(
        self, student: Structure, branch: Structure, verdicts: Sequence[Sequence[Verdict]], n_longest: int
    ) -> BranchScore:
        """See `Alignment`. Raises ValueError for a number of verdicts that does not fit the structures."""
        [judged] = verdicts
        pairs = min(len(student), len(branch))
        ended_early = len(judged) < pairs and not all(verdict.meta for verdict in judged)
        if len(judged) != pairs and not ended_early:
            raise ValueError(
                f"{len(judged)} verdicts for min(n_student={len(student)}, n_teacher={len(branch)}) = {pairs} pairs; "
                "fewer are allowed only after a meta mismatch"
            )
        scores = step_scores(judged, missing_is_mismatch=self.missing_is_mismatch)
        scores += [0.0] * (pairs - len(scores))
        divisor = max(1.0, self.divisor(len(student), len(branch), n_longest))
        return BranchScore(student, branch, self.name, tuple(scores), divisor, tuple(judged))

    def explain(self, score: BranchScore) -> Explanation:
        """See `Alignment`; names the step at which the chain breaks."""
        broken_at = next((i for i, verdict in enumerate(score.verdicts) if not verdict.meta), None)
        verdicts, steps = [], []
        for index, points in enumerate(score.steps):
            verdict = score.verdicts[index] if index < len(score.verdicts) else None
            verdicts.append("after the break" if verdict is None else verdict_text(verdict))
            if verdict is not None and (broken_at is None or index < broken_at):
                arithmetic = halving_arithmetic(verdict, points, missing_is_mismatch=self.missing_is_mismatch)
                steps.append(f"g = 1, {arithmetic}")
            elif index == broken_at:
                steps.append("the meta parts differ, g = 0 from here on -> 0")
            else:
                steps.append("g = 0, after the break -> 0")
        return Explanation(
            tuple(verdicts),
            tuple(steps),
            self.divisor_text.format(len(score.student), len(score.teacher)),
            () if broken_at is None else _notes(score, broken_at),
        )


def _notes(score: BranchScore, broken_at: int) -> tuple[str, ...]:
    student, teacher = score.student[broken_at].purpose, score.teacher[broken_at].purpose
    note = (
        f"The chain breaks at step {broken_at + 1}: the student turns to {student!r}, the teacher to {teacher!r}; the "
        f"judge takes these for two sub-problems."
    )
    lost = len(score.steps) - broken_at - 1
    if not lost:
        return (note,)
    return note, f"{lost} later {'pair' if lost == 1 else 'pairs'} of steps can therefore earn nothing."


@dataclass(frozen=True)
class Teacher(Cascade):
    """The share of the teacher's steps, in [0, 1]; a missing field is a mismatch.

    Our choice: one weight suits short and long traces. Divided by the length of the longest branch of
    the problem, since dividing by each branch's own length would favour the shortest.
    """

    name = "teacher"
    source = "the paper's cascade, divided by the teacher's steps: our choice"
    divisor_text = "steps of the longest branch"

    def divisor(self, n_student: int, n_teacher: int, n_longest: int) -> float:
        """See `Cascade`."""
        return float(n_longest)


@dataclass(frozen=True)
class Sum(Cascade):
    """The plain sum, in [0, min(n_student, n_teacher)]; a missing field costs nothing.

    The paper (arXiv 2505.16142), whose reward therefore grows with the length of the teacher's trace.
    """

    name = "sum"
    source = "the paper's rule, arXiv 2505.16142"
    divisor_text = "the paper's sum is not divided"
    missing_is_mismatch = False

    def divisor(self, n_student: int, n_teacher: int, n_longest: int) -> float:
        """See `Cascade`."""
        return 1.0


@dataclass(frozen=True)
class F1(Cascade):
    """Twice the sum over the steps of both sides, in [0, 1]; a missing field is a mismatch.

    Our choice: surplus student steps cost something, which the other two ignore. A student can therefore gain by
    stopping early, as under every rule that divides by the student's steps too (`ordered`, `answers`): one more step
    pays in expectation if it matches with a probability above half of the score so far.
    """

    name = "f1"
    source = "the paper's cascade, divided by the steps of both sides: our choice"
    divisor_text = MEAN_OF_STEPS

    def divisor(self, n_student: int, n_teacher: int, n_longest: int) -> float:
        """See `Cascade`."""
        return (n_student + n_teacher) / 2
