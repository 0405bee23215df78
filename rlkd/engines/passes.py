"""Forward passes of a model of transformers over batches of token rows: scores, shared prefixes."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkd.engines.base import RankedScores, TokenScores

if TYPE_CHECKING:
    import torch

# Reading a shared prefix by itself costs a pass of the model, so it must be worth one; and its states are copied
# into every batch, so that a group must end somewhere.
_SHORTEST_SHARED, _LARGEST_GROUP = 16, 64
# In scoring, at most this share of a batch is padding, unless the batch has no more tokens than a small one.
_MOST_PADDING, _SMALL_BATCH = 0.05, 128


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and what its forward pass accepts."""

    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    vocabulary: int
    end_ids: frozenset[int]
    pad_id: int
    takes_positions: bool
    takes_logits_to_keep: bool
    shares_prefixes: bool


class TimeLimit:
    """When the work must stop: at the deadline, or as soon as its caller is cancelled."""

    def __init__(self, deadline: float | None) -> None:
        self.end = None if deadline is None else time.monotonic() + deadline
        self.cancelled = False

    def over(self) -> bool:
        """Whether the work must stop."""
        return self.cancelled or (self.end is not None and time.monotonic() >= self.end)


@dataclass(frozen=True)
class TokenRow:
    """One request of a batch: its index in the call, its ids, and the number of the prompt's."""

    index: int
    ids: list[int]
    prompt: int


@dataclass(frozen=True)
class PrefixGroup:
    """Requests whose first `shared` ids are the same."""

    rows: list[TokenRow]
    shared: int


class SharedPrefixes:
    """The shared prefixes of some groups, read once, when first needed; `rows`: the requests without them."""

    def __init__(self, groups: list[PrefixGroup]) -> None:
        self.groups = groups
        self.group = {row.index: index for index, group in enumerate(groups) for row in group.rows}
        self.rows = [
            TokenRow(row.index, row.ids[group.shared :], row.prompt - group.shared)
            for group in groups
            for row in group.rows
        ]
        self._read: tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor] | None = None

    def before(self, loaded: LoadedModel, rows: list[TokenRow]) -> tuple[Any, torch.Tensor]:
        """The states of the prefixes of these rows as a cache, and their mask, (rows, longest prefix)."""
        import torch
        from transformers import DynamicCache

        if self._read is None:
            shared = [TokenRow(0, group.rows[0].ids[: group.shared], 0) for group in self.groups]
            ids, mask = pad_left(loaded, shared)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
            cache = loaded.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            self._read = [(layer.keys, layer.values) for layer in cache.layers], mask
        states, mask = self._read
        indices = torch.tensor([self.group[row.index] for row in rows], device=mask.device)
        own = DynamicCache()
        for layer, (keys, values) in enumerate(states):  # each (groups, heads, longest prefix, width)
            own.update(keys[indices], values[indices], layer)
        return own, mask[indices]


def shared_prefixes(rows: list[TokenRow]) -> tuple[list[PrefixGroup], list[TokenRow]]:
    """Divide requests into groups with a prefix in common, such that the most tokens are saved, and the rest.

    A prefix ends before the last token of a prompt, which predicts the first of the continuation. In sorted order
    a group is a run of neighbours, and a group of n with m ids in common saves (n - 1) m; the best division of a list
    ends with some run, after the best division of what is before it. At most `_LARGEST_GROUP` steps a request.
    """
    rows = sorted(rows, key=lambda row: (row.ids, row.prompt))
    common = [0]  # of a request and the one before it
    for left, right in itertools.pairwise(rows):
        most = min(left.prompt, right.prompt) - 1
        pairs = enumerate(zip(left.ids[:most], right.ids[:most], strict=True))
        common.append(next((index for index, (one, other) in pairs if one != other), most))
    # Of the first k requests: the most tokens saved, and how many are in the last run and what they share.
    best = [(0, 0, 0)]
    for end in range(1, len(rows) + 1):
        found = (best[-1][0], 1, 0)
        shared = len(rows[end - 1].ids)
        for size in range(2, min(end, _LARGEST_GROUP) + 1):
            shared = min(shared, common[end - size + 1])
            if shared < _SHORTEST_SHARED:
                break
            saved = best[end - size][0] + (size - 1) * shared
            if saved > found[0]:
                found = (saved, size, shared)
        best.append(found)
    groups, alone = [], []
    end = len(rows)
    while end:
        _, size, shared = best[end]
        if size > 1:
            groups.append(PrefixGroup(rows[end - size : end], shared))
        else:
            alone.append(rows[end - 1])
        end -= size
    return groups, alone


def is_dense(longest: int, lengths: list[int]) -> bool:
    """Whether a batch of rows of these lengths has little padding: a computation that has much to do is slowed by it.

    A small batch may have any: it costs less than another pass.
    """
    padded = longest * len(lengths)
    return padded <= _SMALL_BATCH or padded * (1 - _MOST_PADDING) <= sum(lengths)


def pad_left(loaded: LoadedModel, rows: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of rows that end together, each (rows, longest)."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = [[loaded.pad_id] * (width - len(row.ids)) + row.ids for row in rows]
    mask = [[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]
    return torch.tensor(ids, device=loaded.device), torch.tensor(mask, device=loaded.device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions of the tokens that a mask has, (rows, width); padding counts for none."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def score_batch(
    loaded: LoadedModel, rows: list[TokenRow], *, ranks: bool = False, prefixes: SharedPrefixes | None = None
) -> list[TokenScores]:
    """The log-probabilities after the prompt of each row, whose `prefixes` have been taken off."""
    import torch

    ids, mask = pad_left(loaded, rows)
    # The rows end together, and nothing is predicted from a last token: what predicts a continuation now stands last.
    ids, mask = ids[:, :-1], mask[:, :-1]
    longest = max(len(row.ids) - row.prompt for row in rows)
    inputs: dict[str, Any] = {"use_cache": False}
    if prefixes is not None:
        past, before = prefixes.before(loaded, rows)
        mask = torch.cat([before, mask], dim=-1)
        inputs = {"past_key_values": past, "use_cache": True}
    inputs |= {"input_ids": ids, "attention_mask": mask}
    if loaded.takes_positions:
        inputs["position_ids"] = _positions(mask)[:, -ids.shape[1] :]
    if loaded.takes_logits_to_keep:
        # As a tensor: a number makes a view, on which the product with the vocabulary is several times slower.
        inputs["logits_to_keep"] = torch.arange(ids.shape[1] - longest, ids.shape[1], device=loaded.device)
    logits = loaded.model(**inputs).logits[:, -longest:]  # (rows, longest, vocabulary)
    results: list[TokenScores] = []
    for index, row in enumerate(rows):
        length = len(row.ids) - row.prompt
        predicted = logits[index, -length:].float()  # (length, vocabulary)
        targets = torch.tensor(row.ids[row.prompt :], device=loaded.device)
        chosen = predicted.gather(-1, targets[:, None])  # (length, 1)
        values = tuple((chosen[:, 0] - predicted.logsumexp(dim=-1)).tolist())
        if ranks:
            results.append(RankedScores(values, tuple((1 + (predicted > chosen).sum(dim=-1)).tolist())))
        else:
            results.append(TokenScores(values))
    return results
