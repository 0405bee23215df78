"""Does a structure model do its work, and does the score that comes of it mean anything?

Four measurements, none of which can be passed by cutting a text at its newlines:

| section        | question |
| -------------- | -------- |
| `joined`       | does it find the steps of a solution that is one paragraph? (gold: the Socratic steps) |
| `stability`    | does it find the same steps when only the layout changes? |
| `faithfulness` | given the trace of another problem, does it report that trace, or solve the problem itself? |
| `auroc`        | does the structure reward tell right from wrong solutions, better than their length does? |

Every figure has a 95 % interval: a percentile bootstrap that draws questions (not traces, as those of one question
hang together), seeded. The formulas are functions on arrays; `evaluate_gsrm` puts them together.

A question is an index here: `question_C[c]` is the question of candidate c. Suffixes of arrays: C candidates (a
solution of some question), Q questions, D bootstrap draws, K distinct values of a score.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rlkd.answers import numbers
from rlkd.data.rows import Row, RowError
from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.gsrm.alignment import Norm, Verdict
from rlkd.gsrm.decomposers import Decomposer, DecompositionError, RulesDecomposer, Trace
from rlkd.gsrm.judges import DeterministicJudge, Judge, JudgeError, Pair, purposes, same_answer
from rlkd.gsrm.model import GSRM, StructureStore, comparable
from rlkd.statistics import DRAWS, Interval, auroc, auroc_within, bootstrap_mean, percentile_interval, resample
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Step, Structure

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
Found = Structure | DecompositionError

BATCH = 32
"""Traces, or pairs of structures, a call: few enough for the progress to show and for a kill to cost little."""


# AUROC table


@dataclass(frozen=True, slots=True)
class AurocRow:
    """A score's AUROC over all candidates and within questions, and the paired differences to the length's."""

    name: str
    pooled: Interval
    within: Interval
    over_length: Interval
    within_over_length: Interval
    candidates: int


def auroc_table(
    scores: Mapping[str, np.ndarray],
    right_C: np.ndarray,
    question_C: np.ndarray,
    counts_DQ: np.ndarray,
    *,
    length: str,
    either_sign: Collection[str] = (),
) -> list[AurocRow]:
    """A row for each score (C values each, NaN where it does not apply), in order.

    The scores named in `either_sign` (lengths) are turned round where fewer is better, for pooled and within
    separately: the strictest opponent. `length` names the one that the others are compared with, on the
    same candidates and the same draws.
    """
    every_D = np.ones((1, counts_DQ.shape[1]))
    n_questions = counts_DQ.shape[1]

    def measured(name: str, applies_C: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        parts = scores[name][applies_C], right_C[applies_C], question_C[applies_C]
        pooled, draws_D = auroc(*parts, every_D)[0], auroc(*parts, counts_DQ)
        within_Q = auroc_within(*parts, n_questions)
        if name in either_sign:
            # The AUROC of the negative score is one minus that of the score.
            if pooled < 0.5:
                pooled, draws_D = 1 - pooled, 1 - draws_D
            if not np.isnan(within_Q).all() and np.nanmean(within_Q) < 0.5:
                within_Q = 1 - within_Q
        return float(pooled), draws_D, within_Q

    rows = []
    for name, values_C in scores.items():
        applies_C = ~np.isnan(values_C)
        n = len(np.unique(question_C[applies_C]))
        pooled, draws_D, within_Q = measured(name, applies_C)
        length_pooled, length_D, length_Q = measured(length, applies_C)
        rows.append(
            AurocRow(
                name,
                percentile_interval(pooled, draws_D, n),
                bootstrap_mean(within_Q, counts_DQ),
                percentile_interval(pooled - length_pooled, draws_D - length_D, n),
                bootstrap_mean(within_Q - length_Q, counts_DQ),
                int(applies_C.sum()),
            )
        )
    return rows


# Texts


LAYOUTS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "lines": "\n".join,
    "paragraph": lambda lines: " ".join(" ".join(lines).split()),
    "numbered": lambda lines: "\n".join(f"{i}. {line}" for i, line in enumerate(lines, start=1)),
    "bold": lambda lines: "\n".join(f"**Step {i}:** {line}" for i, line in enumerate(lines, start=1)),
}
"""The same solution in other clothes; what a line is, the solution itself says."""


def solution_lines(solution: str) -> list[str]:
    """The lines of a solution without calculator marks, empty lines and a closing `#### 72`."""
    lines = [strip_calculator_marks(line).strip() for line in solution.splitlines()]
    return [line for line in lines if line and not line.startswith("####")]


def multiset_f1(mine: Sequence[Any], theirs: Sequence[Any]) -> float:
    """2 * shared / (all of both sides); 0 where both are empty."""
    total = len(mine) + len(theirs)
    return 2 * sum((Counter(mine) & Counter(theirs)).values()) / total if total else 0.0


# Agreement with gold structures


def agreement(
    found: Sequence[str | None], gold: Sequence[str | None], same: Callable[[str, str], bool], *, in_order: bool
) -> float:
    """F1 of one field of the steps found against the gold ones, in [0, 1]; NaN where no gold step has the field.

    In order: the i-th is compared with the i-th. Else each takes the first of the gold ones that is the same and still
    free.
    """
    total = sum(text is not None for side in (found, gold) for text in side)
    if all(text is None for text in gold):
        return math.nan
    if in_order:
        shared = sum(bool(f and g and same(f, g)) for f, g in zip(found, gold, strict=False))
        return 2 * shared / total
    free = [text for text in gold if text is not None]
    shared = 0
    for text in found:
        place = next((i for i, other in enumerate(free) if text is not None and same(text, other)), None)
        if place is not None:
            del free[place]
            shared += 1
    return 2 * shared / total


def _same_question(mine: str, theirs: str) -> bool:
    return bool(DeterministicJudge().compare(Step(question=mine), Step(question=theirs)).question)


class TokenOverlapJudge:
    """The crude judge of the AUROC table: two texts are the same if half of their tokens are (Jaccard index)."""

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `rlkd.gsrm.judges.Judge`."""
        return [
            [
                Verdict(
                    _overlap(*purposes(mine, theirs)),
                    _overlap(mine.question or "", theirs.question or ""),
                    _overlap(mine.answer or "", theirs.answer or ""),
                )
                for mine, theirs in zip(student, teacher, strict=False)
            ]
            for student, teacher in pairs
        ]


