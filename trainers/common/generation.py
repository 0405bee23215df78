"""Prompts as training shows them to the model, and completions of the model in training, for its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, ProcessorMixin

from rlkd.answers import ends_in_thought
from rlkd.rendering import fitted_conversations, prompt_ids
from trainers.common.fast_generation import fast_generation
from trainers.common.sharding import is_sharded
from trainers.common.trl_compat import model_for_generation


class FittedPrompts:
    """Mixin for a TRL trainer that generates: conversations as the chat template takes them.

    TRL renders a batch in `_tokenize_prompts`; templates without a system role would end the run there.
    """

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        processing: Any = self.processing_class  # type: ignore[attr-defined]
        if not isinstance(prompts[0], str) and not isinstance(processing, ProcessorMixin):
            prompts = fitted_conversations(processing, prompts)
        return super()._tokenize_prompts(prompts)  # type: ignore[misc]


@dataclass(frozen=True)
class WrittenCompletion:
    """A completion of an evaluation: its text, its tokens without the end token, and whether it ended by itself.

    `in_thought`: the prompt opens a thought, within which the completion begins.
    """

    text: str
    tokens: int
    ended: bool
    in_thought: bool = False


def tokenizer_of(trainer: Any) -> Any:
    """The tokenizer of a trainer, also of one with a processor of images."""
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


def shown_prompts(trainer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """The ids of each prompt, exactly as the trainer shows them to the model in training."""
    # With environments, TRL renders a prompt with the tools of the batch at hand.
    if prompts and hasattr(trainer, "_tokenize_prompts") and not getattr(trainer, "environment_factories", None):
        return [list(ids) for ids in trainer._tokenize_prompts(list(prompts))[0]]
    template: Mapping[str, Any] = getattr(trainer, "chat_template_kwargs", None) or {}
    return [prompt_ids(tokenizer_of(trainer), prompt, template) for prompt in prompts]


def end_ids(trainer: Any) -> list[int]:
    """All tokens at which a generation ends: the tokenizer's, and those of the model's generation config."""
    known = getattr(trainer, "eos_token_ids", None)
    if known is None:
        settings = getattr(trainer.accelerator.unwrap_model(trainer.model), "generation_config", None)
        known = getattr(settings, "eos_token_id", None)
    listed = [known] if isinstance(known, int) else list(known or ())
    own = tokenizer_of(trainer).eos_token_id
    return list(dict.fromkeys(token for token in (own, *listed) if token is not None))


def greedy_completions(
    trainer: Any,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    advance: Callable[[int], object] = lambda count: None,
) -> list[WrittenCompletion]:
    """One greedy completion per prompt, in order, at most `max_new_tokens` tokens long.

    To be called on every process; they share the prompts, and all get all completions. Neither the random state of the
    run nor the mode of the model is changed. `advance` is called with the number of completions that this process did.
    """
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return _written(trainer, prompts, greedy | {"max_new_tokens": max_new_tokens}, batch_size, advance)


def sampled_completions(
    trainer: Any,
    prompts: Sequence[Any],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[WrittenCompletion]]:
    """`samples` completions per prompt, drawn at `temperature` from the whole vocabulary; else as the greedy ones.

    Equal seeds, models and numbers of processes give equal completions.
    """
    drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + trainer.accelerator.process_index)
        written = _written(trainer, repeated, drawn | {"max_new_tokens": max_new_tokens}, batch_size, advance)
    return [written[start : start + samples] for start in range(0, len(written), samples)]


def _written(
    trainer: Any,
    prompts: Sequence[Any],
    settings: Mapping[str, Any],
    batch_size: int,
    advance: Callable[[int], object],
) -> list[WrittenCompletion]:
    """One completion per prompt, with these settings of `generate`."""
    accelerator, tokenizer = trainer.accelerator, tokenizer_of(trainer)
    own = list(range(accelerator.process_index, len(prompts), accelerator.num_processes))
    if is_sharded(trainer) and len(own) * accelerator.num_processes < len(prompts):
        own.append(0)  # each step of a generation needs all processes: the last ones write a prompt once more
    shown = dict(zip(own, shown_prompts(trainer, [prompts[i] for i in own]), strict=True))
    # Equal lengths next to each other save padding; the numbers restore the order.
    own.sort(key=lambda i: len(shown[i]))
    ends = end_ids(trainer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    done: list[tuple[int, WrittenCompletion]] = []
    was_training = trainer.model.training
    trainer.model.eval()
    try:
        config = GenerationConfig(
            **settings, repetition_penalty=1.0, pad_token_id=pad_id, eos_token_id=ends or None, disable_compile=True
        )
        with fast_generation(trainer), model_for_generation(trainer) as model, torch.no_grad():
            for start in range(0, len(own), batch_size):
                batch = own[start : start + batch_size]
                width = max(len(shown[i]) for i in batch)
                padding = [[pad_id] * (width - len(shown[i])) for i in batch]
                ids = [left + shown[i] for left, i in zip(padding, batch, strict=True)]
                mask = [[0] * len(left) + [1] * (width - len(left)) for left in padding]
                written = model.generate(
                    input_ids=torch.tensor(ids, device=accelerator.device),
                    attention_mask=torch.tensor(mask, device=accelerator.device),
                    generation_config=config,
                )
                for i, row in zip(batch, written[:, width:].tolist(), strict=True):
                    in_thought = ends_in_thought(tokenizer.decode(shown[i][-20:]))
                    done.append((i, replace(_completion(tokenizer, row, ends), in_thought=in_thought)))
                advance(len(batch))
    finally:
        trainer.model.train(was_training)
    return [completion for _, completion in sorted(dict(gather_object(done)).items())]


def _completion(tokenizer: Any, ids: Sequence[int], ends: Sequence[int]) -> WrittenCompletion:
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return WrittenCompletion(tokenizer.decode(ids[:length], skip_special_tokens=True), length, length < len(ids))
