"""From the traces of a generation batch to one weight per token.

    steps of each trace -> validities of both proposals -> weight of each step -> kd_weights (B, C)

Tokens outside steps (the closing answer line, the end token, the output of a tool) have weight 1. Each process scores
its own traces; the weights are made from the scores of all, so they do not depend on how rows are spread over
processes.

White space after a step gets the step's weight but does not count for its validity, in neither of the two proposals,
whose texts often end differently (`TokenStep.end`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from rlkd.divergence import Head, TokenStatistics
from rlkd.validity import (
    StepEvidence,
    StepQuestion,
    StepValidities,
    StepWeighting,
    Tally,
    joined,
    score_logprobs,
    score_pairs,
    score_statistics,
    step_means,
)
from rlkd.validity.contract import reads_logprobs
from trainers.teachers.batches import as_teacher_reads, unpadded
from trainers.teachers.several_teachers import NUMBER
from trainers.teachers.teachers import KDTeacher
from trainers.teachers.token_steps import TokenStep, token_steps
from trainers.teachers.weighted_batch import StepRecord, WeightedBatch

Proposer = Callable[..., list[list[int]]]
"""Whether the traces are the student's, prefixes, and the number of each one's teacher in; the other model's step
after each prefix out, as ids. With `resumes`, a fourth argument: the ids with which each step begins."""


@dataclass(frozen=True)
class _PlacedStep:
    """A step, its row, its relative position there, and the ids of prompt and trace before it, for both models.

    `teacher`: the number of the row's teacher, where there are several.
    """

    row: int
    teacher: int
    position: float
    step: TokenStep
    ids: Sequence[int]
    prefix_ids: Sequence[int]
    teacher_prefix_ids: Sequence[int]


class TokenWeights:
    """Makes the weights of a batch's tokens.

    Args:
        scorer: the validity scorer; None where the control needs none.
        expected: whether the missing proposal is an expectation; else `propose` writes it.
        weighting: turns validities into weights; its state belongs in checkpoints.
        teacher: the teacher, as the trainer uses it.
        tokenizer: the student's.
        propose: called on every process, even without prefixes.
        student_hidden: hidden states [B, C, H_s] of a batch's completions under the student, without gradients.
        with_head: computes a function of the student's last layer and of hidden states, while that layer is whole.
        resumes: whether a teacher that writes goes on within the step of a rollout, from the token that it finds least
            likely there; else it begins the step anew, and may write another one.
    """

    def __init__(
        self,
        *,
        scorer: Any | None,
        expected: bool,
        weighting: StepWeighting,
        teacher: KDTeacher,
        tokenizer: Any,
        propose: Proposer,
        student_hidden: Callable[[Mapping[str, Any]], Tensor],
        with_head: Callable[[Callable[[Head, Tensor], TokenStatistics], Tensor], TokenStatistics],
        resumes: bool = False,
    ):
        self.scorer = scorer
        self.expected = expected
        self.weighting = weighting
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.propose = propose
        self.student_hidden = student_hidden
        self.with_head = with_head
        self.resumes = resumes

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any], *, on_policy: bool, step: int
    ) -> WeightedBatch:
        """The weights of the traces of `rows`, whose tokens are in `batch`; `step`: number of the generation batch."""
        mask = batch["completion_mask"].bool()
        if self.weighting.control == "uniform":
            return WeightedBatch(torch.ones(mask.shape, device=mask.device))
        placed = self._steps(batch, mask)
        observed = self.teacher.observe(batch)
        tokens = self._statistics(batch, mask, observed, on_policy)
        starts = [0, *torch.cumsum(mask.sum(1), 0).tolist()]
        spans = [(starts[one.row] + one.step.start, starts[one.row] + one.step.end) for one in placed]
        proposals: list[list[int]] | None = None
        validities = None
        tally = Tally()
        if self.scorer is not None and self.expected:
            validities = score_statistics(self.scorer, tokens, spans, on_policy, tally=tally)
        elif self.scorer is not None:
            proposals = self._proposals(placed, tokens, spans, on_policy)
            validities = self._score(rows, placed, proposals, tokens, spans, on_policy, tally)
        evidence = StepEvidence(
            [one.position for one in placed],
            teacher=None if validities is None else validities.teacher,
            student=None if validities is None else validities.student,
            teacher_entropy=step_means(tokens.teacher_entropy, spans),
            student_entropy=None if tokens.student_entropy is None else step_means(tokens.student_entropy, spans),
            kl=None if tokens.kl is None else step_means(tokens.kl, spans),
            teacher_is_expected=self.expected and on_policy,
            on_policy=on_policy,
        )
        gathered: list[tuple[StepEvidence, Tally]] = gather_object([(evidence, tally)])
        parts = [part for part, _ in gathered]
        weighted = self.weighting(joined(parts), step)
        first = sum(len(part.positions) for part in parts[: PartialState().process_index])
        weights, raising = torch.ones(mask.shape), torch.ones(mask.shape)
        records = []
        for index, one in enumerate(placed):
            weight = weighted.weights[first + index]
            weights[one.row, one.step.start : one.step.stop] = weight
            raising[one.row, one.step.start : one.step.stop] = weighted.raising[first + index]
            records.append(
                StepRecord(
                    row=one.row,
                    position=one.position,
                    text=one.step.text.strip(),
                    tokens=one.step.stop - one.step.start,
                    weight=weight,
                    margin=weighted.margins[first + index],
                    teacher=None if validities is None else validities.teacher[index],
                    student=None if validities is None else validities.student[index],
                    proposal=None if proposals is None else self._text(proposals[index]).strip(),
                    raising=weighted.raising[first + index] if self.resumes else None,
                )
            )
        tally = Tally(
            asked=sum(one.asked for _, one in gathered),
            failed=sum(one.failed for _, one in gathered),
            cause=next((one.cause for _, one in gathered if one.cause), ""),
        )
        return WeightedBatch(
            weights.to(mask.device), records, weighted, observed, tally, raising=raising.to(mask.device)
        )

    def _proposals(
        self, placed: Sequence[_PlacedStep], tokens: TokenStatistics, spans: Sequence[tuple[int, int]], on_policy: bool
    ) -> list[list[int]]:
        """The other model's step in the place of each, as ids; empty where it wrote no whole one."""
        prefixes = [one.teacher_prefix_ids if on_policy else one.prefix_ids for one in placed]
        numbers = [one.teacher for one in placed]
        if not (self.resumes and on_policy):
            return self.propose(on_policy, prefixes, numbers)
        logprobs = tokens.teacher_logprob.tolist()
        begun = []
        for one, (start, end) in zip(placed, spans, strict=True):
            own = logprobs[start:end]
            begun.append(one.ids[: own.index(min(own))])
        return self.propose(on_policy, prefixes, numbers, begun)

    def _steps(self, batch: Mapping[str, Any], mask: Tensor) -> list[_PlacedStep]:
        """The steps of all traces, in order."""
        prompts = unpadded(batch["prompt_ids"], batch["prompt_mask"])
        seen = as_teacher_reads(batch)
        teacher_prompts = unpadded(seen["prompt_ids"], seen["prompt_mask"])
        completions = unpadded(batch["completion_ids"], mask)
        written = unpadded(batch.get("tool_mask", batch["completion_mask"]), mask)
        numbers = batch[NUMBER].tolist() if NUMBER in batch else [0] * len(completions)
        placed = []
        for row, (prompt, ids, own) in enumerate(zip(prompts, completions, written, strict=True)):
            steps = token_steps(self.tokenizer, ids, own)
            for index, step in enumerate(steps):
                position = index / max(1, len(steps) - 1)
                own_ids = ids[step.start : step.end]
                before = ids[: step.start]
                prefixes = [*prompt, *before], [*teacher_prompts[row], *before]
                placed.append(_PlacedStep(row, numbers[row], position, step, own_ids, *prefixes))
        return placed

    def _statistics(
        self, batch: Mapping[str, Any], mask: Tensor, observed: Mapping[str, Any], on_policy: bool
    ) -> TokenStatistics:
        """Statistics of all completion tokens, in the order of `mask`; the student's forward only where needed."""
        crossed = self.scorer is not None and self.expected and not on_policy
        taken = batch["completion_ids"][mask]
        if not (crossed or self.weighting.needs & {"student_entropy", "kl"}):
            return self.teacher.statistics(observed, mask, taken, None, None)
        with torch.no_grad():
            return self.with_head(
                lambda head, hidden: self.teacher.statistics(observed, mask, taken, hidden, head),
                self.student_hidden(batch)[mask],
            )

    def _score(
        self,
        rows: Sequence[Mapping[str, Any]],
        placed: Sequence[_PlacedStep],
        proposals: Sequence[Sequence[int]],
        tokens: TokenStatistics,
        spans: Sequence[tuple[int, int]],
        on_policy: bool,
        tally: Tally,
    ) -> StepValidities:
        """The validities of both proposals; None for both where one of them is not a whole step.

        That is where the other model wrote no step, and where the trace was truncated within its own.
        """
        whole = [index for index, proposal in enumerate(proposals) if proposal and not placed[index].step.open]
        if reads_logprobs(self.scorer):
            taken = tokens.teacher_logprob.tolist()
            prefixes = [placed[index].teacher_prefix_ids for index in whole]
            sequences = [[*before, *proposals[index]] for before, index in zip(prefixes, whole, strict=True)]
            numbers = [placed[index].teacher for index in whole]
            logprobs = self.teacher.logprobs(sequences, list(map(len, prefixes)), numbers)
            in_trace = [taken[slice(*spans[index])] for index in whole]
            values = score_logprobs(self.scorer, [*in_trace, *logprobs], tally=tally)  # type: ignore[arg-type]
            own, other = values[: len(whole)], values[len(whole) :]
        else:
            questions = [self._questions(rows[placed[i].row], placed[i], proposals[i]) for i in whole]
            first, second = [q for q, _ in questions], [q for _, q in questions]
            own, other = score_pairs(self.scorer, first, second, tally=tally)  # type: ignore[arg-type]
        student: list[float | None] = [None] * len(placed)
        teacher: list[float | None] = [None] * len(placed)
        for index, in_trace_value, proposed_value in zip(whole, own, other, strict=True):
            pair = (in_trace_value, proposed_value)
            student[index], teacher[index] = pair if on_policy else pair[::-1]
        return StepValidities(teacher, student)

    def _questions(
        self, row: Mapping[str, Any], placed: _PlacedStep, proposal: Sequence[int]
    ) -> tuple[StepQuestion, StepQuestion]:
        """The step of the trace and the proposed one, as questions for the scorer."""
        answer = row.get("answer")
        columns = {key: value for key, value in row.items() if key not in ("prompt", "answer")}

        def question(text: str, step_ids: Sequence[int]) -> StepQuestion:
            return StepQuestion(
                prompt=row["prompt"],
                prefix=placed.step.prefix,
                step=text.rstrip(),
                answer=None if answer is None else str(answer),
                prefix_ids=tuple(placed.prefix_ids),
                step_ids=tuple(step_ids),
                columns=columns,
            )

        return question(placed.step.text, placed.ids), question(self._text(proposal), proposal)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
