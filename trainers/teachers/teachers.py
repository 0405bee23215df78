"""The teacher as the trainer uses it: with its weights in this process, or by the k likeliest tokens of a position.

| `teacher`                 | known of a position | divergence                               |
| ------------------------- | ------------------- | ---------------------------------------- |
| a model, `self`           | its hidden state    | over the whole vocabulary                |
| an engine                 | k log-probabilities | over the k tokens and one for all others |
| a folder, a teacher cache | k log-probabilities | over the k tokens and one for all others |

`observe` makes the tensors of a batch once (they travel with the batch, shuffled and split by TRL like all others),
`compare` computes the divergence of a micro-batch for the loss, `statistics` the inputs of validities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rlkd.divergence import (
    Divergence,
    DivergenceKernel,
    Head,
    TokenStatistics,
    chunked_divergence,
    token_statistics,
    topk_divergence,
    topk_statistics,
)
from rlkd.teachers.topk import TopKTeacher
from trainers.common.sharding import with_whole_frozen
from trainers.teachers.batches import Batch, as_teacher_reads, padded_batch, rows_of, unpadded
from trainers.teachers.models import head_of

Result = TypeVar("Result")


class KDTeacher(Protocol):
    """The interface of a teacher to the trainer."""

    fields: tuple[str, ...]
    """The names of the tensors that `observe` makes."""

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's tensors for the completions of a batch, [B, C, ...] each, without gradients."""

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Divergence and student's entropy of the N tokens where `mask` [B, C] is set, [N] each.

        `student_hidden` [N, H_s]; `weights` [N], later factors of the divergence.
        """

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Statistics of the N tokens `taken` where `mask` is set, under the teacher and, if given, a student."""

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """The teacher's log-probabilities of the tokens `start` to the last of each sequence.

        `numbers`: the number of each sequence's teacher, where there are several.
        """


class DenseTeacher:
    """A teacher whose weights are in this process.

    Args:
        model: the model, prepared for this process.
        hidden_states: returns the teacher's hidden states [B, C, H_t] of a batch's completions.
        temperature: sampling temperature of the run, which log-probabilities are taken at.
        vocabulary: rows of both heads that are compared; None for all.
        rows: rows per forward pass.
        pad_id: id of the padding token.
        kernel: replaces `rlkd.divergence`.
    """

    fields: tuple[str, ...] = ("teacher_hidden",)

    def __init__(
        self,
        model: Any,
        hidden_states: Callable[[Batch], Tensor],
        *,
        temperature: float,
        vocabulary: int | None,
        rows: int,
        pad_id: int,
        kernel: DivergenceKernel | None = None,
    ):
        self.model = model
        self.hidden_states = hidden_states
        self.temperature = temperature
        self.vocabulary = vocabulary
        self.rows = rows
        self.pad_id = pad_id
        self.kernel = kernel

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's hidden states, a few rows at a time."""
        count = len(batch["completion_ids"])
        parts = [self.hidden_states(rows_of(batch, start, self.rows)) for start in range(0, count, self.rows)]
        return {"teacher_hidden": torch.cat(parts)}

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary."""
        return self._with_head(
            lambda teacher: chunked_divergence(
                student_hidden,
                head,
                self._states(states, mask, teacher),
                teacher,
                divergence,
                anticipated_weights=weights,
                kernel=self.kernel,
            )
        )

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """At the temperature of the run."""
        return self._with_head(
            lambda teacher: token_statistics(
                student_hidden, head, self._states(states, mask, teacher), teacher, taken, self.temperature
            )
        )

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """At the temperature of the run; sequences of similar length share a forward pass."""
        result: dict[int, list[float]] = {}
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        device = self.model.get_output_embeddings().weight.device
        for start in range(0, len(order), self.rows):
            indices = order[start : start + self.rows]
            prompts = [list(sequences[index][: starts[index]]) for index in indices]
            steps = [list(sequences[index][starts[index] :]) for index in indices]
            batch = padded_batch(prompts, steps, self.pad_id, device)
            mask = batch["completion_mask"].bool()
            states = {"teacher_hidden": self.hidden_states(batch)}
            values = self.statistics(states, mask, batch["completion_ids"][mask], None, None).teacher_logprob.tolist()
            for index, step in zip(indices, steps, strict=True):
                result[index], values = values[: len(step)], values[len(step) :]
        return [result[index] for index in range(len(sequences))]

    def _with_head(self, compute: Callable[[Head], Result]) -> Result:
        layer = self.model.get_output_embeddings()
        return with_whole_frozen(layer, lambda: compute(head_of(self.model, self.vocabulary)))

    def _states(self, states: Batch, mask: Tensor, head: Head) -> Tensor:
        """Its hidden states where `mask` is set, [N, H_t]; beside a wider teacher they are padded."""
        hidden: Tensor = states["teacher_hidden"].to(mask.device)[mask][:, : head.weight.shape[1]]
        return hidden


class SparseTeacher:
    """A teacher known by the k likeliest tokens of each position, at temperature 1: an engine or a cache.

    `vocabulary`: rows of the student's head. Ids beyond it, which only pad a wider head, count as other tokens.
    """

    fields: tuple[str, ...] = ("teacher_ids", "teacher_logprobs", "teacher_taken")

    def __init__(self, teacher: TopKTeacher, vocabulary: int):
        self.teacher = teacher
        self.vocabulary = vocabulary

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Ids [B, C, k], log-probabilities [B, C, k], and that of the token in the trace [B, C]."""
        batch = as_teacher_reads(batch)
        ids = batch["completion_ids"]
        prompts = unpadded(batch["prompt_ids"], batch["prompt_mask"])
        completions = unpadded(ids, batch["completion_mask"])
        rows = [index for index, completion in enumerate(completions) if completion]
        tops = self.teacher.top_k(
            [prompts[index] + completions[index] for index in rows], [len(prompts[index]) for index in rows]
        )
        k = max((top.ids.shape[1] for top in tops), default=1)
        # An entry of log-probability -inf is padding.
        top_ids = torch.zeros(*ids.shape, k, dtype=torch.int32)
        logprobs = torch.full((*ids.shape, k), -torch.inf)
        taken = torch.zeros(ids.shape)
        for index, top in zip(rows, tops, strict=True):
            length, width = top.ids.shape
            top_ids[index, :length, :width] = top.ids
            logprobs[index, :length, :width] = top.logprobs
            taken[index, :length] = top.taken
        beyond = top_ids >= self.vocabulary
        top_ids[beyond], logprobs[beyond] = 0, -torch.inf
        return {
            name: tensor.to(ids.device) for name, tensor in zip(self.fields, (top_ids, logprobs, taken), strict=True)
        }

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Over the k tokens and one outcome for all others."""
        ids, logprobs = states["teacher_ids"][mask].long(), states["teacher_logprobs"][mask]
        return topk_divergence(student_hidden, head, ids, logprobs, divergence, anticipated_weights=weights)

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Entropies and divergences are lower bounds, over k + 1 outcomes."""
        ids, logprobs = states["teacher_ids"][mask].long(), states["teacher_logprobs"][mask]
        student_taken = None if student_hidden is None else taken
        return topk_statistics(ids, logprobs, states["teacher_taken"][mask], student_hidden, head, student_taken)

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """At temperature 1."""
        return [top.taken.tolist() for top in self.teacher.top_k(sequences, starts)]
