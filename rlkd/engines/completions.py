"""Generation of a model of transformers over a batch of token rows: end tokens, stop strings, a time limit, draws."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from rlkd.engines.base import Completion, Contrast, Sampling
from rlkd.engines.passes import LoadedModel, TimeLimit, TokenRow, pad_left

if TYPE_CHECKING:
    import torch


def generate_batch(
    loaded: LoadedModel,
    rows: list[TokenRow],
    *,
    sampling: Sampling,
    limit: TimeLimit,
    contrast: Contrast | None = None,
) -> list[Completion | None]:
    """Complete the rows. None for one that the limit overtook. `contrast`: in pairs, see `ContrastivePick`."""
    from rlkd.decoding import decode, greedy

    watch = StopCriterion(loaded.tokenizer, limit, max(len(row.ids) for row in rows), sampling.stop)
    draws = rows if contrast is None else rows[::2]
    draw: Any = SeededSampling(sampling, draws) if sampling.temperature > 0 else None
    if contrast is not None:
        draw = ContrastivePick(draw.pick if draw else greedy, contrast)
    if loaded.shares_prefixes:
        written = decode(
            loaded.model,
            [row.ids for row in rows],
            pick=draw.pick if draw else greedy,
            ends=loaded.end_ids,
            limit=sampling.max_new_tokens,
            pad_id=loaded.pad_id,
            stop=watch.ended,
        )
    else:
        written = _generated(loaded, rows, sampling, watch, draw)
    return [_completion(loaded, tokens, sampling, watch.stopped_at.get(index)) for index, tokens in enumerate(written)]


def _generated(
    loaded: LoadedModel, rows: list[TokenRow], sampling: Sampling, watch: StopCriterion, draw: Any
) -> list[list[int]]:
    """The tokens after each row by the model's own `generate`, padded to the longest."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    ids, mask = pad_left(loaded, rows)
    settings = GenerationConfig(
        do_sample=False,  # `draw` does the sampling
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(loaded.end_ids) or None,
        pad_token_id=loaded.pad_id,
    )
    output = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList([draw] if draw else []),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    written: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return written


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
    """When rows end besides their end token: the time limit for the batch, and the stop strings for each row.

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
        """Return which rows are done, (rows,): a stopping criterion of transformers."""
        import torch

        return self.ended(input_ids, torch.arange(len(input_ids), device=input_ids.device))

    def ended(self, input_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return which of these rows end with their last token, (n,); `rows` are their numbers."""
        import torch

        done = torch.full_like(rows, self.limit.over(), dtype=torch.bool)
        if self.stop:
            written = input_ids.shape[1] - self.prompt_width
            tails = input_ids[:, self.prompt_width :][:, -self.tail :].tolist()
            for index, (row, tail) in enumerate(zip(rows.tolist(), tails, strict=True)):
                if row not in self.stopped_at:
                    text = self.tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    if any(stop in text for stop in self.stop):
                        self.stopped_at[row] = written
                done[index] |= row in self.stopped_at
        return done


class ContrastivePick:
    """Tokens for pairs of rows 2i and 2i + 1, the same token for both, by log p(2i) - weight * log p(2i + 1).

    Tokens whose p(2i) is below `plausibility` times that of the likeliest token are left out. `pick` chooses by the
    difference, and is given the rows as 0, 1, 2, ... As a logits processor, it turns greedy decoding into this.
    """

    def __init__(self, pick: Any, contrast: Contrast) -> None:
        self.base, self.contrast = pick, contrast

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log-weights with one possible token a row, (rows, vocabulary)."""
        import torch

        chosen = self.pick(scores, input_ids, torch.arange(len(scores), device=scores.device))[:, None]
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    def pick(self, scores: torch.Tensor, input_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return a token of each of these rows, (n,); `rows` are their numbers, in any order, pairs complete."""
        import torch

        order = rows.argsort()
        logs = scores[order].float().log_softmax(dim=-1)  # (n, vocabulary)
        towards, away = logs[0::2], logs[1::2]
        difference = towards - self.contrast.weight * away
        if self.contrast.plausibility > 0:
            least = towards.max(dim=-1, keepdim=True).values + math.log(self.contrast.plausibility)
            difference = difference.masked_fill(towards < least, -torch.inf)
        chosen = self.base(difference, input_ids[order][0::2], rows[order][0::2] // 2)
        tokens = chosen.new_empty(len(rows))
        tokens[order] = chosen.repeat_interleave(2)
        return tokens


class SeededSampling:
    """Draws a token of each row; as a logits processor, it turns greedy decoding into sampling.

    Each row has a generator of its own, so its draws depend on the seed and its index in the call alone.
    """

    def __init__(self, sampling: Sampling, rows: list[TokenRow]) -> None:
        self.sampling = sampling
        seed = sampling.seed
        self.generators = [random.Random(None if seed is None else f"{seed}:{row.index}") for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log-weights with one possible token a row, (rows, vocabulary)."""
        import torch

        chosen = self.pick(scores, input_ids, torch.arange(len(scores)))[:, None]
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    def pick(self, scores: torch.Tensor, input_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return a token of each of these rows, (n,); `rows` are their numbers."""
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
        draws = [min(self.generators[row].random(), 1 - 1e-6) for row in rows.tolist()]
        uniform = torch.tensor(draws, device=scores.device, dtype=cumulative.dtype)[:, None]
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        if order is not None:
            chosen = order.gather(-1, chosen)
        return chosen[:, 0]
