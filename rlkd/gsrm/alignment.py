"""The arithmetic of the structure reward: verdicts on pairs of steps in, a score out.

A judge compares the student's i-th step with the teacher's i-th and gives a `Verdict`; this module turns the verdicts
into numbers and knows nothing of text or models. The rule is the cascade of RLKD (arXiv 2505.16142), as in its
released code. With n_T = 4 teacher steps and n_S = 3 student steps, the third of which pursues another sub-question:

    >>> verdicts = [Verdict(True, True, False), Verdict(True, False, True), Verdict(False, True, True)]
    >>> structure_score(verdicts, n_student=3, n_teacher=4, norm="sum")
    StructureScore(value=1.0, steps=(0.5, 0.5, 0.0), n_student=3, n_teacher=4, norm='sum', branch=0)
    >>> structure_score(verdicts, n_student=3, n_teacher=4).value
    0.25
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

Norm = Literal["sum", "teacher", "f1"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the fields of a student's step agree with those of the teacher's step at the same place.

    None: nothing to compare, because one side (not both) lacks the field. Two steps that both lack it agree: True.
    """

    meta: bool
    question: bool | None
    answer: bool | None


@dataclass(frozen=True, slots=True)
class StructureScore:
    """How well a student's structure follows one branch of the teacher's.

    `steps` holds the score of each compared pair, zeros after the break included: min(n_student, n_teacher) numbers in
    {0, 1/4, 1/2, 1}. `branch` is the teacher's branch that it was compared with, as `best_branch` counts them.
    """

    value: float
    steps: tuple[float, ...]
    n_student: int
    n_teacher: int
    norm: str
    branch: int = 0

    def __str__(self) -> str:
        steps = " ".join(f"{score:g}" for score in self.steps) or "none to compare"
        return (
            f"{self.value:.3g} ({self.norm}, branch {self.branch}, {self.n_student} student steps, "
            f"{self.n_teacher} teacher steps; per step: {steps})"
        )


def step_scores(verdicts: Sequence[Verdict], *, missing_is_mismatch: bool) -> list[float]:
    """The score of each pair of steps, one in {0, 1/4, 1/2, 1} for each verdict (RLKD, arXiv 2505.16142).

        g_i = m_1 * ... * m_i                                             (m: the meta parts agree)
        r_i = g_i * (1/2)^[questions differ] * (1/2)^[answers differ]

    Only a meta mismatch breaks the chain: a student that takes another sub-problem earns nothing from there on, while
    one that takes the teacher's and solves it wrongly loses half of that step.

    `missing_is_mismatch`: what None does. False is the released code: no penalty. True halves the step (our choice for
    normalised scores, where leaving a field out must not pay better than filling it in).
    """
    scores = []
    alive = True
    for verdict in verdicts:
        alive = alive and verdict.meta
        halvings = 0
        for same in (verdict.question, verdict.answer):
            agrees = not missing_is_mismatch if same is None else same
            halvings += not agrees
        scores.append(0.5**halvings if alive else 0.0)
    return scores


def structure_score(
    verdicts: Sequence[Verdict],
    n_student: int,
    n_teacher: int,
    norm: Norm = "teacher",
    n_longest: int | None = None,
) -> StructureScore:
    """The score of a student's structure of `n_student` steps against one teacher branch of `n_teacher` steps.

    `verdicts`: one for each pair, min(n_student, n_teacher) in all; it may end early once a meta mismatch has
    occurred, since nothing after it counts. A side without steps scores 0. The norms, with R the sum of the
    step scores:

    - `sum`: R, in [0, min(n_student, n_teacher)], missing fields free of penalty. The paper (arXiv 2505.16142), whose
      reward therefore grows with the length of the teacher's trace.
    - `teacher`: R / n_longest, in [0, 1], a missing field is a mismatch. Our choice, and the default: one weight suits
      short and long traces. `n_longest` is the length of the longest correct branch of the same problem (`n_teacher`
      if not given), since dividing by each branch's own length would favour the shortest.
    - `f1`: 2R / (n_student + n_teacher), in [0, 1], a missing field is a mismatch. Our choice: surplus student steps
      cost something, which the other two ignore. A student can therefore gain by stopping early under this norm alone.

    Raises ValueError for an unknown norm, negative lengths, a number of verdicts that does not fit the lengths, or
    `n_longest` below `n_teacher`.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(NORMS)}")
    if n_student < 0 or n_teacher < 0:
        raise ValueError(f"numbers of steps cannot be negative: n_student={n_student}, n_teacher={n_teacher}")
    if n_longest is not None and n_longest < n_teacher:
        raise ValueError(
            f"n_longest={n_longest} is less than n_teacher={n_teacher}: it is the length of the longest branch, "
            "this one included"
        )
    pairs = min(n_student, n_teacher)
    ended_early = len(verdicts) < pairs and not all(verdict.meta for verdict in verdicts)
    if len(verdicts) != pairs and not ended_early:
        raise ValueError(
            f"{len(verdicts)} verdicts for min(n_student={n_student}, n_teacher={n_teacher}) = {pairs} pairs; "
            "fewer are allowed only after a meta mismatch"
        )
    scores = step_scores(verdicts, missing_is_mismatch=norm != "sum")
    scores += [0.0] * (pairs - len(scores))
    total = sum(scores)
    if not pairs:
        value = 0.0
    elif norm == "sum":
        value = total
    elif norm == "teacher":
        value = total / (n_teacher if n_longest is None else n_longest)
    else:
        value = 2 * total / (n_student + n_teacher)
    return StructureScore(value, tuple(scores), n_student, n_teacher, norm)


def best_branch(scores: Sequence[StructureScore]) -> StructureScore:
    """The best of the scores against the teacher's branches, `branch` set to its index; the first one wins a tie.

    Our choice: the paper has one teacher trace. The student may solve the problem in any of the teacher's ways, so it
    earns the maximum, and no average that would punish taking one of them. Raises ValueError without scores, or when
    they carry different norms and cannot be compared.
    """
    if not scores:
        raise ValueError(
            "no scores: a teacher without branches makes the reward not applicable, it is not a score of 0"
        )
    norms = sorted({score.norm for score in scores})
    if len(norms) > 1:
        raise ValueError(f"scores under different norms cannot be compared: {', '.join(norms)}")
    index = max(range(len(scores)), key=lambda branch: scores[branch].value)
    return replace(scores[index], branch=index)
