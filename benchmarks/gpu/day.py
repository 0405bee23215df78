"""What every part knows: its size, its device, its time limit, and how it measures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class GpuDay:
    """How a part runs: `smoke` at toy size on the CPU; `limit_s` seconds, then it is killed; results are in `out`."""

    smoke: bool
    limit_s: float
    out: Path

    def pick(self, full: T, smoke: T) -> T:
        """The value of this size."""
        return smoke if self.smoke else full

    @property
    def device(self) -> str:
        """Where models and tensors go."""
        return self.pick("cuda", "cpu")


def now() -> float:
    """Seconds, after the GPU has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gb() -> float | None:
    """The most GPU memory that tensors of this process have held, in GB (vLLM's cache counts, too)."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def reset_peak() -> int:
    """Free what nothing holds; `peak_gb` counts from here on. Returns the bytes that tensors hold now (CPU: 0)."""
    import gc

    import torch

    gc.collect()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def describe(error: BaseException) -> str:
    """An error in one line of at most 400 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
