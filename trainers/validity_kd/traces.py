"""Generation batches of the teacher's traces."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather, gather_object

from rlkd.teachers.traces import trace_ids, trace_text
from trainers.teachers.batches import padded_batch
from trainers.validity_kd.draws import choose_trace


def trace_batch(trainer: Any, rows: Sequence[Mapping[str, Any]], step: int, end: int | None) -> dict[str, Any]:
    """A generation batch of the teacher's traces, laid out and logged as TRL does it with rollouts.

    `end`: the token that ends them where it is not that of the template. Must be called on every process.
    """
    args, tokenizer, device = trainer.args, trainer._tokenizer, trainer.accelerator.device
    pairs = [
        trace_ids(
            tokenizer,
            row["prompt"],
            trace_text(choose_trace(row, args.seed, step), row.get("answer")),
            args.max_completion_length or sys.maxsize,
            chat_template_kwargs=dict(trainer.chat_template_kwargs),
            end=end,
        )
        for row in rows
    ]
    prompts, traces = [prompt for prompt, _ in pairs], [trace for _, trace in pairs]
    batch: dict[str, Any] = dict(padded_batch(prompts, traces, tokenizer.pad_token_id, device))
    lengths = gather(batch["completion_mask"].sum(1))
    batch["num_items_in_batch"] = lengths.sum()
    metrics = trainer._metrics["train"]
    trainer.state.num_input_tokens_seen += int(gather(batch["prompt_mask"].sum(1)).sum() + lengths.sum())
    metrics["num_tokens"] = [trainer.state.num_input_tokens_seen]
    metrics["traces/mean_length"].append(lengths.float().mean().item())
    ended = torch.tensor([float(ids[-1] in trainer.eos_token_ids) for ids in traces], device=device)
    metrics["traces/clipped_ratio"].append(1 - gather(ended).mean().item())
    if trainer.log_completions:  # TRL does so with rollouts
        for column, ids in (("prompt", prompts), ("completion", traces)):
            trainer._logs[column].extend(gather_object(tokenizer.batch_decode(ids, skip_special_tokens=True)))
    return batch