def _overlap(mine: str, theirs: str) -> bool:
    left, right = (set(re.findall(r"\w+|[^\w\s]", text.lower())) for text in (mine, theirs))
    return len(left & right) >= 0.5 * len(left | right)


class _RememberingJudge:
    """A judge that is asked about a pair of structures once: norms and controls share most of their pairs."""

    def __init__(self, judge: Judge):
        self.judge_behind = judge
        self._known: dict[Pair, list[Verdict]] = {}

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `rlkd.gsrm.judges.Judge`."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        said = dict(zip(new, await self.judge_behind.judge(new), strict=True)) if new else {}
        self._known |= {pair: verdicts for pair, verdicts in said.items() if not isinstance(verdicts, JudgeError)}
        return [self._known[pair] if pair in self._known else said[pair] for pair in pairs]


# Rationales of several sources, for the AUROC table


@dataclass(frozen=True, slots=True)
class Candidate:
    """One solution of a question: who wrote it, and whether its final answer is right."""

    source: str
    text: str
    correct: bool


@dataclass(frozen=True, slots=True)
class RatedQuestion:
    """A question with the teacher's trace and the solutions to be told apart."""

    question: str
    teacher: str
    candidates: tuple[Candidate, ...]


def load_rationales(
    path: Path, *, teacher: str = "human", exclude: Collection[str] = ("socratic",), first: int = 0, limit: int | None
) -> list[RatedQuestion]:
    """Read a JSONL file of `{question, rationales: [{source, text, correct}]}` rows; other keys are passed over.

    `teacher`: the source whose trace students are measured by; neither it nor those in `exclude` are candidates. Rows
    without that source, or without a candidate, are left out. `first` and `limit` choose rows by their place.

    Raises `RowError` for a row that does not fit, `UsageError` where no row is left.
    """
    rated = []
    for position, (place, record) in enumerate(json_lines(path)):
        if position < first:
            continue
        if limit is not None and position >= first + limit:
            break
        candidates = [_candidate(place, i, item) for i, item in enumerate(_listed(place, record))]
        teachers = [candidate for candidate in candidates if candidate.source == teacher]
        others = tuple(c for c in candidates if c.source != teacher and c.source not in exclude)
        if teachers and others:
            rated.append(RatedQuestion(record["question"], teachers[0].text, others))
    if not rated:
        raise UsageError(
            f"{path}: no row from place {first} on has a rationale of the source {teacher!r} and one of another source"
        )
    return rated


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file with their places, for errors; `RowError` for a line that is none."""
    if not path.is_file():
        raise UsageError(f"there is no file {path.absolute()}")
    with path.open("rb") as stream:
        for count, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RowError(f"{path}, line {count}: not JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                raise RowError(f"{path}, line {count}: expected a JSON object, found {record!r:.80}")
            yield f"{path}, line {count}", record


def _listed(place: str, record: Mapping[str, Any]) -> list[Any]:
    for name, kind in (("question", str), ("rationales", list)):
        if not isinstance(record.get(name), kind):
            raise RowError(f"{place}, field {name!r}: expected a {kind.__name__}, found {record.get(name)!r:.80}")
    return record["rationales"]


def _candidate(place: str, index: int, item: Any) -> Candidate:
    for name, kind in (("source", str), ("text", str), ("correct", bool)):
        if not isinstance(item, dict) or not isinstance(item.get(name), kind):
            found = item.get(name) if isinstance(item, dict) else item
            raise RowError(
                f"{place}, rationale {index}, field {name!r}: expected a {kind.__name__}, found {found!r:.80}"
            )
    return Candidate(item["source"], item["text"], item["correct"])


# The whole


@dataclass(slots=True)
class Evaluation:
    """What was measured. Sections that were not asked for are empty."""

    setup: dict[str, Any]
    joined: dict[str, Interval] = field(default_factory=dict)
    stability: dict[str, Interval] = field(default_factory=dict)
    faithfulness: dict[str, Interval] = field(default_factory=dict)
    at_shuffled_level: dict[str, bool] = field(default_factory=dict)
    """For each norm whether the paired difference of swapped traces to the shuffled level may be zero or negative."""
    auroc: list[AurocRow] = field(default_factory=list)
    over_rules: dict[str, Interval] = field(default_factory=dict)
    """What the AUROC of the structure score gains over that by rules and deterministic judge, norm by norm, paired."""
    failures: dict[str, int] = field(default_factory=dict)
    """How many traces the decomposer gave nothing for, or pairs the judge, by cause."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which NaN is null."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def evaluate_gsrm(
    decomposer: Decomposer,
    judge: Judge,
    *,
    rows: Sequence[Row] = (),
    rated: Sequence[RatedQuestion] = (),
    norms: Sequence[Norm] = ("teacher", "answers"),
    store: Path | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a decomposer and a judge.

    Args:
        decomposer: see `rlkd.gsrm.decomposers`.
        judge: see `rlkd.gsrm.judges`.
        rows: held-out problems with a solution (`rationales[0]`) and its gold steps (`structures[0]`): the sections
            `joined`, `stability` and `faithfulness`. At least two, or none.
        rated: questions with right and wrong solutions: the section `auroc`. At least two, or none.
        norms: those under which structures are scored.
        store: file that keeps every structure made, so that a killed evaluation goes on where it was.
        draws: of the bootstrap.
        seed: of the bootstrap, and of who gets whose trace.
        progress: a started `rich.progress.Progress` to show tasks on.
    """
    for name, given in (("rows", rows), ("rated", rated)):
        if len(given) == 1:
            raise UsageError(f"{name}: one problem is not enough, as traces are swapped between problems; give two")
    work = _Work(decomposer, judge, StructureStore(store) if store else None, progress)
    setup = {"decomposer": decomposer.fingerprint, "judge": type(judge).__name__, "norms": list(norms)}
    result = Evaluation(setup | {"draws": draws, "seed": seed, "rows": len(rows), "rated_questions": len(rated)})
    if rows:
        _measure_structures(result, work, rows, norms, resample(len(rows), draws, seed), seed)
    if rated:
        _measure_auroc(result, work, rated, norms, resample(len(rated), draws, seed), seed)
    result.failures = dict(work.failures.most_common())
    return result


def derangement(n: int, seed: int) -> list[int]:
    """For each of n problems another one, each chosen once: one seeded cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, dtype=int)
    partner[order] = np.roll(order, -1)
    return partner.tolist()


