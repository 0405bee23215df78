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

import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.gsrm.alignment import Norm, StructureScore, Verdict, best_branch, structure_score
from rlkd.gsrm.decomposers import Decomposer, DecompositionError, Trace
from rlkd.gsrm.judges import Judge, JudgeError
from rlkd.structure import Structure


@dataclass(frozen=True, slots=True)
class Judgement:
    """A score with everything that led to it: the student's steps, the branch it was compared with, the verdicts."""

    score: StructureScore
    student: Structure
    teacher: Structure
    verdicts: tuple[Verdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON log."""
        return {
            "student": self.student.to_list(),
            "teacher": self.teacher.to_list(),
            "verdicts": [{"meta": v.meta, "question": v.question, "answer": v.answer} for v in self.verdicts],
            "steps": list(self.score.steps),
            "norm": self.score.norm,
            "branch": self.score.branch,
        }


class GSRM:
    """Structures of traces, and the reward of a student's structure against the teacher's.

    Args:
        decomposer: see `rlkd.gsrm.decomposers`.
        judge: see `rlkd.gsrm.judges`.
        norm: see `rlkd.gsrm.alignment.structure_score`.
        store: a file in which structures of teacher traces are kept across runs, for decomposers that cost
            something.
    """

    def __init__(self, decomposer: Decomposer, judge: Judge, *, norm: Norm = "teacher", store: Path | None = None):
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
        pairs: list[tuple[Structure, Structure]] = []
        for i, (student, branches) in enumerate(zip(students, teachers, strict=True)):
            if not branches or not all(len(branch) for branch in branches):
                raise ValueError(f"problem {i}: no teacher branch with steps, so there is nothing to compare with")
            pairs.extend((student, branch) for branch in branches)
        # Equal pairs (a group often holds equal completions) are judged once.
        distinct = list(dict.fromkeys(pairs))
        verdicts = dict(zip(distinct, await self.judge.judge(distinct), strict=True))
        return [
            self._best(student, branches, [verdicts[student, branch] for branch in branches])
            for student, branches in zip(students, teachers, strict=True)
        ]

    def _best(
        self, student: Structure, branches: Sequence[Structure], judged: Sequence[list[Verdict] | JudgeError]
    ) -> Judgement | JudgeError:
        longest = max(map(len, branches))
        scores = []
        for branch, verdicts in zip(branches, judged, strict=True):
            if isinstance(verdicts, JudgeError):
                return verdicts
            scores.append(structure_score(verdicts, len(student), len(branch), self.norm, longest))
        best = best_branch(scores)
        verdicts = judged[best.branch]
        assert not isinstance(verdicts, JudgeError)
        return Judgement(best, student, branches[best.branch], tuple(verdicts))


class StructureStore:
    """Structures on disk, one SQLite file that several processes and runs may share.

    Keyed by the decomposer's fingerprint and the exact problem and trace. Only results are kept, never errors.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._local = threading.local()

    def get(self, fingerprint: str, traces: set[Trace]) -> dict[Trace, Structure]:
        """The known structures among those of `traces`."""
        found = {}
        for trace in traces:
            query = "SELECT steps FROM structures WHERE key = ?"
            row = self._connection().execute(query, (_key(fingerprint, trace),)).fetchone()
            if row is not None:
                found[trace] = Structure.from_list(json.loads(row[0]))
        return found

    def put(self, fingerprint: str, structures: dict[Trace, Structure]) -> None:
        """Keep structures; one that is there already stays as it is."""
        if not structures:
            return
        rows = [(_key(fingerprint, trace), json.dumps(s.to_list())) for trace, s in structures.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO structures VALUES (?, ?)", rows)

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60.0)
            with connection:
                connection.execute("CREATE TABLE IF NOT EXISTS structures (key TEXT PRIMARY KEY, steps TEXT NOT NULL)")
            self._local.connection = connection
        return self._local.connection

    def __reduce__(self) -> tuple[type[StructureStore], tuple[Path]]:
        return StructureStore, (self.path,)


def _key(fingerprint: str, trace: Trace) -> str:
    return hashlib.sha256(json.dumps([fingerprint, trace.question, trace.text]).encode()).hexdigest()
