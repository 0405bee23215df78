"""The built-in alignment rules with other divisors, and on parts of the teacher's steps.

The points are those of `rlkd.gsrm.alignment`, computed for many teachers of the same students at once.

Suffixes of arrays: S the student's steps, T the teacher's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from rlkd.answers import number, squeezed
from rlkd.gsrm.alignment import step_scores
from rlkd.gsrm.judges import DeterministicJudge
from rlkd.gsrm.teacher_steps import distinct_steps, path_steps
from rlkd.structure import Step, Structure


class Points:
    """The points of every student's step against any teacher's step, each pair judged once.

    `strict` is what a pair earns where a missing field is a mismatch, `lenient` where it costs nothing.
    """

    def __init__(self, students: Iterable[Structure]):
        self.steps = list(dict.fromkeys(step for student in students for step in student))
        self.row = {step: row for row, step in enumerate(self.steps)}
        self.judge = DeterministicJudge()
        self.columns: dict[Step, tuple[list[float], list[float]]] = {}

    def against(self, teacher: Structure) -> tuple[np.ndarray, np.ndarray]:
        """Strict and lenient points (rows, teacher's steps)."""
        for step in teacher:
            if step not in self.columns:
                judged = [self.judge.compare(own, step) for own in self.steps]
                self.columns[step] = tuple(  # type: ignore[assignment]
                    [step_scores([verdict], missing_is_mismatch=strict)[0] for verdict in judged]
                    for strict in (True, False)
                )
        found = np.array([self.columns[step] for step in teacher]).reshape(len(teacher), 2, len(self.steps))
        return found[:, 0].T, found[:, 1].T


@dataclass(frozen=True)
class TeacherPoints:
    """Some steps of a teacher's trace, ready to be compared with."""

    n: int
    results: Counter[Any]
    strict: np.ndarray
    lenient: np.ndarray


def teacher_points(teacher: Structure, points: Points) -> TeacherPoints:
    return TeacherPoints(len(teacher), results(teacher.steps), *points.against(teacher))


def rewards(
    student: Sequence[Step], whole: TeacherPoints, parts: Mapping[str, TeacherPoints], points: Points
) -> dict[str, float]:
    """Every rule with every divisor, by the name `rule / divisor`, with `, path steps` for a part of the teacher's."""
    rows = [points.row[step] for step in student]
    own = results(student)

    def earned(rule: str, teacher: TeacherPoints) -> float:
        if rule == "answers":
            return float((own & teacher.results).total())
        return in_order(teacher.strict[rows]) if rule == "ordered" else until_break(teacher.strict[rows])

    found = {"sum": until_break(whole.lenient[rows])}
    for rule, usual in USUAL.items():

        def count(teacher: TeacherPoints, rule: str = rule) -> int:
            return teacher.results.total() if rule == "answers" else teacher.n

        s = own.total() if rule == "answers" else len(student)
        sizes = {name: count(part) for name, part in parts.items()}
        sum_of_points = earned(rule, whole)
        for name, divisor in divisors(s, count(whole), sizes).items():
            found[f"{rule} / {name}"] = sum_of_points / max(1.0, divisor)
        for name, part in parts.items():
            divisor = divisors(s, count(part), {})[usual]
            found[f"{rule} / {usual}, {name} steps"] = earned(rule, part) / max(1.0, divisor)
    return found


# The rules and what they are divided by: `teacher`, `ordered` and `answers` of rlkd.gsrm.alignment.
USUAL = {"cascade": "teacher", "ordered": "mean", "answers": "mean"}


def divisors(student: int, teacher: int, parts: Mapping[str, int]) -> dict[str, float]:
    """What a sum of points is divided by, given the numbers of steps."""
    return {
        "nothing": 1.0,
        "teacher": teacher,
        "student": student,
        "longer": max(student, teacher),
        "mean": (student + teacher) / 2,
        "geometric": math.sqrt(student * teacher),
        **parts,
        **{f"mean with {name}": (student + n) / 2 for name, n in parts.items()},
    }


def until_break(points_ST: np.ndarray) -> float:
    """The cascade's sum: the i-th step against the i-th, up to the first pair that earns nothing."""
    diagonal = points_ST.diagonal()
    return float(diagonal[: int((np.append(diagonal, 0.0) == 0).argmax())].sum())


def in_order(points_ST: np.ndarray) -> float:
    """The largest sum over pairs in order, as `ordered` has it."""
    best = np.zeros(points_ST.shape[1] + 1)
    for row in points_ST:
        best[1:] = np.maximum.accumulate(np.maximum(best[1:], best[:-1] + row))
    return float(best[-1])


def results(steps: Iterable[Step]) -> Counter[Any]:
    return Counter(value(step.answer) for step in steps if step.answer is not None)


@lru_cache(maxsize=1 << 16)
def value(answer: str) -> Any:
    found = number(answer)
    return squeezed(answer) if found is None else found


def without_answer(steps: Structure, answer: Any) -> Structure:
    """The steps whose result is another one."""
    return Structure(step for step in steps if step.answer is None or value(step.answer) != answer)


@dataclass
class Condition:
    """The rewards of all solutions (C,) under one kind of teacher trace, by score."""

    name: str
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    full: dict[str, list[float]] = field(default_factory=dict)
    rest: dict[str, list[float]] = field(default_factory=dict)
    twice: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self, index: int, teacher: Structure, students: Sequence[Structure], right: Sequence[bool], points: Points
    ) -> None:
        """Score the solutions of a group."""
        stated = next((step.answer for step in reversed(teacher.steps) if step.answer is not None), None)
        final = None if stated is None else value(stated)
        parts = {"distinct": distinct_steps(teacher), "path": path_steps(teacher, stated)}
        self.lengths.append((len(teacher), *map(len, parts.values())))
        whole = teacher_points(teacher, points), {name: teacher_points(part, points) for name, part in parts.items()}
        rest = (
            teacher_points(without_answer(teacher, final), points),
            {name: teacher_points(without_answer(part, final), points) for name, part in parts.items()},
        )
        for student in students:
            self.group.append(index)
            self.steps.append(len(student))
            for into, own, against in (
                (self.full, student.steps, whole),
                (self.rest, student.steps[:-1], rest),
                (self.twice, student.steps * 2, whole),
            ):
                for name, reward in rewards(own, *against, points).items():
                    into.setdefault(name, []).append(reward)
        self.right += right