class _Work:
    """The calls of decomposer and judge, in batches, with what failed."""

    def __init__(self, decomposer: Decomposer, judge: Judge, store: StructureStore | None, progress: Progress | None):
        self.decomposer = decomposer
        self.judge = _RememberingJudge(judge)
        self.store = store
        self.progress = progress
        self.failures: Counter[str] = Counter()

    def structures(self, traces: Sequence[Trace], title: str) -> list[Found]:
        """The structure of each trace, or why there is none; known ones come out of the store."""
        found: dict[Trace, Found] = {}
        fingerprint = self.decomposer.fingerprint
        if self.store is not None:
            found.update(self.store.get(fingerprint, set(traces)))
        # Traces of like length in one call, as a batch takes as long as its longest member.
        new = sorted((t for t in dict.fromkeys(traces) if t not in found), key=lambda trace: len(trace.text))
        for batch in self._batches(new, f"decomposing: {title}"):
            made = dict(zip(batch, run(self.decomposer.decompose(batch)), strict=True))
            if self.store is not None:
                self.store.put(fingerprint, {t: s for t, s in made.items() if isinstance(s, Structure)})
            found |= made
        self.failures.update(f"decomposer: {f}" for f in found.values() if isinstance(f, DecompositionError))
        return [found[trace] for trace in traces]

    def scores(self, pairs: Sequence[tuple[Found, Found]], norm: Norm, title: str) -> np.ndarray:
        """The reward of each (student, teacher); NaN where there is nothing to compare with or something failed."""
        return self.scores_by(self.judge, pairs, norm, title)

    def scores_by(self, judge: Judge, pairs: Sequence[tuple[Found, Found]], norm: Norm, title: str) -> np.ndarray:
        """The same by another judge."""
        gsrm = GSRM(self.decomposer, judge, norm=norm)
        known: dict[tuple[Found, Found], float] = {}
        wanted = [
            (student, teacher)
            for student, teacher in dict.fromkeys(pairs)
            if isinstance(student, Structure) and isinstance(teacher, Structure) and comparable(teacher, norm)
        ]
        for batch in self._batches(wanted, f"judging: {title}"):
            judged = run(gsrm.reward([student for student, _ in batch], [[teacher] for _, teacher in batch]))
            for pair, judgement in zip(batch, judged, strict=True):
                if isinstance(judgement, JudgeError):
                    self.failures[f"judge: {judgement}"] += 1
                known[pair] = math.nan if isinstance(judgement, JudgeError) else judgement.score.value
        return np.array([known.get(pair, math.nan) for pair in pairs])

    def verdicts(self, pairs: Sequence[tuple[Step, Step]], title: str) -> list[Verdict | None]:
        """The verdict on each pair of steps, None where the judge failed."""
        verdicts: list[Verdict | None] = []
        for batch in self._batches(pairs, f"judging: {title}"):
            judged = run(self.judge.judge([(Structure([mine]), Structure([theirs])) for mine, theirs in batch]))
            verdicts += [None if isinstance(said, JudgeError) else said[0] for said in judged]
        return verdicts

    def _batches(self, items: Sequence[T], title: str) -> Iterator[Sequence[T]]:
        task = self.progress.add_task(title, total=len(items)) if self.progress and items else None
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            yield batch
            if self.progress is not None and task is not None:
                self.progress.advance(task, len(batch))


