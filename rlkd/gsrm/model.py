"""The generative structure reward model: a decomposer, a judge and the alignment put together.

>>> import asyncio
>>> from rlkd.gsrm import GSRM, DeterministicJudge, RulesDecomposer, Trace
>>> gsrm = GSRM(RulesDecomposer(), DeterministicJudge())
>>> teacher, student = asyncio.run(gsrm.structure([
...     Trace("...", "In May she sold 48/2 = 24 clips. In all she sold 48+24 = 72 clips."),
...     Trace("...", "In May she sold 48/2 = 24 clips. So she sold 48+48 = 96 clips in all."),
... ]))
>>> asyncio.run(gsrm.reward([student], [[teacher]]))[0].score.value
0.625
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlkd.answers import number, squeezed
from rlkd.cache import Cache, cache_key
from rlkd.gsrm.alignment import (
    NORMS,
    Norm,
    StructureScore,
    Verdict,
    answers_score,
    best_branch,
    ordered_score,
    structure_score,
)
from rlkd.gsrm.decomposers import Decomposer, DecompositionError, Trace
from rlkd.gsrm.judges import Judge, JudgeError, Pair
from rlkd.structure import Structure


@dataclass(frozen=True, slots=True)
class Judgement:
    """A score with everything that led to it: the student's steps, the branch it was compared with, the verdicts.

    `verdicts` belong to the pairs of `score.steps`, in order (a cascade's may end early, after a meta mismatch). Under
    the norm `answers` there are none: nobody was asked, and every pair of `score.matches` has equal answers.
    """

    score: StructureScore
    student: Structure
    teacher: Structure
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON log."""
        matches = self.score.matches
        return {
            "student": self.student.to_list(),
            "teacher": self.teacher.to_list(),
            "verdicts": [{"meta": v.meta, "question": v.question, "answer": v.answer} for v in self.verdicts],
            "steps": list(self.score.steps),
            "norm": self.score.norm,
            "branch": self.score.branch,
            "value": self.score.value,
            "divisor": self.score.divisor,
            "matches": None if matches is None else [list(pair) for pair in matches],
        }


class GSRM:
    """Structures of traces, and the reward of a student's structure against the teacher's.

    Args:
        decomposer: see `rlkd.gsrm.decomposers`.
        judge: see `rlkd.gsrm.judges`.
        norm: see `rlkd.gsrm.alignment`. `answers` never calls the judge; `ordered` has every step of the student
            compared with every step of the teacher, which is cheap with a judge that is.
        store: a file in which structures of teacher traces are kept across runs, for decomposers that cost
            something.
    """

    def __init__(self, decomposer: Decomposer, judge: Judge, *, norm: Norm = "teacher", store: Path | None = None):
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORMS)}")
        self.decomposer = decomposer
        self.judge = judge
        self.norm = norm
        self.store = StructureStore(store) if store is not None else None

    async def structure(self, traces: Sequence[Trace]) -> list[Structure | DecompositionError]:
        """The structure of each trace; each distinct trace is decomposed once, those of teachers once for all runs."""
        kept = {trace for trace in traces if trace.teacher}
        found: dict[Trace, Structure | DecompositionError] = {}
        if self.store is not None:
            found.update(self.store.get(self.decomposer.fingerprint, kept))
        new = [trace for trace in dict.fromkeys(traces) if trace not in found]
        made = dict(zip(new, await self.decomposer.decompose(new), strict=True)) if new else {}
        if self.store is not None:
            fresh = {t: s for t, s in made.items() if t in kept and isinstance(s, Structure)}
            self.store.put(self.decomposer.fingerprint, fresh)
        found |= made
        return [found[trace] for trace in traces]

    async def reward(
        self, students: Sequence[Structure], teachers: Sequence[Sequence[Structure]]
    ) -> list[Judgement | JudgeError]:
        """The best judgement of each student's structure over the branches of its teacher (maximum over branches).

        `teachers[i]`: the structures of the correct teacher traces of problem i, at least one, each with a step.
        Raises ValueError where there is none: the reward is not applicable there, and the caller must say so.
        """
        return [
            found if isinstance(found, JudgeError) else found[best_branch([j.score for j in found]).branch]
            for found in await self.compare(students, teachers)
        ]

    async def compare(
        self, students: Sequence[Structure], teachers: Sequence[Sequence[Structure]]
    ) -> list[list[Judgement] | JudgeError]:
        """The judgement of each student's structure against every branch of its teacher, in order.

        Arguments and errors as for `reward`.
        """
        pairs: list[Pair] = []
        for i, (student, branches) in enumerate(zip(students, teachers, strict=True)):
            if not branches or not all(len(branch) for branch in branches):
                raise ValueError(f"problem {i}: no teacher branch with steps, so there is nothing to compare with")
            pairs.extend((student, branch) for branch in branches)
        verdicts = await self._verdicts(pairs)
        return [
            self._judgements(student, branches, verdicts) for student, branches in zip(students, teachers, strict=True)
        ]

    async def _verdicts(self, pairs: Iterable[Pair]) -> dict[Pair, list[Verdict] | JudgeError]:
        """What the judge says of the pairs that the norm needs, in one call; equal pairs are judged once.

        A group often holds equal completions.
        """
        if self.norm == "answers":
            return {}
        if self.norm == "ordered":
            # A judge walks along two structures; single steps as structures make it compare any with any.
            pairs = (
                (Structure([mine]), Structure([theirs]))
                for student, branch in dict.fromkeys(pairs)
                for mine in student
                for theirs in branch
            )
        distinct = list(dict.fromkeys(pairs))
        return dict(zip(distinct, await self.judge.judge(distinct), strict=True)) if distinct else {}

    def _judgements(
        self,
        student: Structure,
        branches: Sequence[Structure],
        known: dict[Pair, list[Verdict] | JudgeError],
    ) -> list[Judgement] | JudgeError:
        longest = max(map(len, branches))
        judgements = []
        for place, branch in enumerate(branches):
            verdicts: Sequence[Verdict] = ()
            if self.norm == "answers":
                score = answers_score(_answers(student), _answers(branch))
            elif self.norm == "ordered":
                table: list[list[Verdict]] = []
                for mine in student:
                    row = []
                    for theirs in branch:
                        said = known[Structure([mine]), Structure([theirs])]
                        if isinstance(said, JudgeError):
                            return said
                        row += said
                    table.append(row)
                score = ordered_score(table, len(student), len(branch))
                verdicts = [table[i][j] for i, j in score.matches or ()]
            else:
                said = known[student, branch]
                if isinstance(said, JudgeError):
                    return said
                verdicts = said
                score = structure_score(verdicts, len(student), len(branch), self.norm, longest)
            judgements.append(Judgement(replace(score, branch=place), student, branch, tuple(verdicts)))
        return judgements


