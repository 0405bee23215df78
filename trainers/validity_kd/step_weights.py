"""From the traces of a generation batch to one weight a token.

    steps of each trace -> validities of both proposals -> weight of each step -> kd_weights (B, C)

Tokens outside steps (the closing answer line, the end token, what a tool said) keep weight 1. Each process finds out
about its own traces; the weights are made of what all found, so they do not depend on how rows lie on processes.

White space behind a step has the step's weight and no say in it: it counts for neither of two proposals, whose texts
often end differently (`TokenStep.end`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from rlkd.divergence import Head, TokenStatistics
from rlkd.evaluate import accuracy
from rlkd.validity import (
    StepEvidence,
    StepQuestion,
    StepValidities,
    ValidityScorer,
    WeighedSteps,
    Weigher,
    expected_margins,
    joined,
    score_pairs,
    step_means,
)
from rlkd.validity.likelihood import Likelihood
from trainers.validity_kd.teachers import KDTeacher, unpadded
from trainers.validity_kd.token_spans import TokenStep, token_steps

Proposer = Callable[[bool, Sequence[Sequence[int]]], list[list[int]]]
"""Whether the traces are the student's, and prefixes, in; the other model's step after each prefix out, as ids."""


@dataclass(frozen=True)
class StepRecord:
    """A step and what was found out about it; `teacher` and `student` are validities, None where there are none."""

    row: int
    position: float
    text: str
    tokens: int
    weight: float
    margin: float | None
    teacher: float | None = None
    student: float | None = None
    proposal: str | None = None


@dataclass(frozen=True)
class WeighedBatch:
    """The weights of a batch's tokens (B, C), what they rest on, and the tensors that the teacher's forward made.

    `weighed` has the steps of all processes, `records` those of this one.
    """

    weights: Tensor
    records: list[StepRecord] = field(default_factory=list)
    weighed: WeighedSteps | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)


class StepWeights:
    """Weighs the steps of batches.

    Args:
        scorer: of validity; None where the control asks none.
        expected: whether the missing proposal is an expectation; else it is written by `propose`.
        weigher: makes weights of validities; its state belongs into checkpoints.
        teacher: the teacher as the trainer asks it.
        tokenizer: the student's.
        propose: called on every process, also where there are no prefixes.
        student_hidden: hidden states [B, C, H_s] of a batch's completions under the student, without gradients.
        student_head: the student's last layer.
    """

    def __init__(
        self,
        *,
        scorer: ValidityScorer | None,
        expected: bool,
        weigher: Weigher,
        teacher: KDTeacher,
        tokenizer: Any,
        propose: Proposer,
        student_hidden: Callable[[Mapping[str, Any]], Tensor],
        student_head: Callable[[], Head],
    ):
        self.scorer = scorer
        self.expected = expected
        self.weigher = weigher
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.propose = propose
        self.student_hidden = student_hidden
        self.student_head = student_head

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any], *, on_policy: bool, step: int
    ) -> WeighedBatch:
        """Weigh the traces of `rows`, whose tokens are in `batch`; `step`: the number of the generation batch."""
        mask = batch["completion_mask"].bool()
        if self.weigher.control == "uniform":
            return WeighedBatch(torch.ones(mask.shape, device=mask.device))
        ids = unpadded(batch["completion_ids"], mask)
        written = unpadded(batch.get("tool_mask", batch["completion_mask"]), mask)
        traces = [token_steps(self.tokenizer, *pair) for pair in zip(ids, written, strict=True)]
        flat = [(row, place, step) for row, trace in enumerate(traces) for place, step in enumerate(trace)]
        seen = self.teacher.observe(batch)
        found = self._statistics(batch, mask, seen, on_policy)
        starts = [0, *torch.cumsum(mask.sum(1), 0).tolist()]
        spans = [(starts[row] + step.start, starts[row] + step.end) for row, _, step in flat]
        positions = [place / max(1, len(traces[row]) - 1) for row, place, _ in flat]
        proposals: list[list[int]] | None = None
        validities = None
        if self.scorer is not None and self.expected:
            assert isinstance(self.scorer, Likelihood)
            validities = expected_margins(
                found,
                spans,
                on_policy=on_policy,
                reduction=self.scorer.reduction,
                quantile=self.scorer.quantile,
            )
        elif self.scorer is not None:
            prefixes = _prefixes(batch, ids, flat)
            proposals = self.propose(on_policy, prefixes)
            validities = self._score(rows, flat, prefixes, ids, proposals, found, spans, on_policy)
        evidence = StepEvidence(
            positions,
            teacher=None if validities is None else validities.teacher,
            student=None if validities is None else validities.student,
            teacher_entropy=step_means(found.teacher_entropy, spans),
            student_entropy=None if found.student_entropy is None else step_means(found.student_entropy, spans),
            kl=None if found.kl is None else step_means(found.kl, spans),
            teacher_is_expected=self.expected and on_policy,
        )
        parts: list[StepEvidence] = gather_object([evidence])
        weighed = self.weigher(joined(parts), step)
        first = sum(len(part.positions) for part in parts[: PartialState().process_index])
        weights = torch.ones(mask.shape)
        records = []
        for number, (row, _, found_step) in enumerate(flat):
            weight = weighed.weights[first + number]
            weights[row, found_step.start : found_step.stop] = weight
            records.append(
                StepRecord(
                    row=row,
                    position=positions[number],
                    text=found_step.text.strip(),
                    tokens=found_step.stop - found_step.start,
                    weight=weight,
                    margin=weighed.margins[first + number],
                    teacher=None if validities is None else validities.teacher[number],
                    student=None if validities is None else validities.student[number],
                    proposal=None if proposals is None else self._text(proposals[number]).strip(),
                )
            )
        return WeighedBatch(weights.to(mask.device), records, weighed, seen)

    def _statistics(
        self, batch: Mapping[str, Any], mask: Tensor, seen: Mapping[str, Any], on_policy: bool
    ) -> TokenStatistics:
        """Of all tokens of the completions, in the order of `mask`; the student's forward only where it is needed."""
        crossed = self.scorer is not None and self.expected and not on_policy
        hidden, head = None, None
        if crossed or self.weigher.needs & {"student_entropy", "kl"}:
            hidden, head = self.student_hidden(batch)[mask], self.student_head()
        return self.teacher.statistics(seen, mask, batch["completion_ids"][mask], hidden, head)

    def _score(
        self,
        rows: Sequence[Mapping[str, Any]],
        flat: Sequence[tuple[int, int, TokenStep]],
        prefixes: Sequence[Sequence[int]],
        ids: Sequence[Sequence[int]],
        proposals: Sequence[Sequence[int]],
        found: TokenStatistics,
        spans: Sequence[tuple[int, int]],
        on_policy: bool,
    ) -> StepValidities:
        """The validities of both proposals; None for both where one of them is not there as a whole.

        That is where the other model wrote no step, and where the trace was cut off within its own.
        """
        assert self.scorer is not None
        written = [place for place, proposal in enumerate(proposals) if proposal and not flat[place][2].open]
        if isinstance(self.scorer, Likelihood) and self.scorer.asking is None:
            taken = found.teacher_logprob.tolist()
            stands = self.scorer.of_logprobs([taken[start:stop] for start, stop in spans])
            sequences = [[*prefixes[place], *proposals[place]] for place in written]
            logprobs = self.teacher.logprobs(sequences, [len(prefixes[place]) for place in written])
            told = self.scorer.of_logprobs(logprobs)
            in_trace = [stands[place] for place in written]
        else:
            asked = [self._questions(rows, flat[place], prefixes[place], ids, proposals[place]) for place in written]
            in_trace, told = score_pairs(self.scorer, [one for one, _ in asked], [other for _, other in asked])
        teacher: list[float | None] = [None] * len(flat)
        student: list[float | None] = [None] * len(flat)
        for place, own, other in zip(written, in_trace, told, strict=True):
            student[place], teacher[place] = (own, other) if on_policy else (other, own)
        return StepValidities(teacher, student)

    def _questions(
        self,
        rows: Sequence[Mapping[str, Any]],
        place: tuple[int, int, TokenStep],
        prefix_ids: Sequence[int],
        ids: Sequence[Sequence[int]],
        proposal: Sequence[int],
    ) -> tuple[StepQuestion, StepQuestion]:
        """The step of the trace and the proposed one, as a scorer is asked."""
        number, _, step = place
        row = rows[number]
        columns = {key: value for key, value in row.items() if key not in ("prompt", "answer")}

        def question(text: str, step_ids: Sequence[int]) -> StepQuestion:
            answer = row.get("answer")
            return StepQuestion(
                prompt=row["prompt"],
                prefix=step.prefix,
                step=text,
                answer=None if answer is None else str(answer),
                prefix_ids=tuple(prefix_ids),
                step_ids=tuple(step_ids),
                columns=columns,
            )

        return (
            question(step.text.rstrip(), ids[number][step.start : step.end]),
            question(self._text(proposal).rstrip(), proposal),
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def figures(
    batch: WeighedBatch, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], loss_mask: Tensor, on_policy: bool
) -> dict[str, float]:
    """What is logged of a generation batch, over all processes; to be called on every one of them.

    `texts`: the completion of each row. Figures over no step are left out. Right answers of rollouts and of the
    teacher's traces, which are mostly right by construction, have two names: a line may be about several batches.
    """
    right = [accuracy(row, text) for row, text in zip(rows, texts, strict=True)]
    tokens = float(loss_mask.sum())
    mine = {
        "steps": [(record.position, record.weight, record.margin, right[record.row]) for record in batch.records],
        "weight": float((batch.weights * loss_mask).sum()),
        "tokens": tokens,
        "traces": len(rows),
        "right": [value for value in right if value is not None],
    }
    parts = gather_object([mine])
    total = {name: sum(part[name] for part in parts) for name in ("weight", "tokens", "traces")}
    judged = [value for part in parts for value in part["right"]]
    logged = {"kd_weight/mean": total["weight"] / max(1.0, total["tokens"])}
    if judged:
        logged["kd/right" if on_policy else "traces/right"] = sum(judged) / len(judged)
    steps = [step for part in parts for step in part["steps"]]
    if batch.weighed is None or not steps:
        return logged
    weights = [weight for _, weight, _, _ in steps]
    logged |= {
        "kd/steps_per_trace": len(steps) / total["traces"],
        "kd_weight/floored": batch.weighed.floored / len(steps),
        "validity/failed": batch.weighed.failed / len(steps),
        "validity/tau": batch.weighed.tau,
    }
    deciles = statistics.quantiles(weights, n=10, method="inclusive") if len(weights) > 1 else weights * 9
    logged |= {"kd_weight/q10": deciles[0], "kd_weight/q50": deciles[4], "kd_weight/q90": deciles[8]}
    thirds = {"first_third": (-1.0, 1 / 3), "middle_third": (1 / 3, 2 / 3), "last_third": (2 / 3, 1.0)}
    groups = {
        f"kd_weight/{name}": [weight for position, weight, _, _ in steps if low < position <= high]
        for name, (low, high) in thirds.items()
    }
    groups["validity/margin"] = [margin for _, _, margin, _ in steps if margin is not None]
    for name, value in (("right", 1.0), ("wrong", 0.0)):
        groups[f"validity/margin_{name}"] = [m for _, _, m, judged in steps if m is not None and judged == value]
    return logged | {name: statistics.fmean(values) for name, values in groups.items() if values}


def _prefixes(
    batch: Mapping[str, Any], ids: Sequence[Sequence[int]], flat: Sequence[tuple[int, int, TokenStep]]
) -> list[list[int]]:
    """The ids of the prompt and the trace before each step."""
    prompts = unpadded(batch["prompt_ids"], batch["prompt_mask"])
    return [[*prompts[row], *ids[row][: step.start]] for row, _, step in flat]
