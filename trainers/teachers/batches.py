"""The tensors of a batch: their layout, their rows, and ids without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Any]
"""Tensors: `prompt_ids`, `prompt_mask` [B, P] padded on the left, `completion_ids`, `completion_mask` [B, C].

`teacher_prompt_ids`, `teacher_prompt_mask` [B, P_t]: the teacher's prompts, where they are not the student's.
"""


def as_teacher_reads(batch: Batch) -> Batch:
    """The batch with the teacher's prompts in the place of the student's."""
    own = {
        f"prompt_{part}": batch[f"teacher_prompt_{part}"] for part in ("ids", "mask") if "teacher_prompt_ids" in batch
    }
    return {**batch, **own}


def rows_of(batch: Batch, start: int, count: int) -> dict[str, Any]:
    """The rows [start, start + count) of a batch's tensors."""
    return {
        name: value[start : start + count] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def padded_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: Any
) -> dict[str, Tensor]:
    """Ids and masks in TRL's layout: prompts [B, P] padded on the left, completions [B, C] on the right."""
    batch: dict[str, Tensor] = {}
    for name, rows, left in (("prompt", prompts, True), ("completion", completions, False)):
        ids, mask = padded(rows, pad_id, left=left)
        batch |= {f"{name}_ids": ids.to(device), f"{name}_mask": mask.to(device)}
    return batch


def padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask of the rows, [rows, longest] each, padded on the right or on the left."""
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        own = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, own] = torch.tensor(row, dtype=torch.long)
        mask[index, own] = 1
    return ids, mask


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids of each row where its mask is set."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
