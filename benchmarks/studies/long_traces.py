"""What is left of the structure reward when the teacher's trace is long? Rules and divisors on lengthened traces.

    python benchmarks/studies/long_traces.py --rationales rated.jsonl --out runs/long-traces             # a minute
    python benchmarks/studies/long_traces.py --rationales rated.jsonl --out /tmp/quick --quick

Data: JSON lines as for `rlkd gsrm evaluate --rationales` (its `--help` has the format), people's solutions and models'
right and wrong ones. Groups are the solutions of a problem. Problems need two steps in the teacher's trace, a right
solution and two wrong ones, one of which is scored nowhere: it is what the teacher tries in vain.

The teacher's trace is lengthened (`lengthening.py`) to 10, 30 and 100 steps: by checks of all calculations, finer
steps, abandoned attempts, restatements, and all of these. As a check on traces that nobody has made longer, `longest`
takes for teacher the longest right solution of any model, where it has 6 steps and twice the person's; it is then
scored nowhere, and `its own short one` are the same solutions against the person's trace.

Each rule is tried with divisors, and on parts of the teacher's steps: each distinct step, and those on the path to the
final result (`rlkd.gsrm.teacher_steps`). Figures, within groups:

    auroc        right against wrong solutions; `auroc_rest` without the steps with the final answer
    gain         of a part of the teacher's steps over all of them, in `auroc_rest`
    mean, std    of the reward; the std within the group
    silent       share of groups without any difference; `silent_wrong` among their wrong solutions
    agreement    with the order under the short trace: (agreeing - opposed) / pairs that the short trace tells apart
    verbosity    the longer of two solutions, both right or both wrong, scores higher: (more - less) / pairs
    repeated     what a student gains that says everything twice, as a share of the mean reward
    share        of the deviation beside accuracy with weight 1, in groups with right and wrong solutions:
                 std of the reward / (that + std of accuracy)
    weight       at which this share is that of the same rule under the short trace

Intervals: bootstrap over problems.
"""

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divided_rewards import Condition, Points
from grid import guarded, write_results
from group_figures import cancelling, figures
from lengthening import WAYS, Material
from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.gsrm.datasets import load_rationales
from rlkd.gsrm.decomposers import RulesDecomposer
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.statistics import resample
from rlkd.steps import sentences
from rlkd.structure import Structure, from_gsm8k_socratic

# Chosen before the first run.
SEED = 17
LENGTHS = (10, 30, 100)
LONG = 6
DRAWS = 2000
SHORT, LONGEST, ITS_SHORT = "short", "longest", "its own short one"

NOTHING = Material((), ())


@dataclass(frozen=True)
class Group:
    """The solutions of a problem, the teacher's trace, and what it is lengthened with or replaced by."""

    students: tuple[Structure, ...]
    right: tuple[bool, ...]
    teacher: Structure
    material: Material = NOTHING
    longest: Structure | None = None

    @classmethod
    def without(cls, i: int, students: Sequence[Structure], right: Sequence[bool], teacher: Structure, **kept: Any):
        """The group of all solutions but one."""
        rest = [place for place in range(len(students)) if place != i]
        return cls(tuple(students[r] for r in rest), tuple(right[r] for r in rest), teacher, **kept)


# Data


def read_groups(path: Path, teacher: str, subquestions: str, most: int) -> tuple[list[Group], list[Group]]:
    """At most so many problems with traces to be lengthened, and all problems with a long solution.

    Raises `UsageError` where there are none to be lengthened.
    """
    asked: dict[str, str] = {}
    with contextlib.suppress(UsageError):  # no row has sub-questions
        asked = {each.question: each.teacher for each in load_rationales(path, teacher=subquestions, limit=None)}
    groups: list[Group] = []
    long: list[Group] = []
    for index, problem in enumerate(load_rationales(path, teacher=teacher, exclude=(subquestions,), limit=None)):
        texts = [problem.teacher, *(solution.text for solution in problem.solutions)]
        own, *structures = structures_of(problem.question, texts)
        right = [solution.correct for solution in problem.solutions]
        if len(own) < 2 or not any(right) or all(right):
            continue
        longest = max((i for i, good in enumerate(right) if good), key=lambda i: len(structures[i]))
        if sum(right) > 1 and len(structures[longest]) >= max(LONG, 2 * len(own)):
            long.append(Group.without(longest, structures, right, own, longest=structures[longest]))
        wrong = [i for i, good in enumerate(right) if not good and len(structures[i])]
        if len(wrong) > 1 and len(groups) < most:
            tried = wrong[index % len(wrong)]
            steps = from_gsm8k_socratic(asked.get(problem.question, ""))
            texts = [step.meta for step in steps if step.meta] + sentences(problem.question)
            material = Material(structures[tried].steps, texts)
            groups.append(Group.without(tried, structures, right, own, material=material))
    if not groups:
        raise UsageError(f"{path}: no problem has two steps by {teacher!r}, a right solution and two wrong ones")
    return groups, long


def structures_of(question: str, texts: Iterable[str]) -> list[Structure]:
    traces = [ReasoningTrace(question, text) for text in texts]
    return [
        found if isinstance(found, Structure) else Structure() for found in run(RulesDecomposer().decompose(traces))
    ]


