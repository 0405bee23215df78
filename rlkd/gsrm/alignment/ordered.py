"""The rule `ordered`: the best matching of steps that keeps the order of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd.gsrm.alignment.cascade import MEAN_OF_STEPS, halving_arithmetic, step_scores
from rlkd.gsrm.alignment.contract import Alignment, BranchScore, Explanation, Pair, Verdict, verdict_text
from rlkd.structure import Structure


@dataclass(frozen=True)
class Ordered(Alignment):
    """The cascade's step scores, on the steps that correspond; in [0, 1].

    A pair earns (1/2)^[questions differ] * (1/2)^[answers differ] where the meta parts agree, else nothing; a missing
    field is a mismatch. The score is the largest sum over pairs of which no two share a step or cross (a longest
    common subsequence with weights), divided by the mean number of steps. `matches` has the pairs that earn something.

    Our choice: a surplus or a left-out step costs its share and not everything after it. Every step of the student is
    compared with every step of the teacher, which suits a cheap judge.
    """

    name = "ordered"
    source = "our choice, not the paper's rule"
    every_pair = True

    def pairs(self, student: Structure, branch: Structure) -> list[Pair]:
        """See `Alignment`: single steps, so that any can be compared with any."""
        return [(Structure([own]), Structure([other])) for own in student for other in branch]

    def score(
        self, student: Structure, branch: Structure, verdicts: Sequence[Sequence[Verdict]], n_longest: int
    ) -> BranchScore:
        """See `Alignment`."""
        flat = [verdict for [verdict] in verdicts]
        table = [flat[i * len(branch) : (i + 1) * len(branch)] for i in range(len(student))]
        scores = [[step_scores([verdict], missing_is_mismatch=True)[0] for verdict in row] for row in table]
        matches = best_matches(scores)
        return BranchScore(
            student,
            branch,
            self.name,
            tuple(scores[i][j] for i, j in matches),
            max(1.0, (len(student) + len(branch)) / 2),
            tuple(table[i][j] for i, j in matches),
            tuple(matches),
        )

    def explain(self, score: BranchScore) -> Explanation:
        """See `Alignment`."""
        return Explanation(
            tuple(map(verdict_text, score.verdicts)),
            tuple(
                halving_arithmetic(verdict, points, missing_is_mismatch=True)
                for verdict, points in zip(score.verdicts, score.steps, strict=True)
            ),
            MEAN_OF_STEPS.format(len(score.student), len(score.teacher)),
        )


def best_matches(scores: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The pairs (row, column), ascending on both sides, whose positive scores have the largest sum.

    Scores must be multiples of a power of 1/2, so that sums are exact and can be compared.
    """
    best = best_sums(scores)
    matches = []
    i = j = 0
    while i < len(scores) and j < len(scores[i]):
        if scores[i][j] and best[i][j] == scores[i][j] + best[i + 1][j + 1]:
            matches.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return matches


def best_sums(scores: Sequence[Sequence[float]]) -> list[list[float]]:
    """`best[i][j]`: the largest sum over pairs in order, with rows from i on and columns from j on."""
    columns = len(scores[0]) if scores else 0
    best = [[0.0] * (columns + 1) for _ in range(len(scores) + 1)]
    for i in reversed(range(len(scores))):
        for j in reversed(range(columns)):
            best[i][j] = max(scores[i][j] + best[i + 1][j + 1], best[i + 1][j], best[i][j + 1])
    return best
