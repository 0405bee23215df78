"""Greedy completions of the model in training, for evaluations before, during and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.models import unwrap_model_for_generation


def greedy_completions(
    trainer: Any, prompts: Sequence[Any], *, max_new_tokens: int, batch_size: int = 16
) -> list[str]:
    """One greedy completion per prompt, in order, at most `max_new_tokens` tokens long.

    To be called on every process; they share the prompts, and all get all texts. Neither the random state of the run
    nor the mode of the model is changed.
    """
    accelerator, tokenizer = trainer.accelerator, trainer.processing_class
    own = list(range(accelerator.process_index, len(prompts), accelerator.num_processes))
    # Equal lengths next to each other save padding; the numbers restore the order.
    rendered = {i: _render(tokenizer, prompts[i]) for i in own}
    own.sort(key=lambda i: len(rendered[i]))
    done: list[tuple[int, str]] = []
    was_training = trainer.model.training
    trainer.model.eval()
    try:
        with unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model, torch.no_grad():
            for start in range(0, len(own), batch_size):
                batch = own[start : start + batch_size]
                inputs = tokenizer(
                    [rendered[i] for i in batch],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=False,
                ).to(accelerator.device)
                ids = model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    repetition_penalty=1.0,
                    pad_token_id=tokenizer.pad_token_id,
                )
                texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                done.extend(zip(batch, texts, strict=True))
    finally:
        trainer.model.train(was_training)
    return [text for _, text in sorted(gather_object(done))]


def _render(tokenizer: Any, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