# Conditions


def condition(
    name: str, groups: Sequence[Group], teachers: Iterable[Structure], points: Sequence[Points]
) -> Condition:
    """The rewards of all groups under these teacher traces."""
    found = Condition(name)
    for index, (group, teacher) in enumerate(zip(groups, teachers, strict=True)):
        found.add(index, teacher, group.students, group.right, points[index])
    return found


def lengthened(groups: Sequence[Group], lengths: Sequence[int], points: Sequence[Points]) -> Iterator[Condition]:
    """The rewards under each kind of lengthened trace."""
    for way, lengthen in WAYS.items():
        for length in lengths:
            made = (Structure(lengthen(group.teacher.steps, length, group.material)) for group in groups)
            yield condition(f"{way}, {length}", groups, made, points)


# The script

SHOWN = (
    "sum",
    "cascade / teacher",
    "cascade / teacher, path steps",
    "ordered / mean",
    "ordered / nothing",
    "ordered / student",
    "ordered / geometric",
    "ordered / path",
    "ordered / mean, distinct steps",
    "ordered / mean, path steps",
    "answers / mean",
    "answers / mean, distinct steps",
    "answers / mean, path steps",
)
COLUMNS = ("auroc", "auroc_rest", "mean", "std", "silent", "silent_wrong", "agreement", "verbosity", "repeated")


def table(results: Mapping[str, Any]) -> str:
    """The figures of the scores in `SHOWN` as Markdown, a table for each condition."""
    lines = []
    for name, found in results["conditions"].items():
        steps = ", ".join(f"{key} {value:.1f}" for key, value in found["teacher_steps"].items())
        lines += [f"**{name}** (teacher steps: {steps}; {found['solutions']} solutions)", ""]
        lines += ["| score | " + " | ".join((*COLUMNS, "share", "weight")) + " |", "| --- " * (len(COLUMNS) + 3) + "|"]
        for score in SHOWN:
            own = found["scores"][score]
            cells = [f"{_value(own[column]):.3f}" for column in (*COLUMNS, "share")] + [f"{own['weight']:.2g}"]
            lines.append(f"| {score} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _value(figure: Any) -> float:
    return figure[0] if isinstance(figure, list) else figure


def measure(groups: Sequence[Group], long: Sequence[Group], lengths: Sequence[int], draws: int) -> dict[str, Any]:
    """The figures of all conditions."""
    measured = compared(groups, SHORT, lambda points: lengthened(groups, lengths, points), draws)
    if long:
        own = [group.longest for group in long if group.longest is not None]
        measured |= compared(long, ITS_SHORT, lambda points: [condition(LONGEST, long, own, points)], draws)
    return {"seed": SEED, "draws": draws, "conditions": measured}


def compared(
    groups: Sequence[Group], short: str, others: Callable[[list[Points]], Iterable[Condition]], draws: int
) -> dict[str, Any]:
    """The figures under the short trace, and of other conditions against it."""
    points, counts_DQ = [Points(group.students) for group in groups], resample(len(groups), draws, SEED)
    against = condition(short, groups, (group.teacher for group in groups), points)
    measured = {}
    for found in itertools.chain([against], others(points)):
        steps = np.mean(found.lengths, axis=0).tolist()
        measured[found.name] = {
            "problems": len(groups),
            "solutions": len(found.right),
            "right": sum(found.right),
            "student_steps": float(np.mean(found.steps)),
            "teacher_steps": dict(zip(("all", "distinct", "path"), steps, strict=True)),
            "scores": figures(found, against, len(groups), counts_DQ),
            "divisor_changes_advantages": cancelling(found, len(groups)),
        }
        print(f"{found.name}: done", file=sys.stderr, flush=True)
    return measured


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description="The structure reward with long teacher traces.")
    add = parser.add_argument
    add("--rationales", type=Path, required=True, metavar="FILE", help="right and wrong solutions")
    add("--out", type=Path, required=True, help="folder of the results")
    add("--teacher-source", default="human", help="source of the teacher's traces (default: %(default)s)")
    add("--subquestions", default="socratic", help="source of sub-questions, if any (default: %(default)s)")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="steps of the teacher (default: %(default)s)")
    add("--problems", type=int, default=200, help="number of problems, from the first (default: %(default)s)")
    add("--quick", action="store_true", help="20 problems, two lengths; the figures are not quoted")
    given = parser.parse_args()
    if given.quick:
        given.problems, given.lengths = 20, [10, 30]
    start = time.perf_counter()
    groups, long = read_groups(given.rationales, given.teacher_source, given.subquestions, given.problems)
    given.out.mkdir(parents=True, exist_ok=True)
    results = measure(groups, long, given.lengths, 200 if given.quick else DRAWS) | {"quick": given.quick}
    write_results(given.out, results, table(results))
    shown = {
        name: {score: round(own["scores"][score]["auroc_rest"][0], 3) for score in SHOWN}
        for name, own in results["conditions"].items()
    }
    print(json.dumps({"quick": given.quick, "seconds": round(time.perf_counter() - start), "auroc_rest": shown}))


if __name__ == "__main__":
    raise SystemExit(main())
