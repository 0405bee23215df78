"""The fast path of GRPO's loss: prompts read once, and rows without gradient left out.

A row whose advantage is exactly 0 has no gradient: in all eight loss types, every term is multiplied by the advantage.
That holds where nothing else adds a gradient or looks at these rows: no KL term (`beta: 0`), no entropy bonus, no
quantile of entropies (`top_entropy_quantile: 1`), no loss of routers. TRL then computes the loss of the other rows,
and `share_of_normaliser` restores what it divides by.

The metrics of the loss (`entropy`, `clip_ratio`) then describe the rows that are trained on, not all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkd.decoding import has_relative_positions, unsupported
from trainers.common.adapters import without_wrapper
from trainers.common.fast_path import say_once, takes_fast_path
from trainers.rlkd.shared_prompts import PackedRows, pack

# Loss types that divide by the number of rows, or by their tokens; the others divide by the tokens of the whole batch.
BY_ROWS, BY_TOKENS = ("grpo", "dr_grpo", "luspo", "sapo"), ("bnpo",)


class FastLoss:
    """Mixin for TRL's GRPOTrainer: log-probabilities and loss take the fast path."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        keep = self._rows_with_gradient(inputs)
        if keep is None:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        count = len(inputs["completion_ids"])
        kept = {name: value[keep] if _has_rows(value, count) else value for name, value in inputs.items()}
        share = share_of_normaliser(self.loss_type, _loss_mask(inputs), keep)  # type: ignore[attr-defined]
        return super()._compute_loss(model, kept) * share  # type: ignore[misc]

    def _rows_with_gradient(self, inputs: dict[str, Any]) -> Tensor | None:
        """The numbers of the rows to train on; None for all."""
        trainer: Any = self
        if not (takes_fast_path(self) and trainer.model.training) or inputs.get("num_images") is not None:
            return None
        others = trainer.beta != 0 or trainer._entropy_bonus_enabled or trainer.aux_loss_enabled
        if others or trainer.top_entropy_quantile < 1:
            return None
        advantages = inputs["advantages"]
        moving = (advantages != 0) if advantages.dim() == 1 else (advantages != 0).any(dim=1)
        # As many on all processes, since TRL gathers metrics of each row; one at least, since all must have a loss.
        count = max(1, int(trainer.accelerator.gather(moving.sum()[None]).max()))
        if count == len(moving):
            return None
        lengths = _loss_mask(inputs).sum(dim=1)
        order = lengths.masked_fill(moving, -1).argsort(stable=True)  # of the others, the shortest
        return order[:count].sort().values

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> Any:
        if compute_aux_loss or any(value is not None for value in fields.values()) or not self._packs():
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **fields,
            )
        trainer: Any = self
        hidden = trainer.accelerator.unwrap_model(trainer.model).config.get_text_config().hidden_size
        found: list[tuple[Tensor, Tensor | None]] = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            packed = pack(input_ids[rows], attention_mask[rows], logits_to_keep, hidden)
            if packed is None:
                logps, entropies, _ = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                    model, input_ids[rows], attention_mask[rows], logits_to_keep, compute_entropy=compute_entropy
                )
            else:
                logps, entropies = self._packed_logps(model, packed, compute_entropy)
            found.append((logps, entropies))
        logps = torch.cat([one for one, _ in found])
        return logps, torch.cat([one for _, one in found if one is not None]) if compute_entropy else None, None

    def _packed_logps(self, model: Any, packed: PackedRows, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies of the completions, (B, C), by the forward pass of TRL.

        Its head predicts each label from the state before it. The hook leaves only the states that predict a token,
        and another one at the end, which predicts nothing: the head is a third of the work of a small model.
        """
        trainer: Any = self
        base = without_wrapper(trainer.accelerator.unwrap_model(model))  # the reference model has a head of its own

        def select(module: Any, args: Any, output: Any) -> Any:
            states = output.last_hidden_state.flatten(0, 1)
            output.last_hidden_state = states[torch.cat([packed.sources, packed.sources[-1:]])][None]
            return output

        hook = base.base_model.register_forward_hook(select)
        try:
            with trainer.accelerator.autocast():
                output = model(
                    input_ids=packed.input_ids,
                    attention_mask=packed.attention_mask(added=base.config._attn_implementation == "eager"),
                    position_ids=packed.position_ids,
                    labels=torch.cat([packed.tokens.new_tensor([-100]), packed.tokens])[None],
                    fused_lm_head=True,
                )
        finally:
            hook.remove()
        return packed.per_row(output.log_probs[0]), packed.per_row(output.entropy[0]) if entropy else None

    def _packs(self) -> bool:
        trainer: Any = self
        if not takes_fast_path(self) or trainer.aux_loss_enabled:
            return False
        base = without_wrapper(trainer.accelerator.unwrap_model(trainer.model))
        reason = unsupported(base)
        attention = base.config._attn_implementation
        if reason is None and not has_relative_positions(base.config):
            reason = "the model's positions are absolute, and TRL counts padding as positions"
        if reason is None and attention not in ("sdpa", "eager"):
            reason = f"attention {attention!r} takes no mask of its own"
        if reason is not None:
            say_once("the pass for log-probabilities", reason)
        return reason is None


def share_of_normaliser(loss_type: str, mask: Tensor, keep: Tensor) -> Tensor | float:
    """The factor that makes the loss of the rows `keep` that of all rows, whose loss tokens `mask` (B, C) has."""
    if loss_type in BY_ROWS:
        return len(keep) / len(mask)
    if loss_type in BY_TOKENS:
        return mask[keep].sum().clamp(min=1.0) / mask.sum().clamp(min=1.0)
    return 1.0


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def _loss_mask(inputs: dict[str, Any]) -> Tensor:
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
