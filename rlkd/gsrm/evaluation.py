"""Evaluates a structure model: whether it finds the steps, and whether the score that rests on it means anything.

`rlkd gsrm evaluate --help` describes the sections; none can be passed by splitting texts at their newlines.

Every figure has a 95 % interval: a percentile bootstrap that draws questions (not traces, as those of one question
depend on each other), seeded.

Suffixes of arrays: C solutions of some question (`question_C[c]` is the index of its question), Q questions, D
bootstrap draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rlkd.answers import numbers
from rlkd.data.rows import Row
from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.gsrm.alignment import Alignment, Answers, Teacher, Verdict
from rlkd.gsrm.datasets import RatedQuestion
from rlkd.gsrm.decomposers import Decomposer, DecompositionError, RulesDecomposer
from rlkd.gsrm.judges import DeterministicJudge, Judge, JudgeError, same_answer
from rlkd.gsrm.measures import (
    LAYOUTS,
    TokenOverlapJudge,
    agreement,
    group_spread,
    multiset_f1,
    number_origins,
    same_answers,
    same_last_answer,
    solution_lines,
)
from rlkd.gsrm.model import GSRM
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.statistics import DRAWS, Interval, auroc, auroc_within, bootstrap_mean, percentile_interval, resample
from rlkd.structure import Step, Structure

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
Decomposed = Structure | DecompositionError

BATCH = 32
"""Traces, or pairs of structures, per call: few enough for the progress to show and for a kill to cost little."""


@dataclass(frozen=True, slots=True)
class AurocRow:
    """The AUROC of a score over all solutions and within questions, and its paired differences to the length's."""

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

    The scores named in `either_sign` (lengths) are inverted where less is better, for pooled and within separately:
    the strictest baseline. `length` names the one that the others are compared with, on the same solutions and draws.
    """
    every_D = np.ones((1, counts_DQ.shape[1]))
    n_questions = counts_DQ.shape[1]

    def figures(name: str, applies_C: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
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
        pooled, draws_D, within_Q = figures(name, applies_C)
        length_pooled, length_D, length_Q = figures(length, applies_C)
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


@dataclass(slots=True)
class Evaluation:
    """The figures of an evaluation. Sections without data are empty."""

    setup: dict[str, Any]
    joined: dict[str, Interval] = field(default_factory=dict)
    stability: dict[str, Interval] = field(default_factory=dict)
    faithfulness: dict[str, Interval] = field(default_factory=dict)
    at_shuffled_level: dict[str, bool] = field(default_factory=dict)
    """By rule, whether the paired difference of swapped traces to the shuffled level may be zero or negative."""
    auroc: list[AurocRow] = field(default_factory=list)
    over_rules: dict[str, Interval] = field(default_factory=dict)
    """The gain of the structure score's AUROC over that by rules and deterministic judge, by rule, paired."""
    spread: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """By rule, how often the structure score says nothing within a question (`measures.group_spread`)."""
    failures: dict[str, int] = field(default_factory=dict)
    """The number of failed decompositions and verdicts, by cause."""

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
    alignments: Sequence[Alignment] = (Teacher(), Answers()),
    store: Path | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a decomposer, a judge and alignment rules.

    Args:
        rows: held-out problems with a solution (`rationales[0]`) and its gold steps (`structures[0]`), for the
            sections `joined`, `stability` and `faithfulness`. At least two, or none.
        rated: questions with right and wrong solutions, for the section `auroc`. At least two, or none.
        store: file that stores every structure, so that an interrupted evaluation can be resumed.
        seed: seed of the bootstrap and of the swapped traces.
        progress: started progress display.
    """
    for name, given in (("rows", rows), ("rated", rated)):
        if len(given) == 1:
            raise UsageError(f"{name}: one problem is not enough, as traces are swapped between problems; give two")
    scorer = _Scorer(decomposer, judge, store, progress)
    names = [rule.name for rule in alignments]
    setup = {"decomposer": decomposer.fingerprint, "judge": type(judge).__name__, "alignments": names}
    result = Evaluation(setup | {"draws": draws, "seed": seed, "rows": len(rows), "rated_questions": len(rated)})
    if rows:
        _evaluate_structures(result, scorer, rows, alignments, resample(len(rows), draws, seed), seed)
    if rated:
        _evaluate_auroc(result, scorer, rated, alignments, resample(len(rated), draws, seed), seed)
    result.failures = dict(scorer.failures.most_common())
    return result


def derangement(n: int, seed: int) -> list[int]:
    """For each of n problems another one, each chosen once: one seeded cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, dtype=int)
    partner[order] = np.roll(order, -1)
    return partner.tolist()


