"""The arithmetic of the structure reward: verdicts on pairs of steps in, a score out.

A judge compares the student's i-th step with the teacher's i-th and gives a `Verdict`; this module turns the verdicts
into numbers and knows nothing of text or models.

| norm      | which steps are compared                     | divided by                    | whose     |
| --------- | -------------------------------------------- | ----------------------------- | --------- |
| `teacher` | the i-th with the i-th, until a meta differs | steps of the teacher          | ours, default |
| `sum`     | the same                                     | nothing                       | the paper |
| `f1`      | the same                                     | mean number of steps          | ours |
| `ordered` | whichever correspond, in both sides' order   | mean number of steps          | ours |
| `answers` | those with equal answers, in any order       | mean number of answers        | ours |

The first three are the cascade of RLKD (arXiv 2505.16142), as in its released code. With n_T = 4 teacher steps and
n_S = 3 student steps, the third of which pursues another sub-question:

    >>> verdicts = [Verdict(True, True, False), Verdict(True, False, True), Verdict(False, True, True)]
    >>> structure_score(verdicts, n_student=3, n_teacher=4, norm="sum")
    StructureScore(value=1.0, steps=(0.5, 0.5, 0.0), n_student=3, n_teacher=4, norm='sum', branch=0)
    >>> structure_score(verdicts, n_student=3, n_teacher=4).value
    0.25

A student that takes one step more at the start has lost the cascade, whatever it does afterwards. `ordered` and
`answers` forgive that; they tell right from wrong solutions far better (`rlkd gsrm evaluate` measures by how much).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Norm = Literal["teacher", "sum", "f1", "ordered", "answers"]
NORMS: tuple[Norm, ...] = get_args(Norm)
CASCADES: tuple[Norm, ...] = ("teacher", "sum", "f1")


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

    `steps` holds the score of each compared pair, a number in {0, 1/4, 1/2, 1}. Of which steps, `matches` says, as
    places (student, teacher) counted from 0; None means the i-th with the i-th. What always holds:

    - value = sum(steps) / divisor; 0 where a side has nothing to compare, and `divisor` is then at least 1;
    - cascade: `matches` is None, and `steps` has min(n_student, n_teacher) numbers, zeros after the break included;
    - `ordered`: both sides of `matches` ascend; only pairs that earn something are in it;
    - `answers`: no step occurs twice in `matches`, the student's side ascends, and every score is 1.

    `branch` is the teacher's branch that it was compared with, as `best_branch` counts them.
    """

    value: float
    steps: tuple[float, ...]
    n_student: int
    n_teacher: int
    norm: str
    branch: int = 0
    divisor: float = field(default=1.0, repr=False)
    matches: tuple[tuple[int, int], ...] | None = field(default=None, repr=False)

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
    """The cascade score of a student's structure of `n_student` steps against a teacher branch of `n_teacher` steps.

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

    Raises ValueError for a norm that is no cascade, negative lengths, a number of verdicts that does not fit the
    lengths, or `n_longest` below `n_teacher`.
    """
    if norm not in CASCADES:
        raise ValueError(f"norm {norm!r} is no cascade; choose one of {', '.join(CASCADES)}")
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
    if norm == "sum":
        divisor = 1.0
    elif norm == "teacher":
        divisor = float(n_teacher if n_longest is None else n_longest)
    else:
        divisor = (n_student + n_teacher) / 2
    return _divided(total, divisor, tuple(scores), n_student, n_teacher, norm)


def ordered_score(verdicts: Sequence[Sequence[Verdict]], n_student: int, n_teacher: int) -> StructureScore:
    """The score under the norm `ordered`: the cascade's step scores, on the steps that correspond.

    `verdicts[i][j]` compares the student's step i with the teacher's step j: n_student rows of n_teacher. A pair earns
    (1/2)^[questions differ] * (1/2)^[answers differ] where the meta parts agree, else nothing; a missing field is a
    mismatch. R is the largest sum over pairs of which no two share a step or cross (a longest common subsequence with
    weights), and the value 2R / (n_student + n_teacher), in [0, 1].

    Our choice. A surplus or a left-out step costs its share and no longer everything after it, while the order of the
    steps still counts. Raises ValueError where the table does not fit the lengths.
    """
    if len(verdicts) != n_student or any(len(row) != n_teacher for row in verdicts):
        raise ValueError(
            f"a table of {len(verdicts)} rows of {sorted({len(row) for row in verdicts})} verdicts; expected "
            f"n_student={n_student} rows of n_teacher={n_teacher}"
        )
    scores = [[step_scores([verdict], missing_is_mismatch=True)[0] for verdict in row] for row in verdicts]
    # best[i][j]: the largest sum with the student's steps from i on and the teacher's from j on.
    best = [[0.0] * (n_teacher + 1) for _ in range(n_student + 1)]
    for i in reversed(range(n_student)):
        for j in reversed(range(n_teacher)):
            best[i][j] = max(scores[i][j] + best[i + 1][j + 1], best[i + 1][j], best[i][j + 1])
    matches = []
    i = j = 0
    while i < n_student and j < n_teacher:
        # The scores are multiples of 1/4, so the sums are exact and can be compared.
        if scores[i][j] and best[i][j] == scores[i][j] + best[i + 1][j + 1]:
            matches.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    steps = tuple(scores[i][j] for i, j in matches)
    divisor = (n_student + n_teacher) / 2
    return _divided(best[0][0], divisor, steps, n_student, n_teacher, "ordered", tuple(matches))


def answers_score(student: Sequence[Hashable | None], teacher: Sequence[Hashable | None]) -> StructureScore:
    """The score under the norm `answers`: F1 of the multisets of step answers, whatever their order.

    `student`, `teacher`: the answer of each step as a value that equals another exactly where the answers are the
    same; None for a step without an answer, which counts on neither side. A repeated answer counts as often as it
    stands on both sides. Value 2 * matches / (answers of the student + answers of the teacher), in [0, 1].

    Our choice: no judge, and no order. Padding costs, as under `f1`; so does a student's wrong result, by its place
    among the answers.
    """
    free: dict[Hashable, list[int]] = {}
    for place, answer in enumerate(teacher):
        if answer is not None:
            free.setdefault(answer, []).append(place)
    matches = []
    for place, answer in enumerate(student):
        if answer is not None and free.get(answer):
            matches.append((place, free[answer].pop(0)))
    answers = sum(answer is not None for side in (student, teacher) for answer in side)
    steps = (1.0,) * len(matches)
    return _divided(float(len(matches)), answers / 2, steps, len(student), len(teacher), "answers", tuple(matches))


def _divided(
    total: float,
    divisor: float,
    steps: tuple[float, ...],
    n_student: int,
    n_teacher: int,
    norm: Norm,
    matches: tuple[tuple[int, int], ...] | None = None,
) -> StructureScore:
    divisor = max(1.0, divisor)  # below 1 there is nothing to divide
    return StructureScore(total / divisor, steps, n_student, n_teacher, norm, divisor=divisor, matches=matches)


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
