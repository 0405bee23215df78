"""The contract of top-k teachers: the k likeliest tokens at each position, at temperature 1.

The k probabilities do not sum to 1: the rest is the tail's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlkd.errors import UsageError

if TYPE_CHECKING:
    import torch

LOWEST = -9999.0
"""The log-probability that stands for minus infinity, as in vLLM's replies, since JSON has no infinity."""


@dataclass(frozen=True)
class TopK:
    """A teacher's likeliest tokens at n successive positions of one sequence, at temperature 1; tensors on the CPU.

    `ids` [n, k] int32: the likeliest tokens, in order. `logprobs` [n, k] float32: their natural log-probabilities over
    the whole vocabulary. `taken` [n] float32: that of the token in the sequence. Raises `ValueError` where the shapes
    do not match.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    taken: torch.Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.logprobs.shape or self.taken.shape != self.ids.shape[:1]:
            raise ValueError(
                f"ids {tuple(self.ids.shape)}, logprobs {tuple(self.logprobs.shape)}, taken "
                f"{tuple(self.taken.shape)}: expected [n, k], [n, k] and [n]"
            )

    def __len__(self) -> int:
        return len(self.taken)


class TopKTeacher(Protocol):
    """A frozen teacher, known by its k likeliest tokens."""

    @property
    def name(self) -> str:
        """The identity of its weights, as far as it is known; no secrets."""

    @property
    def k(self) -> int:
        """Number of known tokens per position."""

    @property
    def vocabulary(self) -> str:
        """The `vocabulary_fingerprint` of the tokenizer whose ids it takes."""

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """The likeliest tokens at the positions `start` to the last of each sequence of token ids.

        Row j is position `start + j`, given the tokens before it; `start` is at least 1. Raises the teacher's errors
        (`EngineError` of an engine, `CacheError` of a cache): there is no distillation without a teacher.
        """


def check_temperature(temperature: float) -> None:
    """Raise `UsageError` for a temperature other than 1: k log-probabilities cannot be converted."""
    if temperature != 1:
        raise UsageError(
            f"temperature {temperature:g} with a top-k teacher: it gives k log-probabilities per position at "
            f"temperature 1, and those at another temperature depend on all tokens. Set temperature to 1, or use a "
            f"teacher whose weights are in this process"
        )


def check_k(k: int) -> None:
    """Raise `UsageError` for a k that is not a positive whole number."""
    if not isinstance(k, int) or k < 1:
        raise UsageError(f"k={k!r}: expected a whole number of at least 1")


def checked_sequences(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
    """The sequences as lists of Python numbers. Raises `ValueError` naming the one that does not fit its start."""
    if len(sequences) != len(starts):
        raise ValueError(f"{len(sequences)} sequences and {len(starts)} starts: expected one start each")
    checked = [[int(token) for token in sequence] for sequence in sequences]
    for index, (sequence, start) in enumerate(zip(checked, starts, strict=True)):
        if not 1 <= start < len(sequence):
            raise ValueError(
                f"sequence {index} has {len(sequence)} tokens and start {start}: expected at least 1, since the first "
                f"token has no log-probability, and less than its length"
            )
    return checked
