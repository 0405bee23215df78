"""The teacher as the trainer asks it: with its weights in this process, or by the k likeliest tokens of a position.

| `teacher`                 | what is known of a position | divergence                           |
| ------------------------- | --------------------------- | ------------------------------------ |
| a model                   | its hidden state            | over the whole vocabulary            |
| a vLLM server             | k log-probabilities         | over the k and one bucket for others |
| a folder, a teacher cache | the same, from a file     | the same                             |

Both answer in three parts: `observe` makes the tensors of a batch once (they travel with the batch, shuffled and split
as TRL does it with all others), `compare` the divergence of a micro-batch for the loss, `statistics` what validities
are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from rlkd.engines import is_engine_spec
from rlkd.teachers.topk import TopKTeacher, check_logits, logit_settings

Batch = Mapping[str, Any]
"""Tensors: `prompt_ids`, `prompt_mask` [B, P] padded on the left, `completion_ids`, `completion_mask` [B, C]."""


class KDTeacher(Protocol):
    """What the trainer needs of a teacher."""

    fields: tuple[str, ...]
    """The tensors of a batch that `observe` makes."""

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """What the teacher says about the completions of a batch, [B, C, ...] each, without gradients."""

    def compare(
        self, seen: Batch, mask: Tensor, student_hidden: Tensor, head: Head, divergence: Divergence, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Divergence and student's entropy of the N tokens where `mask` [B, C] is set, [N] each.

        `student_hidden` [N, H_s]; `weights` [N], what the divergence will be multiplied by.
        """

    def statistics(
        self, seen: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """What the teacher, and a student if one is given, say about the N tokens `taken` where `mask` is set."""

    def logprobs(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """For each sequence the teacher's log-probabilities of its tokens `start` to the last."""


class DenseTeacher:
    """A teacher whose weights are in this process.

    Args:
        model: it, as it was prepared for this process.
        hidden_states: of a batch's completions, [B, C, H_t], from the teacher's forward pass.
        temperature: of the run, at which log-probabilities are taken.
        vocabulary: rows of both heads that are compared; None for all.
        rows: of one forward pass.
        kernel: computes the divergence in the place of `rlkd.divergence`.
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
        self, seen: Batch, mask: Tensor, student_hidden: Tensor, head: Head, divergence: Divergence, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary."""
        hidden = seen["teacher_hidden"].to(student_hidden.device)[mask]
        teacher = self._head()
        return chunked_divergence(
            student_hidden, head, hidden, teacher, divergence, anticipated_weights=weights, kernel=self.kernel
        )

    def statistics(
        self, seen: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """At the temperature of the run."""
        return token_statistics(
            student_hidden, head, seen["teacher_hidden"][mask], self._head(), taken, self.temperature
        )

    def logprobs(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """At the temperature of the run; sequences of similar length share a forward pass."""
        found: dict[int, list[float]] = {}
        order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
        device = self._head().weight.device
        for start in range(0, len(order), self.rows):
            places = order[start : start + self.rows]
            prompts = [list(sequences[place][: starts[place]]) for place in places]
            steps = [list(sequences[place][starts[place] :]) for place in places]
            batch = padded_batch(prompts, steps, self.pad_id, device)
            mask = batch["completion_mask"].bool()
            seen = {"teacher_hidden": self.hidden_states(batch)}
            values = self.statistics(seen, mask, batch["completion_ids"][mask], None, None).teacher_logprob.tolist()
            for place, step in zip(places, steps, strict=True):
                found[place], values = values[: len(step)], values[len(step) :]
        return [found[place] for place in range(len(sequences))]

    def _head(self) -> Head:
        return head_of(self.model, self.vocabulary)


class SparseTeacher:
    """A teacher of whom the k likeliest tokens of each position are known: a server or a cache. Temperature 1.

    `vocabulary`: rows of the student's head. What the teacher says of ids beyond it, which only pad a wider head, goes
    to the bucket of all other tokens.
    """

    fields: tuple[str, ...] = ("teacher_ids", "teacher_logprobs", "teacher_taken")

    def __init__(self, teacher: TopKTeacher, vocabulary: int):
        self.teacher = teacher
        self.vocabulary = vocabulary

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Ids [B, C, k], log-probabilities [B, C, k] and that of the token that stands there [B, C]."""
        ids, mask = batch["completion_ids"], batch["completion_mask"]
        prompts = [
            row[keep.bool()].tolist() for row, keep in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        completions = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
        rows = [place for place, completion in enumerate(completions) if completion]
        tops = self.teacher.top_k(
            [prompts[place] + completions[place] for place in rows], [len(prompts[place]) for place in rows]
        )
        k = max((top.ids.shape[1] for top in tops), default=1)
        # An entry of log-probability -inf is padding.
        top_ids = torch.zeros(*ids.shape, k, dtype=torch.int32)
        logprobs = torch.full((*ids.shape, k), -torch.inf)
        taken = torch.zeros(ids.shape)
        for place, top in zip(rows, tops, strict=True):
            length, width = top.ids.shape
            top_ids[place, :length, :width] = top.ids
            logprobs[place, :length, :width] = top.logprobs
            taken[place, :length] = top.taken
        beyond = top_ids >= self.vocabulary
        top_ids[beyond], logprobs[beyond] = 0, -torch.inf
        found = {"teacher_ids": top_ids, "teacher_logprobs": logprobs, "teacher_taken": taken}
        return {name: tensor.to(ids.device) for name, tensor in found.items()}

    def compare(
        self, seen: Batch, mask: Tensor, student_hidden: Tensor, head: Head, divergence: Divergence, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Over the k tokens and one bucket for all others."""
        ids, logprobs = seen["teacher_ids"][mask].long(), seen["teacher_logprobs"][mask]
        return topk_divergence(student_hidden, head, ids, logprobs, divergence, anticipated_weights=weights)

    def statistics(
        self, seen: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Entropies and divergences are lower bounds, over k + 1 outcomes."""
        ids, logprobs = seen["teacher_ids"][mask].long(), seen["teacher_logprobs"][mask]
        told = None if student_hidden is None else taken
        return topk_statistics(ids, logprobs, seen["teacher_taken"][mask], student_hidden, head, told)

    def logprobs(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[float]]:
        """As the server says."""
        return [top.taken.tolist() for top in self.teacher.top_k(sequences, starts)]


def head_of(model: Any, vocabulary: int | None = None) -> Head:
    """The last layer of a causal language model, cut to its first `vocabulary` rows where the rest only pads."""
    layer = model.get_output_embeddings()
    scale, softcap = logit_settings(model.config)
    bias = getattr(layer, "bias", None)
    return Head(layer.weight[:vocabulary], None if bias is None else bias[:vocabulary], scale, softcap)


def check_head(model: Any, hidden_states: Callable[[Batch], Tensor], ids: Sequence[int]) -> None:
    """Raise `UsageError` where `head_of` is not all that a teacher does to get its logits, by one short forward.

    It would be another teacher in silence: an adapter on its last layer, or a scale under a name unknown here.

    Args:
        model: the teacher.
        hidden_states: as of `DenseTeacher`.
        ids: two tokens at least, any.
    """
    head = head_of(model)
    batch = padded_batch([ids[:1]], [ids[1:]], 0, head.weight.device)
    hidden = hidden_states(batch)[0].to(head.weight.dtype)
    ours = (hidden @ head.weight.T).float()
    if head.bias is not None:
        ours = ours + head.bias.float()
    ours = ours * head.scale
    if head.softcap is not None:
        ours = head.softcap * (ours / head.softcap).tanh()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([list(ids)], device=head.weight.device)).logits[0, :-1].float()
    check_logits(ours, theirs, head.weight.dtype, f"{model.config._name_or_path or 'passed'} ({type(model).__name__})")


def rows_of(batch: Batch, start: int, count: int) -> dict[str, Any]:
    """The rows [start, start + count) of a batch's tensors."""
    return {
        name: value[start : start + count] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def padded_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: Any
) -> dict[str, Tensor]:
    """Ids and masks as TRL lays them out: prompts [B, P] padded on the left, completions [B, C] on the right."""

    def padded(rows: Sequence[Sequence[int]], left: bool) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows), default=0)
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[place, where] = torch.tensor(row, dtype=torch.long)
            mask[place, where] = 1
        return ids.to(device), mask.to(device)

    prompt_ids, prompt_mask = padded(prompts, True)
    completion_ids, completion_mask = padded(completions, False)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
    }


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids of each row where its mask is set."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def kind_of_teacher(teacher: Any) -> str:
    """`server`, `cache`, `top_k` (an object of that protocol) or `model`, from what a run names as its teacher."""
    if not isinstance(teacher, str):
        return "top_k" if hasattr(teacher, "top_k") and hasattr(teacher, "vocabulary") else "model"
    if is_engine_spec(teacher):
        return "server"
    # What recipes/teacher_cache.py writes has an index; what `save_pretrained` writes has a config.
    folder = Path(teacher).expanduser()
    return "cache" if (folder / "index.json").is_file() and not (folder / "config.json").is_file() else "model"
