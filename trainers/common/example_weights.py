"""Weights of examples in the loss of fine-tuning: from a column, from the student's own loss, or the product of both.

With n_i tokens in the completion of example i, N in those of the whole optimizer step, and weights w_i:

    L = 1/N * sum over i of  w_i * sum over t of  -log p(token t of example i)

N counts tokens, not weights, as in TRL: accumulated batches and several processes have the loss of one batch. The
auxiliary loss of a mixture of experts is added as it is.

`loss_weights` is after CoPeD (arXiv 2509.05602), which weights an example by the combined loss of its rationale and
its answer, in favour of rationales that support their answer. The formula is our choice:

    w = exp(-(l_rationale + l_answer) / (2 * temperature))

with the mean losses of the tokens of both parts under the student as it is, in nats. w has no gradient, and depends on
no other example, so that the division into batches does not change it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlkd.answers import announcement
from rlkd.errors import UsageError
from trainers.common.sharding import launched_size

WEIGHT = "example_weight"
"""The column of weights, with mean 1."""
RATIONALE_TOKENS = "rationale_tokens"
"""The column with the number of a completion's tokens before its answer."""
IGNORED = -100


def check_weighting(
    args: Any,
    temperature: float | None,
    shuffle: bool = False,
    *,
    column: bool = True,
    compute_loss_func: Any = None,
) -> None:
    """Raise `UsageError` for settings of `SFTConfig` without a loss per example, and for a bad temperature.

    `shuffle`: the weights change places within a batch, which needs weights, and more than one example. `column`:
    whether the examples have a column of weights; without it and a temperature all other settings pass.
    `compute_loss_func`: as for the trainer.
    """
    if not column and temperature is None:
        if shuffle:
            raise UsageError("shuffle_weights: there are no weights. Set weight_column or weight_temperature")
        return
    if temperature is not None and not temperature > 0:
        raise UsageError(f"weight_temperature={temperature:g}: expected a number above 0, or none for no such weights")
    if shuffle and args.per_device_train_batch_size < 2:
        raise UsageError(
            "shuffle_weights: weights change places within a batch, and per_device_train_batch_size is 1. Raise it"
        )
    parallelism = getattr(args, "parallelism_config", None)
    divided = any(getattr(parallelism, f"{name}_enabled", False) or launched_size(name) != 1 for name in ("sp", "cp"))
    for name, value, why in (
        ("packing", args.packing, "puts several examples into a row"),
        ("padding_free", args.padding_free, "puts several examples into a row"),
        ("loss_type", args.loss_type if args.loss_type != "nll" else None, "has weights of its own for tokens"),
        ("label_smoothing_factor", args.label_smoothing_factor, "makes TRL compute another loss"),
        ("parallelism_config", divided, "splits an example over processes"),
        ("compute_loss_func", compute_loss_func, "computes another loss"),
    ):
        if value:
            raise UsageError(
                f"weight_column and weight_temperature give whole examples a weight, and {name}: {value} {why}. Leave "
                f"one of the two out"
            )


def check_weighted_loss(loss_of: Callable[[Any], Tensor], device: Any = "cpu") -> None:
    """Raise `UsageError` where a loss does not follow the weights of examples.

    `loss_of` computes the loss of a batch of two examples, by the model that it is given. This one answers with
    log-probabilities that are known, so that no weights of a real model are read: milliseconds.
    """
    log_probs = torch.tensor([[-1.0, -2.0, 0.0], [-4.0, 0.0, 0.0]], device=device)
    mask = log_probs != 0

    def known(**inputs: Any) -> Any:
        return SimpleNamespace(
            log_probs=log_probs, label_mask=mask, entropy=-log_probs, is_top1=mask, aux_loss=log_probs.new_zeros(())
        )

    for weights in (None, [1.0, 1.0], [0.5, 1.5]):
        rows = log_probs.new_tensor(weights or [1.0, 1.0])
        model = known if weights is None else WeightedModel(known, lambda *_, rows=rows: rows)
        expected = float(-(log_probs * rows[:, None]).sum() / mask.sum())
        found = float(loss_of(model))
        if not abs(found - expected) < 1e-5:
            import trl

            raise UsageError(
                f"weight_column and weight_temperature: the loss of TRL {trl.__version__} is {found:g} for two "
                f"examples {f'with weights {weights}' if weights else 'without weights'}, and not {expected:g}. Leave "
                f"the weights out, or install a TRL that rlkd is tested with"
            )


class WeightCollator:
    """A collator whose batches keep the columns of weights, as tensors (examples,)."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        batch = dict(self.collate(examples))
        for name, dtype in ((WEIGHT, torch.float32), (RATIONALE_TOKENS, torch.long)):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples], dtype=dtype)
        return batch


class WeightedModel:
    """A model whose log-probabilities of tokens are multiplied by the weights of their examples.

    TRL sums them up to its loss. `weights`: from log-probabilities and mask, both (examples, tokens), to (examples,).
    """

    def __init__(self, model: Any, weights: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model, self.weights = model, weights

    def __call__(self, **inputs: Any) -> Any:
        """The output of the model."""
        output = self.model(**inputs)
        if inputs.get("fused_lm_head"):
            weights = self.weights(output.log_probs.detach(), output.label_mask)
            output.log_probs = output.log_probs * weights.to(output.log_probs)[:, None]
        return output


def loss_weights(log_probs: Tensor, mask: Tensor, rationale_tokens: Tensor, temperature: float) -> Tensor:
    """The module's formula: weights (examples,), each in (0, 1].

    `log_probs` and `mask` (which tokens count) are (examples, tokens); the first `rationale_tokens` (examples,) of the
    tokens that count are the rationale, the others the answer. An example with only one of the parts has its loss.
    """
    in_rationale = mask.cumsum(dim=-1) <= rationale_tokens[:, None]
    parts = torch.stack([mask & in_rationale, mask & ~in_rationale])  # (2, examples, tokens)
    sizes = parts.sum(dim=-1)
    means = (-log_probs * parts).sum(dim=-1) / sizes.clamp(min=1)  # (2, examples)
    combined = means.sum(dim=0) / (sizes > 0).sum(dim=0).clamp(min=1)
    return (-combined / temperature).exp()


def rationale_tokens(tokenizer: Any, labels: Sequence[int]) -> int:
    """The number of a completion's tokens before its answer: the last line that announces one, and what follows it.

    `labels`: of an example, `IGNORED` outside the completion. All tokens where no answer is announced.
    """
    ids = [label for label in labels[1:] if label != IGNORED]  # nothing predicts the first token of an example

    def text(start: int) -> str:
        return str(tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    lines = text(0).split("\n")
    last = next((index for index in reversed(range(len(lines))) if announcement(lines[index]) is not None), None)
    if last is None:
        return len(ids)
    answer = "\n".join(lines[last:]).strip()
    # The first token without which the rest is not the whole answer.
    return bisect_left(range(len(ids)), True, key=lambda start: answer not in text(start + 1))
