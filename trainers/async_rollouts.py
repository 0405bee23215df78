"""What TRL's AsyncGRPOTrainer needs to train where there is no CUDA, and how its completions are read.

Three things, checked on TRL 1.16.0; `check_async_trl` compares what they rest on before anything is loaded:

- the trainer asks for the peak speed of its GPU, to report how well that is used: `on_this_device` answers;
- its attention over packed completions is a GPU kernel (flash-attention 3, from the hub): `packed_attention` computes
  the same in plain torch. It is told of at transformers' own registry, under the name that TRL registers;
- a rollout process splits what the model wrote into messages by a template of the tokenizer. TRL knows one for some
  models, which takes what stands in <think> out of the text that rewards read, and fails for others:
  `whole_text` is another one, for every device.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError

if TYPE_CHECKING:
    import torch

# What the kernel's caller gives to an attention function: TRL computes these for its packed rows.
_PACKED = ["tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k", "tree_max_seqlen_q", "tree_max_seqlen_k"]


def check_async_trl() -> None:
    """Raise `UsageError` if TRL's asynchronous trainer is not the one that this module knows."""
    import trl
    from trl.experimental.async_grpo import async_grpo_trainer, async_rollout_worker, packing, vllm_client

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters) if callable(function) else []

    attention = getattr(packing, "tree_attention", None)
    speed = getattr(async_grpo_trainer, "get_peak_flops_per_device", None)
    loop = getattr(async_rollout_worker, "_AsyncRolloutLoop", object)
    client = getattr(vllm_client, "VLLMClient", object)
    wrong = [
        what
        for what, known in {
            "packed attention": [name for name in parameters(attention) if name.startswith("tree_")] == _PACKED,
            "the question for the GPU's speed": parameters(speed) == ["accelerator", "dtype"],
            "the trainer's start": "get_peak_flops_per_device" in _names(async_grpo_trainer.AsyncGRPOTrainer.__init__),
            "the rollout process": "response_template" in _names(getattr(loop, "__init__", None)),
            "the names of adapters": "load_lora_adapter" in dir(client),
        }.items()
        if not known
    ]
    if wrong:
        raise UsageError(
            f"TRL {trl.__version__}: its asynchronous trainer has changed ({', '.join(wrong)}), and rlkd does not "
            f'know it. Install a TRL that rlkd is tested with:  pip install "trl==1.16.0"'
        )


@contextlib.contextmanager
def on_this_device() -> Iterator[None]:
    """Build an AsyncGRPOTrainer in this context, so that it trains here, too. With CUDA, it changes nothing."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    from transformers import AttentionInterface
    from trl.experimental.async_grpo import async_grpo_trainer
    from trl.experimental.async_grpo.packing import TREE_ATTENTION

    # It looks the GPU up by name, which raises without one. None is its own answer for GPUs that it does not know.
    asked = async_grpo_trainer.get_peak_flops_per_device
    async_grpo_trainer.get_peak_flops_per_device = lambda accelerator, dtype: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = asked
    # Last, as the trainer registers the kernel when it is built. Models look an attention up at every call.
    AttentionInterface.register(TREE_ATTENTION, packed_attention)


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

    A segment is a run of tokens without a fork; it sees its path, the segments from the root of its completion down to
    itself, whose last tokens are its own. Takes what TRL gives to its kernel:

    Args:
        module: the layer; not used.
        query: (1, heads, tokens, width).
        key, value: (1, heads or a divisor of them, tokens, width).
        attention_mask: not used; who sees whom follows from the segments.
        tree_kv_index: the tokens of all paths, one after the other.
        tree_cu_seqlens_q: (segments + 1) where segments begin in the row.
        tree_cu_seqlens_k: (segments + 1) where their paths begin in `tree_kv_index`.
        scaling: of the scores; by default 1 / sqrt(width).
        sliding_window: how many tokens a token sees, itself included; None for all.
        softcap: refused; no model that runs here uses it.

    Returns the output, (1, tokens, heads, width), and None for the attention weights.
    """
    import torch

    if softcap:
        raise UsageError(
            f"the model caps its attention scores (softcap {softcap}), which rlkd's asynchronous training does not "
            f"do without a GPU. Train on a GPU, or take another model"
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

    So rewards read what they read in `RLKDTrainer`: all of it, with <think>, up to the end of the turn. `ends`: the
    tokens at which the model ends its turn.
    """
    return {
        "defaults": {"role": "assistant"},
        # All of the prompt is before the message, also where the prompt begins it, as with <think>.
        "start_anchor_pattern": r"\A.*\Z",
        "fields": {
            "content": {"close": list(dict.fromkeys(ends)), "content": "text", "content_args": {"strip": False}}
        },
    }


def _names(function: Any) -> set[str]:
    code = getattr(function, "__code__", None)
    return {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))} if code else set()
