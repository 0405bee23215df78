"""Attention in plain torch for TRL's AsyncGRPOTrainer without CUDA, and a template by which rewards read whole texts.

TRL's attention over packed completions is a GPU kernel; its templates remove the text in <think> from completions, or
fail. Checked on TRL 1.16.0 (`trainers.common.trl_compat`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError

if TYPE_CHECKING:
    import torch


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    tree_kv_index: torch.Tensor,
    tree_cu_seqlens_q: torch.Tensor,
    tree_cu_seqlens_k: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in a row of completions that share their beginnings, in plain torch.

    A segment is a run of tokens without a fork; it attends to its path, the segments from the root of its completion
    to itself, whose last tokens are its own. Takes the arguments of TRL's kernel:

    Args:
        query: (1, heads, tokens, width).
        key, value: (1, heads or a divisor of them, tokens, width).
        tree_kv_index: the tokens of all paths, one after the other.
        tree_cu_seqlens_q: (segments + 1) starts of the segments in the row.
        tree_cu_seqlens_k: (segments + 1) starts of their paths in `tree_kv_index`.
        scaling: factor of the scores, by default 1 / sqrt(width).
        sliding_window: tokens that a token attends to, itself included; None for all.
        softcap: refused; no model that runs here uses it.

    Returns the output, (1, tokens, heads, width), and None for the attention weights.
    """
    import torch

    if softcap:
        raise UsageError(
            f"the model caps its attention scores (softcap {softcap}), which rlkd's asynchronous training does not "
            f"support without a GPU. Train on a GPU, or use another model"
        )
    queries, paths = tree_cu_seqlens_q.tolist(), tree_cu_seqlens_k.tolist()
    parts = []
    for segment in range(len(queries) - 1):
        tokens = slice(queries[segment], queries[segment + 1])
        seen = tree_kv_index[paths[segment] : paths[segment + 1]]
        own = torch.arange(len(seen) - (tokens.stop - tokens.start), len(seen))[:, None]
        others = torch.arange(len(seen))[None, :]
        mask = others <= own
        if sliding_window:
            mask &= others > own - sliding_window
        part = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, tokens],
            key[:, :, seen],
            value[:, :, seen],
            attn_mask=mask.to(query.device),
            scale=scaling,
            enable_gqa=True,
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def whole_text(ends: Sequence[str]) -> dict[str, Any]:
    """A tokenizer's `response_template` by which a completion is one message that holds its whole text.

    So rewards read the same text as in `RLKDTrainer`: all of it, with <think>, up to the end of the turn. `ends`: the
    tokens with which the model ends its turn.
    """
    return {
        "defaults": {"role": "assistant"},
        # All of the prompt is before the message, even if the prompt begins it, as with <think>.
        "start_anchor_pattern": r"\A.*\Z",
        "fields": {
            "content": {"close": list(dict.fromkeys(ends)), "content": "text", "content_args": {"strip": False}}
        },
    }
