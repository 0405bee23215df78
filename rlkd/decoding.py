"""Generation with a causal language model of transformers, without repeated work.

    decode(model, [[1, 5, 9], [1, 5, 9], [1, 7]], pick=greedy, ends={2}, limit=32, pad_id=0)
    # [[4, 4, 2], [4, 4, 2], [8, 2]]

It continues prompts as `model.generate` does, with three differences in cost:

1. a prompt that occurs several times (the samples of a group) is read once, and its states are copied;
2. a row that has ended leaves the batch, and its place goes to the last row;
3. the states are written into a buffer with room for more, where transformers copies all of them for every token.

Tokens are equal to those of `generate` up to rounding: in float32, log-probabilities agree to 1e-5.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Pick = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores (n, vocabulary), ids so far (n, width, padded on the left), numbers of the rows (n,) -> a token each (n,)."""
Stop = Callable[[Tensor, Tensor], Tensor]
"""Ids so far (n, width) and numbers of the rows (n,) -> which rows end here (n,)."""

# Tokens by which a buffer of states grows, and padded tokens of a batch in which prompts are read.
_GROWTH, _BATCH_ON_CPU, _BATCH_ON_GPU = 64, 1024, 16384


def greedy(scores: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """The likeliest token of each row."""
    return scores.argmax(dim=-1)


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pick: Pick,
    ends: Collection[int],
    limit: int,
    pad_id: int,
    stop: Stop | None = None,
) -> list[list[int]]:
    """The tokens after each prompt: up to an end token, which is included, the row's `stop`, or `limit` tokens.

    The model is called as it is, in its own mode; `unsupported(model)` must be None. `pick` sees rows until they end.
    """
    device = model.get_input_embeddings().weight.device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: index for index, prompt in enumerate(distinct)}
    owner = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
    width = max(map(len, distinct))
    ids = torch.full((len(prompts), width + limit), pad_id, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) : width] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) : width] = 1
    lengths = mask.sum(dim=1)
    written = torch.zeros_like(lengths)
    end_ids = torch.tensor(sorted(ends), dtype=ids.dtype, device=device)
    rows = torch.arange(len(prompts), device=device)  # of the batch at hand, in the order of its states
    with torch.no_grad():
        states, scores = _read(model, distinct, width, pad_id, device)
        cache, scores = _Cache(states, owner), scores[owner]
        for step in range(limit):
            now = width + step
            tokens = pick(scores, ids[rows, :now], rows)
            ids[rows, now], mask[rows, now], written[rows] = tokens, 1, step + 1
            ended = torch.isin(tokens, end_ids)
            if stop is not None:
                ended |= stop(ids[rows, : now + 1], rows)
            if ended.any():
                rows = rows[cache.drop(ended)]
            if not len(rows) or step + 1 == limit:
                break
            scores = _last_scores(
                model(
                    input_ids=ids[rows, now : now + 1],
                    attention_mask=mask[rows, : now + 1],
                    position_ids=(lengths[rows] + step)[:, None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            )
    return [row[width : width + count] for row, count in zip(ids.tolist(), written.tolist(), strict=True)]


def unsupported(model: Any) -> str | None:
    """Why `decode` cannot generate with this model, or None where it can."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "the model has an encoder"
    accepted = inspect.signature(model.forward).parameters
    if missing := {"position_ids", "logits_to_keep", "past_key_values"} - accepted.keys():
        return f"the model's forward pass does not take {', '.join(sorted(missing))}"
    if not keeps_every_state(model.config):
        return "the model does not keep a state per token (sliding window, recurrent state, dynamic positions)"
    return None


def keeps_every_state(config: Any) -> bool:
    """Whether a text read in two parts, with padding between them, is read as it is in one.

    Not so with a sliding window, which counts padding too, nor where a recurrent state stands for what has been read,
    nor with rotary positions whose frequencies depend on the longest position of a pass: the first part, read alone,
    would get others.
    """
    layers = DynamicCache(config=config).layers
    keeps = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    # One entry of settings, or one for each kind of layer.
    rotary = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [str(each.get("rope_type")) for each in (rotary, *rotary.values()) if isinstance(each, Mapping)]
    return keeps and not any("dynamic" in kind or kind == "longrope" for kind in kinds)


def has_relative_positions(config: Any) -> bool:
    """Whether a text that begins at a later position is read as the same: with rotary positions, and nothing else."""
    text = config.get_text_config()
    return bool(getattr(text, "rope_parameters", None)) and not getattr(text, "alibi", False)


def _read(
    model: Any, prompts: Sequence[Sequence[int]], width: int, pad_id: int, device: torch.device
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The states of the prompts, per layer (prompts, heads, width, size), and the scores after them."""
    states: list[tuple[Tensor, Tensor]] = []
    scores: Tensor | None = None
    for batch in _batches(prompts, _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU):
        longest = max(len(prompts[index]) for index in batch)
        left = [longest - len(prompts[index]) for index in batch]
        ids = [[pad_id] * pad + list(prompts[index]) for index, pad in zip(batch, left, strict=True)]
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in left], device=device)
        read = model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        found = _last_scores(read)
        if scores is None:
            scores = found.new_empty(len(prompts), found.shape[-1])
            # Zeros, as what a mask hides must still be a number.
            for layer in read.past_key_values.layers:
                both = [part.new_zeros(len(prompts), part.shape[1], width, part.shape[-1]) for part in _parts(layer)]
                states.append((both[0], both[1]))
        scores[batch] = found
        for layer, kept in zip(read.past_key_values.layers, states, strict=True):
            for part, target in zip(_parts(layer), kept, strict=True):
                target[batch, :, width - longest :] = part
    assert scores is not None
    return states, scores


