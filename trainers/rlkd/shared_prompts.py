"""Log-probabilities of completions in one forward pass that reads each prompt once.

The completions of a group stand behind their prompt in one sequence, each begun by the prompt's last token, which
predicts its first:

    prompt without its last token | last, completion 1 | last, completion 2 | ...

A mask hides the completions from each other, and each counts its positions from the end of the prompt. So every token
sees what it sees in a sequence of its own, and log-probabilities and gradients are equal up to rounding. Short groups
share a sequence, as long as none becomes longer than the longest group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A pass of packed rows must cost less than this share of the plain one: it also costs building its mask.
WORTHWHILE = 0.9


@dataclass(frozen=True)
class PackedRows:
    """Sequences of groups, as arguments of a model's forward pass, and where the completions stand in them.

    `input_ids`, `position_ids` (S, T); `visible` (S, T, T), true where a token (row) sees another (column). `tokens`
    (N,) are those of all completions, `sources` (N,) the positions that predict them, of all S x T, and `places`
    (B, C) their numbers in the rows, with -1 for padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    sources: Tensor
    tokens: Tensor
    places: Tensor

    def attention_mask(self, added: bool) -> Tensor:
        """The mask of attention, (S, 1, T, T): `visible`, or as numbers that are added to the scores."""
        if not added:
            return self.visible[:, None]
        mask = torch.zeros(self.visible.shape, device=self.visible.device)
        return mask.masked_fill(~self.visible, torch.finfo(mask.dtype).min)[:, None]

    def per_row(self, values: Tensor) -> Tensor:
        """Values of the tokens, (N,), as rows, (B, C), with 0 for padding."""
        return values[self.places.clamp(min=0)].masked_fill(self.places < 0, 0)


def pack(input_ids: Tensor, attention_mask: Tensor, width: int, hidden: int) -> PackedRows | None:
    """Pack rows of prompt and completion, (B, P + C), whose last `width` columns are the completion.

    None where that would not be cheaper; `hidden`, the model's width, is for that estimate: per layer and token, the
    products with matrices cost about 12 `hidden` squared, and attention 2 `hidden` for each token of its sequence.
    """
    ids, mask = input_ids.tolist(), attention_mask.bool().tolist()
    start = input_ids.shape[1] - width
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for row, (tokens, kept) in enumerate(zip(ids, mask, strict=True)):
        prompt = tuple(token for token, keep in zip(tokens[:start], kept[:start], strict=True) if keep)
        completion = [token for token, keep in zip(tokens[start:], kept[start:], strict=True) if keep]
        if not prompt:
            return None
        if completion:
            groups.setdefault(prompt, []).append((row, completion))
    if not groups:
        return None
    sequences = _filled({prompt: _length(prompt, rows) for prompt, rows in groups.items()})
    longest = max(sum(_length(prompt, groups[prompt]) for prompt in sequence) for sequence in sequences)

    def cost(rows: int, tokens: int) -> int:
        return rows * tokens * (6 * hidden + tokens)

    if cost(len(sequences), longest) > WORTHWHILE * cost(*input_ids.shape):
        return None
    shape = len(sequences), longest
    packed, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments, owners = torch.full(shape, -1), torch.full(shape, -1)  # of each token: its part of its group, its group
    places = torch.full((len(ids), width), -1)
    sources: list[int] = []
    predicted: list[int] = []
    for index, sequence in enumerate(sequences):
        at = 0
        for group, prompt in enumerate(sequence):
            head = len(prompt) - 1
            parts = [prompt[:-1], *((prompt[-1], *completion) for _, completion in groups[prompt])]
            for segment, tokens in enumerate(parts):
                here = slice(at, at + len(tokens))
                packed[index, here] = torch.tensor(tokens, dtype=packed.dtype)
                positions[index, here] = torch.arange(len(tokens)) + (head if segment else 0)
                segments[index, here], owners[index, here] = segment, group
                if segment:
                    row, completion = groups[prompt][segment - 1]
                    places[row, : len(completion)] = torch.arange(len(sources), len(sources) + len(completion))
                    sources += range(index * longest + at, index * longest + at + len(completion))
                    predicted += completion
                at += len(tokens)
    earlier = torch.ones(longest, longest, dtype=torch.bool).tril()
    same_group = owners[:, :, None] == owners[:, None, :]
    of_prompt = (segments == 0)[:, None, :]
    visible = earlier & same_group & (of_prompt | (segments[:, :, None] == segments[:, None, :]))
    found = (packed, positions, visible, torch.tensor(sources), torch.tensor(predicted), places)
    return PackedRows(*(part.to(input_ids.device) for part in found))


def _length(prompt: Sequence[int], rows: Sequence[tuple[int, list[int]]]) -> int:
    return len(prompt) - 1 + sum(1 + len(completion) for _, completion in rows)


def _filled(lengths: dict[tuple[int, ...], int]) -> list[list[tuple[int, ...]]]:
    """Prompts in sequences, none longer than the longest prompt's, longest first into the first that has room."""
    most = max(lengths.values())
    sequences: list[list[tuple[int, ...]]] = []
    room: list[int] = []
    for prompt in sorted(lengths, key=lambda prompt: -lengths[prompt]):
        index = next((index for index, left in enumerate(room) if left >= lengths[prompt]), None)
        if index is None:
            index = len(sequences)
            sequences.append([])
            room.append(most)
        sequences[index].append(prompt)
        room[index] -= lengths[prompt]
    return sequences
