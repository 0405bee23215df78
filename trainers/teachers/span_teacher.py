"""A teacher with another tokenizer: its own prompts, its own tokens of the same completions, and a loss per span.

the student's tokens -> text -> the teacher's tokens, with its end token -> spans (`alignment`)
hidden states of both -> divergence per span (`rlkd.divergence.spans`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from rlkd.divergence import Divergence, Head, TokenStatistics
from rlkd.divergence.spans import SharedTokens, SpannedTokens, span_divergence, span_statistics
from rlkd.errors import UsageError
from trainers.common.token_spans import token_spans
from trainers.teachers.alignment import Span, TokenTexts, aligned_spans, prefixed_tokens, shared_tokens
from trainers.teachers.batches import Batch, padded_batch, rows_of, unpadded
from trainers.teachers.models import head_of


class SpanTeacher:
    """A teacher whose weights are in this process, and whose tokenizer is not the student's.

    Args:
        model: the teacher.
        hidden_states: returns the hidden states [B, C, H_t] of a batch of the teacher's own tokens.
        tokenizers: the student's and the teacher's.
        student_ends: ids that end the student's completions.
        ends: the student's and the teacher's id that end a turn; they are partners.
        student_rows: rows of the student's head.
        k: number of tokens without a partner that are compared by their order.
        temperature: sampling temperature of the run.
        rows: rows per forward pass.
    """

    fields: tuple[str, ...] = ("span_hidden", "span_ids", "span_student_ids", "spans")

    def __init__(
        self,
        model: Any,
        hidden_states: Callable[[Batch], Tensor],
        tokenizers: tuple[Any, Any],
        *,
        student_ends: Collection[int],
        ends: tuple[int, int],
        student_rows: int,
        k: int,
        temperature: float,
        rows: int,
    ):
        self.model = model
        self.hidden_states = hidden_states
        self.student, self.teacher = tokenizers
        self.student_ends, self.teacher_end = set(student_ends), ends[1]
        self.k, self.temperature, self.rows = k, temperature, rows
        texts = TokenTexts.of(tokenizers[0]), TokenTexts.of(tokenizers[1])
        pairs = [pair for pair in shared_tokens(*texts) if pair[0] != ends[0] and pair[1] != ends[1]] + [ends]
        head = head_of(model)
        prefixed = prefixed_tokens(*texts, pairs)
        self.shared = SharedTokens.of(pairs, student_rows, len(head.weight), head.weight.device, prefixed)
        self._partners = dict(pairs)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's hidden states [B, C_t, H_t] and ids [B, C_t], the student's ids [B, C], and the spans.

        `spans` [B, C, 3]: at the student's first token of a span the end of its tokens, and the teacher's start and
        end; else 0.
        """
        ids = batch["completion_ids"]
        device = ids.device
        completions = unpadded(ids, batch["completion_mask"])
        prompts = unpadded(batch["teacher_prompt_ids"], batch["teacher_prompt_mask"])
        own, spans = [], torch.zeros(*ids.shape, 3, dtype=torch.long)
        for row, completion in enumerate(completions):
            written, found = self.align(completion)
            own.append(written)
            for start, stop, teacher_start, teacher_stop in found:
                spans[row, start] = torch.tensor([stop, teacher_start, teacher_stop])
        read = padded_batch(prompts, own, self.teacher.eos_token_id or 0, device)
        count = len(completions)
        parts = [self.hidden_states(rows_of(read, start, self.rows)) for start in range(0, count, self.rows)]
        return {
            "span_hidden": torch.cat(parts),
            "span_ids": read["completion_ids"],
            "span_student_ids": ids,
            "spans": spans.to(device),
        }

    def align(self, completion: Sequence[int]) -> tuple[list[int], list[Span]]:
        """The teacher's tokens of a completion of the student, at least one, and the spans of both."""
        ended = bool(completion) and completion[-1] in self.student_ends
        said = list(completion[:-1] if ended else completion)
        text, _ = token_spans(self.student, said)
        own = list(self.teacher(text.rstrip("\N{REPLACEMENT CHARACTER}"), add_special_tokens=False)["input_ids"])
        spans = aligned_spans(self.student, said, self.teacher, own, self._partners)
        if ended and (not spans or (spans[-1][1], spans[-1][3]) == (len(said), len(own))):
            spans.append((len(said), len(said) + 1, len(own), len(own) + 1))
        return [*own, self.teacher_end], spans

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The divergence of each span at its first token."""
        student, teacher = self._sides(states, mask, student_hidden, head)
        return span_divergence(student, teacher, self.shared, divergence, self.k)

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """A span's values on each of the student's tokens in it; NaN outside spans."""
        full = student_hidden is not None and head is not None
        hidden = student_hidden if student_hidden is not None else states["span_hidden"].new_zeros(len(taken), 1)
        nothing = Head(hidden.new_zeros(1, hidden.shape[1]))
        student, teacher = self._sides(states, mask, hidden, nothing if head is None else head)
        return span_statistics(student, teacher, self.shared, self.temperature, self.k, full=full)

    def aligned(self, states: Batch, mask: Tensor) -> Tensor:
        """Of the tokens where `mask` is set, how many lie in spans, and how many there are, [2]."""
        own, _ = self._spans(states, mask)
        return torch.stack([(own[:, 1] - own[:, 0]).sum(), mask.sum()])

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """Not of ids of another tokenizer: raises `UsageError`, as the check at the start does."""
        raise UsageError("a teacher with another tokenizer scores no ids of the student. Set proposals: expected")

    def _sides(self, states: Batch, mask: Tensor, hidden: Tensor, head: Head) -> tuple[SpannedTokens, SpannedTokens]:
        """The student's tokens where `mask` is set, and all of the teacher's, in one row each."""
        own, others = self._spans(states, mask)
        student = SpannedTokens(hidden, head, states["span_student_ids"][mask], own)
        teacher_hidden = states["span_hidden"].flatten(0, 1).to(hidden.device)
        return student, SpannedTokens(teacher_hidden, head_of(self.model), states["span_ids"].flatten(), others)

    def _spans(self, states: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The spans [S, 2] among the student's tokens where `mask` is set, and among all of the teacher's."""
        spans = states["spans"]
        flat = mask.flatten().cumsum(0).reshape(mask.shape) - 1  # a token's place among those of the mask
        rows, starts = ((spans[..., 0] > 0) & mask).nonzero().unbind(1)
        stops, teacher_starts, teacher_stops = spans[rows, starts].unbind(1)
        own = torch.stack([flat[rows, starts], flat[rows, stops - 1] + 1], dim=1)
        whole = (own[:, 1] - own[:, 0]) == stops - starts  # not interrupted by a tool
        before = rows * states["span_ids"].shape[1]
        others = torch.stack([before + teacher_starts, before + teacher_stops], dim=1)
        return own[whole], others[whole]
