"""The fine-grained loss of structure models: sub-questions count as much as calculations and results together.

A completion of `rlkd.gsrm.lines` is mostly sub-questions, so in the plain loss the few tokens of calculations and
results, which decide about answers, have little weight. RLKD (arXiv 2505.16142) mentions a training that separates the
two; its released code does not contain it, so the formula is our choice. For one sequence with the meta tokens M and
the other tokens of the completion S (bars, line ends and the end token included):

    L = 1/2 * mean of CE over M + 1/2 * mean of CE over S

and the mean over sequences. Accumulated batches and several processes give the same as one batch where their
micro-batches have equally many sequences (all do but the last of an epoch).

Memory: logits exist only from the first labelled token on (`logits_to_keep`), since the trace before the structure can
have 25,000 tokens, and their float32 copies only for a chunk of tokens at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from trainers.common.sft import RunSFTTrainer
from trainers.common.sharding import check_sequences

IGNORED = -100
CHUNK = 1024
"""Tokens whose logits are in float32 at the same time."""


def structure_tokens(tokenizer: Any, pair: dict[str, Any], max_length: int | None = None) -> dict[str, list[int]]:
    """A pair of `rlkd.gsrm.augmentation` as tokens: `input_ids`, `labels` (prompt ignored), `meta` (1 on meta tokens).

    Raises ValueError if the chat template renders the prompt differently once an answer follows.
    """
    prompt = tokenizer.apply_chat_template(pair["prompt"], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*pair["prompt"], *pair["completion"]], tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            "the chat template renders a prompt differently when an answer follows, so the answer's tokens cannot be "
            "identified; use fine_grained: false or another template"
        )
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    meta_characters: set[int] = set()
    position = len(prompt)
    for line in pair["completion"][0]["content"].split("\n"):
        meta_characters.update(range(position, position + len(line.partition(" |")[0])))
        position += len(line) + 1
    labels, meta = [], []
    for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        labels.append(token if end > len(prompt) else IGNORED)
        meta.append(int(end > len(prompt) and end - 1 in meta_characters))
    return {
        "input_ids": encoded["input_ids"][:max_length],
        "labels": labels[:max_length],
        "meta": meta[:max_length],
    }


class StructureCollator:
    """Pads `input_ids`, `labels` and `meta` on the right to the longest of the batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of shape [batch, longest], and the attention mask."""

        def padded(key: str, value: int) -> torch.Tensor:
            rows = [torch.tensor(example[key]) for example in examples]
            return pad_sequence(rows, batch_first=True, padding_value=value)

        attention = [torch.ones(len(example["input_ids"]), dtype=torch.long) for example in examples]
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": pad_sequence(attention, batch_first=True),
            "labels": padded("labels", IGNORED),
            "meta": padded("meta", 0),
        }


class StructureSFTTrainer(RunSFTTrainer):
    """`RunSFTTrainer` with the fine-grained loss. Takes rows of `structure_tokens` and a `StructureCollator`.

    `remove_unused_columns` must be False, or `meta` would not get here.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        check_sequences()
        super().__init__(*args, **kwargs)
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See the module's formula."""
        inputs = dict(inputs)
        labels, meta = inputs.pop("labels"), inputs.pop("meta")
        if self._keeps_logits:
            # One position more: the logits of a token are those at the token before.
            first = (labels != IGNORED).any(dim=0).nonzero()
            kept = labels.shape[1] - max(0, int(first[0]) - 1) if len(first) else 1
            inputs["logits_to_keep"] = kept
            labels, meta = labels[:, -kept:], meta[:, -kept:]
        outputs = model(**inputs, use_cache=False)
        loss = fine_grained_loss(outputs.logits, labels, meta)
        if model.training and num_items_in_batch is not None:
            # Given a number of tokens, the loop takes the loss as a part of their sum, and does not divide by itself.
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


def fine_grained_loss(logits: torch.Tensor, labels: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
    """The module's formula.

    `logits` [B, T, V], `labels` [B, T] with -100 where ignored, `meta` [B, T] 0 or 1. A sequence without one of the
    two groups has the mean of the other one as its loss; one without any label does not count.
    """
    flat, targets = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    parts = [
        checkpoint(_losses, flat[start : start + CHUNK], targets[start : start + CHUNK], use_reentrant=False)
        for start in range(0, len(targets), CHUNK)
    ]
    losses = torch.cat(parts).view(labels.shape[0], -1) if parts else flat.new_zeros(labels[:, 1:].shape)
    counted = labels[:, 1:] != IGNORED
    groups = torch.stack([counted & (meta[:, 1:] == 1), counted & (meta[:, 1:] == 0)])  # [2, B, T-1]
    sizes = groups.sum(-1)  # [2, B]
    means = (losses * groups).sum(-1) / sizes.clamp(min=1)
    present = sizes > 0
    per_sequence = (means * present).sum(0) / present.sum(0).clamp(min=1)
    return per_sequence.sum() / present.any(0).sum().clamp(min=1)


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float(), targets, reduction="none", ignore_index=IGNORED)