@dataclass
class _Scorer:
    """Calls decomposer and judge in batches, and counts their failures."""

    decomposer: Decomposer
    judge: Judge
    store: Path | None = None
    progress: Progress | None = None
    failures: Counter[str] = field(default_factory=Counter)

    def structures(self, traces: Sequence[ReasoningTrace], title: str) -> list[Decomposed]:
        """The structure of each trace, or the error."""
        gsrm = GSRM(self.decomposer, self.judge, store=self.store, store_students=True)
        # Traces of like length in one call, as a batch takes as long as its longest member.
        distinct = sorted(dict.fromkeys(traces), key=lambda trace: len(trace.text))
        found: dict[ReasoningTrace, Decomposed] = {}
        for batch in self._batches(distinct, f"decomposing: {title}"):
            found |= zip(batch, run(gsrm.structure(batch)), strict=True)
        self.failures.update(f"decomposer: {f}" for f in found.values() if isinstance(f, DecompositionError))
        return [found[trace] for trace in traces]

    def scores(self, pairs: Sequence[tuple[Decomposed, Decomposed]], rule: Alignment, title: str) -> np.ndarray:
        """The reward of each (student, teacher); NaN where there is nothing to compare with or something failed."""
        gsrm = GSRM(self.decomposer, self.judge, alignment=rule)
        known: dict[tuple[Decomposed, Decomposed], float] = {}
        distinct = [
            (student, teacher)
            for student, teacher in dict.fromkeys(pairs)
            if isinstance(student, Structure) and isinstance(teacher, Structure) and rule.comparable(teacher)
        ]
        for batch in self._batches(distinct, f"judging: {title}"):
            results = run(gsrm.reward([student for student, _ in batch], [[teacher] for _, teacher in batch]))
            for pair, result in zip(batch, results, strict=True):
                if isinstance(result, JudgeError):
                    self.failures[f"judge: {result}"] += 1
                known[pair] = math.nan if isinstance(result, JudgeError) else result.value
        return np.array([known.get(pair, math.nan) for pair in pairs])

    def verdicts(self, pairs: Sequence[tuple[Step, Step]], title: str) -> list[Verdict | None]:
        """The verdict on each pair of steps, None where the judge failed."""
        verdicts: list[Verdict | None] = []
        for batch in self._batches(pairs, f"judging: {title}"):
            results = run(self.judge.judge([(Structure([own]), Structure([gold])) for own, gold in batch]))
            verdicts += [None if isinstance(result, JudgeError) else result[0] for result in results]
        return verdicts

    def _batches(self, items: Sequence[T], title: str) -> Iterator[Sequence[T]]:
        task = self.progress.add_task(title, total=len(items)) if self.progress and items else None
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            yield batch
            if self.progress is not None and task is not None:
                self.progress.advance(task, len(batch))


