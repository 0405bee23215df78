"""Bytes of an optimizer's state, by the name that `optim` has in a config."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from rlkd.errors import UsageError
from rlkd.registry import suggestion

# State tensors of the size of a parameter, in its dtype: Adam has two moments, Lion, Adagrad and RMSprop one.
_STATES = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_bnb_8bit": None,
    "adamw_8bit": None,
    "paged_adamw_8bit": None,
    "adafactor": None,
    "lion_32bit": 1,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
}
# bitsandbytes keeps both moments in a byte each, and a float32 scale for each block of 256; tensors of fewer than
# 4,096 numbers stay in float32.
_BLOCK, _SMALL = 256, 4096


def optimizer_bytes(optim: str, parameters: Iterable[tuple[tuple[int, ...], int]]) -> int:
    """Bytes of the state for trained parameters, each given as (shape, bytes per number).

    The step counters, a number per parameter, are left out. Raises `UsageError` for an optimizer that is not known
    here.
    """
    if optim not in _STATES:
        raise UsageError(
            f"optim {optim!r}: the size of its state is not known, so there is no estimate of memory."
            f"{suggestion(optim, _STATES)}"
        )
    return sum(_state_bytes(optim, shape, size) for shape, size in parameters)


def _state_bytes(optim: str, shape: tuple[int, ...], size: int) -> int:
    count = prod(shape)
    states = _STATES[optim]
    if states is not None:
        return states * count * size
    if optim == "adafactor":  # a row and a column of float32 in place of a matrix (arXiv 1804.04235)
        return 4 * (count if len(shape) < 2 else prod(shape[:-1]) + prod(shape[:-2]) * shape[-1])
    if count < _SMALL:
        return 2 * 4 * count
    return 2 * (count + 4 * (count // _BLOCK))
