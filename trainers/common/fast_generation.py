"""Generation in a trainer by `rlkd.decoding`, in the place of `model.generate`.

TRL's trainers call `model.generate` in one place, and use what it returns. While they generate, `fast_generation` puts
a function there that takes the same arguments and returns the same tensor; everything around it stays TRL's.

The model generates without dropout, where TRL leaves a model in training mode: a rollout comes from the model that is
trained, not from a randomly thinned one. Rows that have ended draw no random numbers, so that the draws are others
than those of `generate` for the same seed; they follow the same distribution, and equal seeds give equal draws.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlkd.decoding import decode, unsupported
from trainers.common.adapters import without_wrapper
from trainers.common.decoding_weights import decoding_weights
from trainers.common.fast_path import say_once, takes_fast_path

# Settings of generation that `_Pick` and `decode` follow; those that say nothing about the tokens.
_FOLLOWED = {"max_new_tokens", "max_length", "do_sample", "pad_token_id", "bos_token_id", "eos_token_id"}
_FOLLOWED |= {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "suppress_tokens"}
_SILENT = {"transformers_version", "disable_compile", "_from_model_config", "use_cache"}


class FastRollouts:
    """Mixin for TRL's GRPOTrainer and DistillationTrainer: their rollouts take the fast path."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with fast_generation(self):
            return super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def fast_generation(trainer: Any) -> Iterator[None]:
    """Within this context, `generate` of the trainer's model is the fast one, and its adapters are merged."""
    if not takes_fast_path(trainer) or getattr(trainer, "use_vllm", False):
        yield
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    reason = _unsupported(model)
    if reason is not None:
        say_once("generation", reason)
        yield
        return
    with decoding_weights(model):
        model.generate = partial(generate, model, model.generate)
        try:
            yield
        finally:
            del model.generate


def generate(
    model: Any,
    plain: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    **others: Any,
) -> Tensor:
    """What `model.generate` returns, (B, P + C): prompts with padding on the left, and their completions.

    `plain`, the model's own `generate`, serves what this one does not: images, beams, other settings of sampling.
    """
    config = None if generation_config is None else _complete_config(model, generation_config)
    reason = (
        _unfollowed(config, others)
        if input_ids is not None and attention_mask is not None
        else "generate is called without ids"
    )
    if reason is not None:
        say_once("generation", reason)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "generation_config": generation_config}
        return plain(**{name: value for name, value in given.items() if value is not None}, **others)
    assert config is not None
    assert input_ids is not None
    assert attention_mask is not None
    width = input_ids.shape[1]
    ends = _listed(config.eos_token_id)
    pad_id = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), 0)
    training = model.training
    model.eval()
    try:
        written = decode(
            without_wrapper(model),
            [ids[kept].tolist() for ids, kept in zip(input_ids, attention_mask.bool(), strict=True)],
            pick=_Pick(config, attention_mask.sum(dim=1)),
            ends=ends,
            limit=config.max_new_tokens or config.max_length - width,
            pad_id=pad_id,
        )
    finally:
        model.train(training)
    longest = max(map(len, written))
    padded = [tokens + [pad_id] * (longest - len(tokens)) for tokens in written]
    return torch.cat([input_ids, torch.tensor(padded, device=input_ids.device, dtype=input_ids.dtype)], dim=1)


class _Pick:
    """A token of each row: the likeliest, or a drawn one, after transformers' own processors of scores.

    `lengths`: of the prompts, (B,). Draws by the inverse of the cumulated probabilities, with a random number a row.
    """

    def __init__(self, config: GenerationConfig, lengths: Tensor):
        self.config = config
        self.padding = lengths.max() - lengths

    def __call__(self, scores: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        for process in self._processors(rows):
            scores = process(ids, scores)
        if not self.config.do_sample:
            return scores.argmax(dim=-1)
        # In float64, and the draw below 1: rounding must not select a token of probability 0 behind the last.
        cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.rand(len(rows), 1, dtype=torch.float64, device=scores.device).clamp(max=1 - 1e-9)
        return torch.searchsorted(cumulated, drawn * cumulated[:, -1:], right=True)[:, 0]

    def _processors(self, rows: Tensor) -> list[Any]:
        """In the order of `generate`; for the rows at hand, since one of them looks at each row's padding."""
        config = self.config
        chosen: list[Any] = []
        if config.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty, self.padding[rows]))
        if config.suppress_tokens is not None:
            chosen.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=str(rows.device)))
        if config.do_sample:
            if config.temperature != 1.0:
                chosen.append(TemperatureLogitsWarper(config.temperature))
            if config.top_k:
                chosen.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1.0:
                chosen.append(TopPLogitsWarper(config.top_p))
            if config.min_p is not None:
                chosen.append(MinPLogitsWarper(config.min_p))
        return chosen


def _complete_config(model: Any, config: GenerationConfig) -> GenerationConfig:
    """A configuration with the values that `generate` takes from the model's own and from its defaults."""
    complete = copy.deepcopy(config)
    own = getattr(without_wrapper(model), "generation_config", None)
    if own is not None:
        complete.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
    complete.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    return complete


def _unfollowed(config: GenerationConfig | None, others: dict[str, Any]) -> str | None:
    """Why these settings are left to `model.generate`; None where they are not."""
    if config is None:
        return "generate is called without a generation_config"
    if given := sorted(name for name, value in others.items() if value is not None):
        return f"generate is called with {', '.join(given)}"
    defaults = GenerationConfig().to_dict() | GenerationConfig._get_default_generation_params()
    differ = {name for name, value in config.to_dict().items() if value and value != defaults.get(name)}
    differ -= _FOLLOWED | _SILENT
    if differ == {"cache_implementation"} and config.cache_implementation == "dynamic":
        return None
    return f"{', '.join(sorted(differ))} is set" if differ else None


def _unsupported(model: Any) -> str | None:
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in getattr(model, "peft_config", {}).values()):
        return "the adapter puts tokens before the prompt"
    if "generate" in vars(model) or type(without_wrapper(model)).generate is not GenerationMixin.generate:
        return "the model's generate is not that of transformers"
    return unsupported(without_wrapper(model))


def _listed(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
