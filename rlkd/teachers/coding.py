"""The compact coding of top-k log-probabilities in a teacher cache.

Our choice, by measurement (`docs/teacher_cache.md`). A log-probability takes 16 bits, linear between the lowest and
the highest of its position. Both bounds are then shifted so that the k probabilities keep their sum, since a small
tail matters much in a reverse KL. The error is at most (highest - lowest) / 65,535: below 1e-3, in practice 2e-4. The
token in the trace is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlkd.teachers.topk import TopK

LARGEST_RANGE = 64.0
"""Log-probabilities further than this below the likeliest of their position are clipped: e**-64 is no mass."""

_LEVELS = 65535


@dataclass(frozen=True)
class CodedTopK:
    """`TopK` of n tokens as a shard stores it.

    `low_ids` [n, k] uint16 and `high_ids` [n, ...] uint8, packed; `codes` [n, k] uint16, 0 for the highest; `highest`,
    `lowest`, `taken` [n] float32.
    """

    low_ids: np.ndarray
    high_ids: np.ndarray
    codes: np.ndarray
    highest: np.ndarray
    lowest: np.ndarray
    taken: np.ndarray


def encode(top: TopK, id_bits: int) -> CodedTopK:
    """Code a teacher's output; `id_bits` is the number of bits of the largest possible id, at least 16.

    Raises `ValueError` for an id that needs more, and for log-probabilities that are not finite or above 0.
    """
    ids, logprobs = top.ids.numpy(), top.logprobs.numpy().astype(np.float64)
    if ids.size and not (ids.min() >= 0 and int(ids.max()) < 2**id_bits):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}: expected 0 to {2**id_bits - 1} ({id_bits} bits)")
    if not (np.isfinite(logprobs).all() and (logprobs <= 1e-6).all() and np.isfinite(top.taken.numpy()).all()):
        raise ValueError("a log-probability is not finite or above 0")
    n, k = ids.shape
    planes = (ids[:, :, None] >> np.arange(16, id_bits)) & 1
    high_ids = np.packbits(planes.astype(np.uint8).reshape(n, k * (id_bits - 16)), axis=1)

    highest = logprobs.max(1, keepdims=True, initial=-np.inf)
    logprobs = np.maximum(logprobs, highest - LARGEST_RANGE)
    lowest = logprobs.min(1, keepdims=True, initial=np.inf)
    spread = np.where(highest > lowest, highest - lowest, 1.0)
    codes = np.rint((highest - logprobs) / spread * _LEVELS).astype(np.uint16)
    decoded = _decoded(codes, highest[:, 0].astype(np.float32), lowest[:, 0].astype(np.float32)).astype(np.float64)
    shift = np.log(np.exp(logprobs).sum(1) / np.exp(decoded).sum(1))
    return CodedTopK(
        low_ids=(ids & 0xFFFF).astype(np.uint16),
        high_ids=high_ids,
        codes=codes,
        highest=np.minimum(highest[:, 0] + shift, 0).astype(np.float32),
        lowest=np.minimum(lowest[:, 0] + shift, 0).astype(np.float32),
        taken=top.taken.numpy().astype(np.float32),
    )


def decode(coded: CodedTopK, id_bits: int) -> TopK:
    """The inverse of `encode`, up to the error of the coding."""
    import torch

    n, k = coded.low_ids.shape
    ids = coded.low_ids.astype(np.int32)
    extra = id_bits - 16
    if extra:
        planes = np.unpackbits(coded.high_ids, axis=1, count=k * extra).reshape(n, k, extra)
        for plane in range(extra):
            ids |= planes[:, :, plane].astype(np.int32) << (16 + plane)
    logprobs = _decoded(coded.codes, coded.highest, coded.lowest)
    return TopK(torch.from_numpy(ids), torch.from_numpy(logprobs), torch.from_numpy(np.array(coded.taken)))


def quantised(top: TopK) -> TopK:
    """The `TopK` that a cache returns for this one, to compare a live teacher with its cache bit for bit."""
    id_bits = max(16, int(top.ids.max()).bit_length()) if top.ids.numel() else 16
    return decode(encode(top, id_bits), id_bits)


def _decoded(codes: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """In float32, one operation after the other: the same bits on every machine."""
    step = (highest - lowest) / np.float32(_LEVELS)
    return highest[:, None] - codes.astype(np.float32) * step[:, None]


def bytes_per_token(k: int, id_bits: int) -> int:
    """Bytes of a shard per token of a trace, apart from about 32 per trace."""
    return k * (2 + 2) + math.ceil(k * (id_bits - 16) / 8) + 3 * 4