def _evaluate_structures(
    result: Evaluation,
    scorer: _Scorer,
    rows: Sequence[Row],
    alignments: Sequence[Alignment],
    counts_DQ: np.ndarray,
    seed: int,
) -> None:
    questions = [row["question"] for row in rows]
    solutions = [solution_lines(row["rationales"][0]) for row in rows]
    gold = [Structure.from_list(row["structures"][0]) for row in rows]
    made = {
        layout: scorer.structures(
            [ReasoningTrace(question, render(lines)) for question, lines in zip(questions, solutions, strict=True)],
            layout,
        )
        for layout, render in LAYOUTS.items()
    }
    joined = made["paragraph"]

    def mean(values: Sequence[float] | np.ndarray) -> Interval:
        return bootstrap_mean(np.array(values, dtype=float), counts_DQ)

    result.joined = _gold_agreement(scorer, joined, gold, mean)
    for rule in alignments:
        scores = scorer.scores(list(zip(joined, gold, strict=True)), rule, f"against gold, {rule.name}")
        result.joined[f"structure score against gold, {rule.name}"] = mean(scores)

    for layout, found in made.items():
        if layout == "lines":
            continue
        pairs = list(zip(found, made["lines"], strict=True))
        name = f"{layout} against lines"
        result.stability[f"{name}: same list of answers"] = mean([float(same_answers(*pair)) for pair in pairs])
        for rule in alignments:
            scores = scorer.scores(pairs, rule, f"{name}, {rule.name}")
            result.stability[f"{name}: structure score, {rule.name}"] = mean(scores)

    partner = derangement(len(rows), seed)
    texts = [LAYOUTS["paragraph"](lines) for lines in solutions]
    traces = [ReasoningTrace(question, texts[other]) for question, other in zip(questions, partner, strict=True)]
    swapped = scorer.structures(traces, "swapped traces")
    origins = [
        number_origins(found, trace.text, f"{trace.question} {text}")
        for found, trace, text in zip(swapped, traces, texts, strict=True)
    ]
    names = ("from the trace given", "from the question's own solution or text only", "from neither")
    for name, shares in zip(names, zip(*origins, strict=True), strict=True):
        result.faithfulness[f"swapped trace, numbers in the output: {name}"] = mean(shares)
    for rule in alignments:
        # Both rewards are of the same trace against the same teacher; only the question that was shown differs.
        own = scorer.scores(list(zip(swapped, joined, strict=True)), rule, f"swapped traces, {rule.name}")
        others = [(joined[other], joined[i]) for i, other in enumerate(partner)]
        level = scorer.scores(others, rule, f"shuffled teachers, {rule.name}")
        difference = mean(own - level)
        result.faithfulness[f"structure score, {rule.name}: swapped trace"] = mean(own)
        result.faithfulness[f"structure score, {rule.name}: shuffled level"] = mean(level)
        result.faithfulness[f"structure score, {rule.name}: difference"] = difference
        result.at_shuffled_level[rule.name] = difference.low <= 0


def _gold_agreement(
    scorer: _Scorer,
    found: Sequence[Decomposed],
    gold: Sequence[Structure],
    mean: Callable[[Sequence[float]], Interval],
) -> dict[str, Interval]:
    """How far the structures found are the gold ones. A failed one agrees in nothing."""
    structures = [structure if isinstance(structure, Structure) else Structure() for structure in found]
    compared = list(zip(structures, gold, strict=True))
    figures = {
        "parse rate": mean([float(len(own) > 0) for own in structures]),
        "step count: equal": mean([float(len(own) == len(g)) for own, g in compared]),
        "step count: absolute difference": mean([float(abs(len(own) - len(g))) for own, g in compared]),
    }
    for name, same in (("question", DeterministicJudge().same_question), ("answer", same_answer)):
        fields = [tuple([getattr(step, name) for step in side] for side in pair) for pair in compared]
        for order, in_order in (("in order", True), ("order-free", False)):
            figures[f"{name} agreement (F1), {order}"] = mean(
                [agreement(own, g, same, in_order=in_order) for own, g in fields]
            )
    steps = [
        (index, *pair) for index, (own, g) in enumerate(compared) for pair in zip(own.steps, g.steps, strict=False)
    ]
    verdicts = scorer.verdicts([(own, g) for _, own, g in steps], "meta against gold")
    shared = [0.0] * len(compared)
    for (index, _, _), verdict in zip(steps, verdicts, strict=True):
        shared[index] += math.nan if verdict is None else verdict.meta
    figures["meta agreement (F1), in order, by the judge"] = mean(
        [2 * s / (len(own) + len(g)) if len(g) else math.nan for s, (own, g) in zip(shared, compared, strict=True)]
    )
    return figures


LENGTH = "length in characters"


