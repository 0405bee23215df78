"""The generative structure reward model (GSRM): a decomposer, a judge and an alignment rule put together.

>>> import asyncio
>>> from rlkd.gsrm import GSRM, DeterministicJudge, ReasoningTrace, RulesDecomposer
>>> gsrm = GSRM(RulesDecomposer(), DeterministicJudge())
>>> teacher, student = asyncio.run(gsrm.structure([
...     ReasoningTrace("...", "In May she sold 48/2 = 24 clips. In all she sold 48+24 = 72 clips."),
...     ReasoningTrace("...", "In May she sold 48/2 = 24 clips. So she sold 48+48 = 96 clips in all."),
... ]))
>>> asyncio.run(gsrm.reward([student], [[teacher]]))[0].value
0.625
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.gsrm.alignment import Alignment, BranchScore, Ordered, Pair, Verdict, best_branch
from rlkd.gsrm.decomposers import Decomposer, DecompositionError
from rlkd.gsrm.judges import Judge, JudgeError
from rlkd.gsrm.stores import StructureStore
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.structure import Structure


class GSRM:
    """Structures of traces, and the reward of a student's structure against the teacher's.

    `alignment`: default `ordered`. `store`: file that stores structures of teacher traces across runs, for costly
    decomposers; `store_students`: those of student traces, too.
    """

    def __init__(
        self,
        decomposer: Decomposer,
        judge: Judge,
        *,
        alignment: Alignment | None = None,
        store: Path | None = None,
        store_students: bool = False,
    ):
        self.decomposer = decomposer
        self.judge = judge
        self.alignment = alignment or Ordered()
        self.store = StructureStore(store) if store is not None else None
        self.store_students = store_students

    async def structure(self, traces: Sequence[ReasoningTrace]) -> list[Structure | DecompositionError]:
        """The structure of each trace; each distinct trace is decomposed once, a stored one once for all runs."""
        stored = {trace for trace in traces if trace.teacher or self.store_students}
        found: dict[ReasoningTrace, Structure | DecompositionError] = {}
        if self.store is not None:
            found.update(self.store.get(self.decomposer.fingerprint, stored))
        new = [trace for trace in dict.fromkeys(traces) if trace not in found]
        made = dict(zip(new, await self.decomposer.decompose(new), strict=True)) if new else {}
        if self.store is not None:
            fresh = {t: s for t, s in made.items() if t in stored and isinstance(s, Structure)}
            self.store.put(self.decomposer.fingerprint, fresh)
        found |= made
        return [found[trace] for trace in traces]

    async def reward(
        self, students: Sequence[Structure], teachers: Sequence[Sequence[Structure]]
    ) -> list[BranchScore | JudgeError]:
        """The score of each student's structure against the branch of its teacher that it follows best.

        `teachers[i]`: the structures of the correct teacher traces of problem i, at least one, each with a step.
        Raises ValueError where there is none: the reward is not applicable there, and the caller must say so.
        """
        compared = await self.compare(students, teachers)
        return [scores if isinstance(scores, JudgeError) else best_branch(scores) for scores in compared]

    async def compare(
        self, students: Sequence[Structure], teachers: Sequence[Sequence[Structure]]
    ) -> list[list[BranchScore] | JudgeError]:
        """The score of each student's structure against every branch of its teacher, in order (see `reward`).

        Equal pairs are judged once, all of them in one call: a group often holds equal completions.
        """
        pairs: dict[Pair, list[Pair]] = {}
        for i, (student, branches) in enumerate(zip(students, teachers, strict=True)):
            if not branches or not all(len(branch) for branch in branches):
                raise ValueError(f"problem {i}: no teacher branch with steps, so there is nothing to compare with")
            for branch in branches:
                if (student, branch) not in pairs:
                    pairs[student, branch] = self.alignment.pairs(student, branch)
        distinct = list(dict.fromkeys(pair for needed in pairs.values() for pair in needed))
        verdicts = dict(zip(distinct, await self.judge.judge(distinct), strict=True)) if distinct else {}
        results: list[list[BranchScore] | JudgeError] = []
        for student, branches in zip(students, teachers, strict=True):
            n_longest = max(map(len, branches))
            scores = []
            try:
                for index, branch in enumerate(branches):
                    judged = [_verdicts(verdicts[pair]) for pair in pairs[student, branch]]
                    scores.append(replace(self._scored(student, branch, judged, n_longest), branch=index))
                results.append(scores)
            except JudgeError as error:
                results.append(error)
        return results

    def _scored(
        self, student: Structure, branch: Structure, judged: Sequence[list[Verdict]], n_longest: int
    ) -> BranchScore:
        """The rule's score; a rule that breaks ends the run with its name, for it may be a user's."""
        try:
            score = self.alignment.score(student, branch, judged, n_longest)
        except Exception as error:
            raise UsageError(f"alignment rule {self.alignment.name!r}: score() raised {error!r}") from error
        if not isinstance(score, BranchScore):
            raise UsageError(
                f"alignment rule {self.alignment.name!r}: score() returned {score!r}; expected a BranchScore "
                f"(rlkd.gsrm.alignment)"
            )
        return score


def _verdicts(result: list[Verdict] | JudgeError) -> list[Verdict]:
    if isinstance(result, JudgeError):
        raise result
    return result


def compare_traces(gsrm: GSRM, question: str, student: str, teachers: Sequence[str | Structure]) -> list[BranchScore]:
    """The score of a student's trace against each of the teacher's that can be compared; `UsageError` for none."""
    traces = [ReasoningTrace(question, student)]
    traces += [ReasoningTrace(question, text, teacher=True) for text in teachers if isinstance(text, str)]
    structures = []
    for trace, structure in zip(traces, run(gsrm.structure(traces)), strict=True):
        if isinstance(structure, DecompositionError):
            whose = "teacher" if trace.teacher else "student"
            raise UsageError(f"the {whose}'s trace cannot be decomposed: {structure}")
        structures.append(structure)
    decomposed = iter(structures[1:])
    branches = [next(decomposed) if isinstance(teacher, str) else teacher for teacher in teachers]
    usable = [branch for branch in branches if gsrm.alignment.comparable(branch)]
    if not usable:
        raise UsageError(
            "not applicable: no teacher trace has a step to compare with, so a run leaves this reward out"
        )
    [scores] = run(gsrm.compare(structures[:1], [usable]))
    if isinstance(scores, JudgeError):
        raise UsageError(f"the judge gave no verdict: {scores}")
    return scores