def _measure_structures(
    result: Evaluation, work: _Work, rows: Sequence[Row], norms: Sequence[Norm], counts_DQ: np.ndarray, seed: int
) -> None:
    questions = [row["question"] for row in rows]
    solutions = [solution_lines(row["rationales"][0]) for row in rows]
    gold = [Structure.from_list(row["structures"][0]) for row in rows]
    made = {
        layout: work.structures(
            [Trace(question, render(lines)) for question, lines in zip(questions, solutions, strict=True)], layout
        )
        for layout, render in LAYOUTS.items()
    }
    joined = made["paragraph"]

    def figure(values: Sequence[float] | np.ndarray) -> Interval:
        return bootstrap_mean(np.array(values, dtype=float), counts_DQ)

    result.joined = _agreement_figures(work, joined, gold, figure)
    for norm in norms:
        scores = work.scores(list(zip(joined, gold, strict=True)), norm, f"against gold, {norm}")
        result.joined[f"structure score against gold, {norm}"] = figure(scores)

    for layout, found in made.items():
        if layout == "lines":
            continue
        pairs = list(zip(found, made["lines"], strict=True))
        result.stability[f"{layout} against lines: same list of answers"] = figure(
            [float(_same_answers(mine, theirs)) for mine, theirs in pairs]
        )
        for norm in norms:
            result.stability[f"{layout} against lines: structure score, {norm}"] = figure(
                work.scores(pairs, norm, f"{layout} against lines, {norm}")
            )

    partner = derangement(len(rows), seed)
    texts = [LAYOUTS["paragraph"](lines) for lines in solutions]
    swapped = work.structures([Trace(questions[i], texts[partner[i]]) for i in range(len(rows))], "swapped traces")
    origins = [_origins(found, texts[partner[i]], f"{questions[i]} {texts[i]}") for i, found in enumerate(swapped)]
    for place, name in enumerate(
        ("from the trace given", "from the question's own solution or text only", "from neither")
    ):
        result.faithfulness[f"swapped trace, numbers in the output: {name}"] = figure([o[place] for o in origins])
    for norm in norms:
        # Both rewards are of the same trace against the same teacher; only the question that was shown differs.
        own = work.scores([(swapped[i], joined[i]) for i in range(len(rows))], norm, f"swapped traces, {norm}")
        level = work.scores(
            [(joined[partner[i]], joined[i]) for i in range(len(rows))], norm, f"shuffled teachers, {norm}"
        )
        mine, shuffled = figure(own), figure(level)
        result.faithfulness[f"structure score, {norm}: swapped trace"] = mine
        result.faithfulness[f"structure score, {norm}: shuffled level"] = shuffled
        result.faithfulness[f"structure score, {norm}: difference"] = figure(own - level)
        result.at_shuffled_level[norm] = result.faithfulness[f"structure score, {norm}: difference"].low <= 0