def _evaluate_auroc(
    result: Evaluation,
    scorer: _Scorer,
    rated: Sequence[RatedQuestion],
    alignments: Sequence[Alignment],
    counts_DQ: np.ndarray,
    seed: int,
) -> None:
    solution_C = [solution for problem in rated for solution in problem.solutions]
    question_C = np.array([q for q, problem in enumerate(rated) for _ in problem.solutions])
    traces = [
        ReasoningTrace(rated[q].question, solution.text) for q, solution in zip(question_C, solution_C, strict=True)
    ]
    traces += [ReasoningTrace(problem.question, problem.teacher, teacher=True) for problem in rated]

    def pairs_of(scorer: _Scorer, title: str) -> tuple[list[tuple[Decomposed, Decomposed]], list[Decomposed]]:
        """Each student's structure with its teacher's, and the teachers' structures."""
        found = scorer.structures(traces, title)
        teachers = found[len(solution_C) :]
        return [(student, teachers[q]) for student, q in zip(found, question_C, strict=False)], teachers

    true_C, teachers = pairs_of(scorer, "right and wrong solutions")
    partner = derangement(len(rated), seed)
    shuffled_C = [(student, teachers[partner[q]]) for (student, _), q in zip(true_C, question_C, strict=True)]
    shortened_C = [(_without_last(student), _without_last(teacher)) for student, teacher in true_C]
    scores: dict[str, np.ndarray] = {}

    def add(title: str, by: _Scorer, pairs: Sequence[tuple[Decomposed, Decomposed]]) -> None:
        for rule in alignments:
            name = title.format(rule.name)
            scores[name] = by.scores(pairs, rule, name)

    add("structure, {}", scorer, true_C)
    add("structure, {}, last step of both sides removed", scorer, shortened_C)
    add("structure, {}, shuffled teacher", scorer, shuffled_C)
    rules = _Scorer(RulesDecomposer(), DeterministicJudge(), progress=scorer.progress)
    rules_C, _ = pairs_of(rules, "by rules")
    if not (isinstance(scorer.decomposer, RulesDecomposer) and isinstance(scorer.judge, DeterministicJudge)):
        add("rules + deterministic, {}", rules, rules_C)
    # The gain of a structure model over parsing the calculations, which its `grounded` steps have, too.
    equations = _Scorer(RulesDecomposer("equation"), DeterministicJudge(), progress=scorer.progress)
    add("equations alone, {}", equations, pairs_of(equations, "equations")[0])
    crude = _Scorer(RulesDecomposer(), TokenOverlapJudge(), progress=scorer.progress)
    scores["crude cascade (rules, token overlap)"] = crude.scores(rules_C, Teacher(), "crude cascade")
    taught = [numbers(problem.teacher) for problem in rated]
    scores["numbers in the texts, order-free F1"] = np.array(
        [multiset_f1(numbers(solution.text), taught[q]) for solution, q in zip(solution_C, question_C, strict=True)]
    )
    scores["answer of the last step alone"] = np.array([same_last_answer(*pair) for pair in true_C])
    scores["length in steps"] = np.array(
        [float(len(student)) if isinstance(student, Structure) else math.nan for student, _ in true_C]
    )
    scores[LENGTH] = np.array([float(len(solution.text)) for solution in solution_C])
    lengths = [name for name in scores if name.startswith("length")]
    right_C = np.array([solution.correct for solution in solution_C])
    result.setup |= {"candidates": len(solution_C), "candidates_right": int(right_C.sum())}
    result.auroc = auroc_table(scores, right_C, question_C, counts_DQ, length=LENGTH, either_sign=lengths)
    for rule in alignments:
        result.spread[rule.name] = group_spread(scores[f"structure, {rule.name}"], right_C, question_C, counts_DQ)
        own, by_rules = f"structure, {rule.name}", f"rules + deterministic, {rule.name}"
        if by_rules in scores:
            # On the solutions that both have a score for.
            pair = {own: np.where(np.isnan(scores[by_rules]), math.nan, scores[own]), by_rules: scores[by_rules]}
            row = auroc_table(pair, right_C, question_C, counts_DQ, length=by_rules)[0]
            result.over_rules[f"{rule.name}, all together"] = row.over_length
            result.over_rules[f"{rule.name}, within questions"] = row.within_over_length


def _without_last(found: Decomposed) -> Decomposed:
    return Structure(found.steps[:-1]) if isinstance(found, Structure) else found
