"""Sampling by vLLM whose probabilities are not the trainer's, which TRL's importance sampling correction punishes.

vLLM reports probabilities after top_p, top_k and the like, TRL computes its own without them, and multiplies the loss
by their ratio: in the modes `sequence_*` by the product over a completion, which is then near 0, and in the modes
`token_*` each token by its own, which top_p 0.95 leaves between 0.95 and 1.
"""

from __future__ import annotations

import logging
from typing import Any

from rlkd.errors import UsageError

logger = logging.getLogger(__name__)

# Settings of sampling that change the probabilities of tokens, with the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "presence_penalty": (None, 0, 0.0),
    "frequency_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None, []),
}
# Below it, a few tokens may hold a small share of the probability, and the ratio of a single token is far below 1.
SMALLEST_TOP_K = 5


def changed_sampling(args: Any) -> str:
    """The settings of a run that change the probabilities of sampled tokens, as text; empty for none."""
    return ", ".join(f"{name} {value}" for name, value in _changed(args).items())


def check_sampling(args: Any) -> None:
    """Raise `UsageError` where TRL's importance sampling correction would multiply the update away.

    Where it scales each token by itself, a warning names what is scaled.
    """
    if not (args.use_vllm and args.vllm_importance_sampling_correction):
        return
    changed = _changed(args)
    if not changed:
        return
    mode, top_k = args.vllm_importance_sampling_mode, changed.get("top_k")
    few = top_k is not None and top_k < SMALLEST_TOP_K
    if not few and not mode.startswith("sequence"):
        if args.process_index == 0:
            logger.warning(
                "use_vllm with %s: vLLM's probabilities of the tokens include it and the trainer's do not, so "
                "vllm_importance_sampling_mode %s scales the update of each token by their ratio (`ratio` in the line "
                "of a step, which should stay near 1)",
                changed_sampling(args),
                mode,
            )
        return
    ways = [
        f"Raise top_k to {SMALLEST_TOP_K} or more with vllm_importance_sampling_mode: token_truncate"
        if few
        else "Set vllm_importance_sampling_mode: token_truncate, which takes the ratio of each token",
        "leave it out",
        "set vllm_importance_sampling_correction: false",
    ]
    raise UsageError(
        f"use_vllm with {changed_sampling(args)}: vLLM's probabilities of the tokens include it and the trainer's do "
        f"not, so the importance sampling correction (vllm_importance_sampling_mode: {mode}) would multiply the "
        f"update by {'far less than 1' if few else 'nearly 0'}. {', or '.join(ways)}"
    )


def _changed(args: Any) -> dict[str, Any]:
    given = {name: getattr(args, name, None) for name in _NEUTRAL}
    given |= dict(getattr(args, "generation_kwargs", None) or {})
    return {name: value for name, value in given.items() if name in _NEUTRAL and value not in _NEUTRAL[name]}