def _agreement_figures(
    work: _Work,
    found: Sequence[Found],
    gold: Sequence[Structure],
    figure: Callable[[Sequence[float]], Interval],
) -> dict[str, Interval]:
    """How far the structures found are the gold ones. One that could not be made agrees in nothing."""
    steps = [tuple(f) if isinstance(f, Structure) else () for f in found]
    figures = {
        "parse rate": figure([float(len(mine) > 0) for mine in steps]),
        "step count: equal": figure([float(len(m) == len(g)) for m, g in zip(steps, gold, strict=True)]),
        "step count: absolute difference": figure(
            [float(abs(len(m) - len(g))) for m, g in zip(steps, gold, strict=True)]
        ),
    }
    for name, same in (("question", _same_question), ("answer", same_answer)):
        for order, in_order in (("in order", True), ("order-free", False)):
            figures[f"{name} agreement (F1), {order}"] = figure(
                [
                    agreement(
                        [getattr(step, name) for step in mine],
                        [getattr(step, name) for step in g],
                        same,
                        in_order=in_order,
                    )
                    for mine, g in zip(steps, gold, strict=True)
                ]
            )
    pairs = [
        (place, mine, theirs)
        for place, (m, g) in enumerate(zip(steps, gold, strict=True))
        for mine, theirs in zip(m, g, strict=False)
    ]
    verdicts = work.verdicts([(mine, theirs) for _, mine, theirs in pairs], "meta against gold")
    shared = [0.0] * len(steps)
    for (place, _, _), verdict in zip(pairs, verdicts, strict=True):
        shared[place] += math.nan if verdict is None else verdict.meta
    figures["meta agreement (F1), in order, by the judge"] = figure(
        [2 * s / (len(m) + len(g)) if len(g) else math.nan for s, m, g in zip(shared, steps, gold, strict=True)]
    )
    return figures


def _same_answers(mine: Found, theirs: Found) -> bool:
    if not isinstance(mine, Structure) or not isinstance(theirs, Structure) or len(mine) != len(theirs):
        return False
    pairs = [(left.answer, right.answer) for left, right in zip(mine, theirs, strict=True)]
    return all(a == b or (a is not None and b is not None and same_answer(a, b)) for a, b in pairs)


def _origins(found: Found, given: str, own: str) -> tuple[float, float, float]:
    """Where the numbers in questions and answers come from: the trace given, the problem's own only, neither (shares).

    NaN where there is no number.
    """
    if not isinstance(found, Structure):
        return math.nan, math.nan, math.nan
    written = numbers(" ".join(f"{step.question or ''} {step.answer or ''}" for step in found))
    if not written:
        return math.nan, math.nan, math.nan
    there, here = set(numbers(given)), set(numbers(own))
    from_given = sum(value in there for value in written)
    from_own = sum(value in here and value not in there for value in written)
    n = len(written)
    return from_given / n, from_own / n, (n - from_given - from_own) / n


LENGTH = "length in characters"


