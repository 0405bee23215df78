"""Forward passes of a model of transformers over batches of token rows: generation, scores, shared prefixes."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkd.engines.base import Completion, RankedScores, Sampling, TokenScores

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
            ids, mask = _pad_left(loaded, shared)
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


def _pad_left(loaded: LoadedModel, rows: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, each (rows, longest)."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = [[loaded.pad_id] * (width - len(row.ids)) + row.ids for row in rows]
    mask = [[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]
    return torch.tensor(ids, device=loaded.device), torch.tensor(mask, device=loaded.device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions of the tokens that a mask has, (rows, width); padding counts for none."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def generate_batch(
    loaded: LoadedModel, rows: list[TokenRow], *, sampling: Sampling, limit: TimeLimit
) -> list[Completion | None]:
    """Complete the rows. None for one that the limit overtook."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    ids, mask = _pad_left(loaded, rows)
    watch = StopCriterion(loaded.tokenizer, limit, ids.shape[1], sampling.stop)
    draw = LogitsProcessorList([SeededSampling(sampling, rows)] if sampling.temperature > 0 else [])
    settings = GenerationConfig(
        do_sample=False,  # `SeededSampling` does the sampling
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(loaded.end_ids) or None,
        pad_token_id=loaded.pad_id,
    )
    output = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=draw,
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    written = output[:, ids.shape[1] :].tolist()
    return [_completion(loaded, tokens, sampling, watch.stopped_at.get(index)) for index, tokens in enumerate(written)]


def _completion(
    loaded: LoadedModel, tokens: list[int], sampling: Sampling, stopped_at: int | None
) -> Completion | None:
    """Read one row of output: its tokens up to the end token, the stop string or the limit. None if it has no end."""
    tokens = tokens[:stopped_at]
    end = next((index for index, token in enumerate(tokens) if token in loaded.end_ids), None)
    if end is None and stopped_at is None and len(tokens) < sampling.max_new_tokens:
        return None
    used = len(tokens) if end is None else end + 1
    text = loaded.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cuts = [index for index in (text.find(stop) for stop in sampling.stop) if index >= 0]
    if cuts:
        return Completion(text[: min(cuts)], "stop", used)
    return Completion(text, "length" if end is None and stopped_at is None else "stop", used)


class StopCriterion:
    """A stopping criterion: the time limit for the batch, and the stop strings for each row.

    transformers has `stop_strings`, but it reads the prompt's tail too: a stop string that begins in the prompt and
    ends in the completion would stop a row there, though its completion does not contain it.
    """

    def __init__(self, tokenizer: Any, limit: TimeLimit, prompt_width: int, stop: tuple[str, ...]) -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.prompt_width = prompt_width
        self.stop = stop
        # A token is at least a byte, so a stop string that ends in the newest token begins within this many. The slack
        # is for characters of several tokens.
        self.tail = max((len(text.encode()) for text in stop), default=0) + 8
        self.stopped_at: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows are done, (rows,)."""
        import torch

        done = torch.full((input_ids.shape[0],), self.limit.over(), device=input_ids.device, dtype=torch.bool)
        if self.stop:
            written = input_ids.shape[1] - self.prompt_width
            tails = input_ids[:, self.prompt_width :][:, -self.tail :].tolist()
            for row, tail in enumerate(tails):
                if row not in self.stopped_at:
                    text = self.tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    if any(stop in text for stop in self.stop):
                        self.stopped_at[row] = written
            done[list(self.stopped_at)] = True
        return done


class SeededSampling:
    """A logits processor that turns greedy decoding into sampling: it leaves one possible token in every row.

    Each row has a generator of its own, so its draws depend on the seed and its index in the call alone.
    """

    def __init__(self, sampling: Sampling, rows: list[TokenRow]) -> None:
        self.sampling = sampling
        seed = sampling.seed
        self.generators = [random.Random(None if seed is None else f"{seed}:{row.index}") for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log-weights with one possible token a row, (rows, vocabulary)."""
        import torch

        top = scores.max(dim=-1, keepdim=True).values
        weights = ((scores - top).float() / self.sampling.temperature).softmax(dim=-1)  # (rows, vocabulary)
        order = None
        if self.sampling.top_p < 1:
            weights, order = weights.sort(dim=-1, descending=True, stable=True)
            before = weights.cumsum(dim=-1) - weights
            # The smallest set of tokens that reaches top_p; the likeliest token always stays.
            outside = before >= self.sampling.top_p
            outside[:, 0] = False
            weights = weights.masked_fill(outside, 0.0)
        cumulative = weights.cumsum(dim=-1)
        # Just below 1, so that rounding never selects a token of weight 0 after the last.
        draws = [min(generator.random(), 1 - 1e-6) for generator in self.generators]
        uniform = torch.tensor(draws, device=scores.device, dtype=cumulative.dtype)[:, None]
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        if order is not None:
            chosen = order.gather(-1, chosen)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def score_batch(
    loaded: LoadedModel, rows: list[TokenRow], *, ranks: bool = False, prefixes: SharedPrefixes | None = None
) -> list[TokenScores]:
    """The log-probabilities after the prompt of each row, whose `prefixes` have been taken off."""
    import torch

    ids, mask = _pad_left(loaded, rows)
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