def comparable(teacher: Structure, norm: Norm) -> bool:
    """Whether there is anything in a teacher's structure that a student can match: a step; under `answers` an answer.

    Where it holds for no branch, the reward is not applicable.
    """
    return any(norm != "answers" or step.answer is not None for step in teacher)


def _answers(structure: Structure) -> list[Hashable | None]:
    """The answers in a form that is equal exactly where `rlkd.gsrm.judges.same_answer` holds."""
    answers: list[Hashable | None] = []
    for step in structure:
        value = None if step.answer is None else number(step.answer)
        answers.append(squeezed(step.answer) if value is None and step.answer is not None else value)
    return answers


class StructureStore:
    """Structures in a file that threads, processes and runs share (`rlkd.cache`).

    Keyed by the decomposer's fingerprint, the exact problem and trace, and whether it is a teacher's: a decomposer may
    take what is cut short from a student only. Only results are kept, never errors.
    """

    def __init__(self, path: Path):
        self.cache = Cache(path)

    def get(self, fingerprint: str, traces: set[Trace]) -> dict[Trace, Structure]:
        """The known structures among those of `traces`, by one query."""
        keys = {_key(fingerprint, trace): trace for trace in traces}
        return {keys[key]: Structure.from_list(steps) for key, steps in self.cache.get(list(keys)).items()}

    def put(self, fingerprint: str, structures: dict[Trace, Structure]) -> None:
        """Keep structures, in one transaction; one that is there already stays as it is."""
        self.cache.put({_key(fingerprint, trace): made.to_list() for trace, made in structures.items()})


def _key(fingerprint: str, trace: Trace) -> str:
    return cache_key("structure", fingerprint, trace.question, trace.text, "teacher" if trace.teacher else "student")