def _parts(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _batches(prompts: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Numbers of prompts of about the same length, with at most `most` tokens together, padding included."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        if batch and (len(batch) + 1) * len(prompts[index]) > most:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _last_scores(output: Any) -> Tensor:
    # In float32 and a copy: what picks a token may change them.
    return output.logits[:, -1].to(torch.float32, copy=True)


class _Cache(DynamicCache):
    """The states of a batch whose rows leave it. `owner`: for each row, which of the given states is its own."""

    layers: list[Any]

    def __init__(self, states: Sequence[tuple[Tensor, Tensor]], owner: Tensor):
        super().__init__()
        self.layers = [_Layer(keys, values, owner) for keys, values in states]

    def drop(self, ended: Tensor) -> Tensor:
        """Take rows out of the batch, (n,); return for each row of the new batch which of the old ones it was."""
        order = torch.arange(len(ended), device=ended.device)
        count = int((~ended).sum())
        holes, moved = order[:count][ended[:count]], order[count:][~ended[count:]]
        for layer in self.layers:
            layer.move(moved, holes, count)
        order[holes] = moved
        return order[:count]


class _Layer(DynamicLayer):
    """The states of one layer in a buffer with room for more; `keys` and `values` are the part in use."""

    def __init__(self, keys: Tensor, values: Tensor, owner: Tensor):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.buffers = [_with_room(part[owner]) for part in (keys, values)]
        self._use(len(owner), keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append states; returns all of them."""
        assert self.keys is not None
        rows, used = self.keys.shape[0], self.keys.shape[-2]
        if used + key_states.shape[-2] > self.buffers[0].shape[-2]:
            self.buffers = [_with_room(buffer[:rows], key_states.shape[-2]) for buffer in self.buffers]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, used : used + new.shape[-2]] = new
        return self._use(rows, used + key_states.shape[-2])

    def move(self, sources: Tensor, targets: Tensor, count: int) -> None:
        """Copy rows over others; then only the first `count` are in use."""
        assert self.keys is not None
        used = self.keys.shape[-2]
        if len(sources):
            for buffer in self.buffers:
                buffer[targets, :, :used] = buffer[sources, :, :used]
        self._use(count, used)

    def _use(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:rows, :, :tokens] for buffer in self.buffers)
        return self.keys, self.values


def _with_room(states: Tensor, more: int = 0) -> Tensor:
    buffer = states.new_empty(*states.shape[:2], states.shape[2] + max(more, _GROWTH), states.shape[3])
    buffer[:, :, : states.shape[2]] = states
    return buffer