def _measure_auroc(
    result: Evaluation,
    work: _Work,
    rated: Sequence[RatedQuestion],
    norms: Sequence[Norm],
    counts_DQ: np.ndarray,
    seed: int,
) -> None:
    place_C = [(q, candidate) for q, problem in enumerate(rated) for candidate in problem.candidates]
    traces = [Trace(rated[q].question, candidate.text) for q, candidate in place_C]
    teaching = [Trace(problem.question, problem.teacher, teacher=True) for problem in rated]
    found = work.structures([*traces, *teaching], "right and wrong solutions")
    students, teachers = found[: len(traces)], found[len(traces) :]
    partner = derangement(len(rated), seed)
    true_C = [(student, teachers[q]) for student, (q, _) in zip(students, place_C, strict=True)]
    shuffled_C = [(student, teachers[partner[q]]) for student, (q, _) in zip(students, place_C, strict=True)]
    shortened_C = [(_without_last(student), _without_last(teacher)) for student, teacher in true_C]

    scores: dict[str, np.ndarray] = {}
    for norm in norms:
        scores[f"structure, {norm}"] = work.scores(true_C, norm, f"solutions, {norm}")
    for norm in norms:
        if norm not in ("sum", "f1"):  # the other cascades say the same
            scores[f"structure, {norm}, last step of both sides removed"] = work.scores(
                shortened_C, norm, f"without the last step, {norm}"
            )
    for norm in norms:
        scores[f"structure, {norm}, shuffled teacher"] = work.scores(shuffled_C, norm, f"shuffled teachers, {norm}")
    rules = _Work(RulesDecomposer(), DeterministicJudge(), None, work.progress)
    by_rules = rules.structures([*traces, *teaching], "by rules")
    rules_C = [(by_rules[c], by_rules[len(traces) + q]) for c, (q, _) in enumerate(place_C)]
    if not (isinstance(work.decomposer, RulesDecomposer) and isinstance(work.judge.judge_behind, DeterministicJudge)):
        for norm in norms:
            scores[f"rules + deterministic, {norm}"] = rules.scores(rules_C, norm, f"by rules, {norm}")
    # What a structure model adds to reading the calculations off: its `grounded` steps have these, too.
    equations = _Work(RulesDecomposer("equation"), DeterministicJudge(), None, work.progress)
    read = equations.structures([*traces, *teaching], "equations")
    read_C = [(read[c], read[len(traces) + q]) for c, (q, _) in enumerate(place_C)]
    for norm in norms:
        scores[f"equations alone, {norm}"] = equations.scores(read_C, norm, f"equations, {norm}")
    scores["crude cascade (rules, token overlap)"] = rules.scores_by(
        TokenOverlapJudge(), rules_C, "teacher", "crude cascade"
    )
    taught = [numbers(problem.teacher) for problem in rated]
    scores["numbers in the texts, order-free F1"] = np.array(
        [multiset_f1(numbers(candidate.text), taught[q]) for q, candidate in place_C]
    )
    scores["answer of the last step alone"] = np.array([_same_last_answer(*pair) for pair in true_C])
    scores["length in steps"] = np.array(
        [float(len(student)) if isinstance(student, Structure) else math.nan for student in students]
    )
    scores[LENGTH] = np.array([float(len(candidate.text)) for _, candidate in place_C])
    lengths = [name for name in scores if name.startswith("length")]
    right_C = np.array([candidate.correct for _, candidate in place_C])
    question_C = np.array([q for q, _ in place_C])
    result.setup |= {"candidates": len(place_C), "candidates_right": int(right_C.sum())}
    result.auroc = auroc_table(scores, right_C, question_C, counts_DQ, length=LENGTH, either_sign=lengths)
    for norm in norms:
        ours, theirs = f"structure, {norm}", f"rules + deterministic, {norm}"
        if theirs in scores:
            pair = {name: scores[name] for name in (ours, theirs)}
            # On the candidates that both have a score for.
            pair[ours] = np.where(np.isnan(pair[theirs]), math.nan, pair[ours])
            row = auroc_table(pair, right_C, question_C, counts_DQ, length=theirs)[0]
            result.over_rules |= {f"{norm}, all together": row.over_length}
            result.over_rules |= {f"{norm}, within questions": row.within_over_length}


def _without_last(found: Found) -> Found:
    return Structure(found.steps[:-1]) if isinstance(found, Structure) else found


def _same_last_answer(student: Found, teacher: Found) -> float:
    if not isinstance(student, Structure) or not isinstance(teacher, Structure) or not len(teacher):
        return math.nan
    mine, theirs = (found[-1].answer if len(found) else None for found in (student, teacher))
    return float(mine is not None and theirs is not None and same_answer(mine, theirs))
