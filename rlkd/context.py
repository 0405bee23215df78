"""The number of tokens that a model can read and write in one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Kinds of rotary positions whose `max_position_embeddings` already counts the scaling.
_COUNTED = ("default", "llama3", "longrope", "su", "mrope", "proportional")


def context_length(config: Any) -> int | None:
    """The context of a model by its configuration, in tokens; None where its positions are not bounded.

    `max_position_embeddings`, times the factor of scaled rotary positions (linear, dynamic, YaRN), as vLLM counts it.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return max([positions, *(_scaled(positions, rotary) for rotary in _rotary_settings(text))])


def _rotary_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    """One entry of settings, or one for each kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for entry in (given, *given.values()):
        if isinstance(entry, Mapping):
            yield entry


def _scaled(positions: int, rotary: Mapping[str, Any]) -> int:
    kind, factor = rotary.get("rope_type") or rotary.get("type") or "default", rotary.get("factor")
    if kind in _COUNTED or not isinstance(factor, int | float):
        return positions
    return int((rotary.get("original_max_position_embeddings") or positions) * factor)
