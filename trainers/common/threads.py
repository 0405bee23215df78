"""The number of CPU threads of a run, where a launcher has set it to 1 without being asked.

`accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 in the processes that they start, unless the user has set it.
That suits a machine whose GPUs compute. A run on the CPU would use a single core.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rlkd.process import cores


def set_cpu_threads() -> int | None:
    """Give torch this process's share of the cores, if a launcher has left it one; returns the number, if changed.

    Processes that this one starts keep OMP_NUM_THREADS=1. For a run on the CPU.
    """
    if not _limited_by_launcher():
        return None
    threads = cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1))
    if threads <= 1:
        return None
    import torch

    torch.set_num_threads(threads)
    return threads


def _limited_by_launcher() -> bool:
    """Whether OMP_NUM_THREADS is 1, but neither in the launcher's own environment nor on its command line.

    False where that cannot be read (outside Linux).
    """
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    launcher = _launcher()
    return launcher is not None and "OMP_NUM_THREADS" not in launcher[0] and "num_cpu_threads" not in launcher[1]


def _launcher() -> tuple[Mapping[str, str], str] | None:
    """Environment and command line of the parent process, if it is a launcher."""
    folder = Path("/proc") / str(os.getppid())
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        listed = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not any(name in command for name in ("accelerate", "torchrun", "torch.distributed")):
        return None
    return dict(entry.split("=", 1) for entry in listed if "=" in entry), command
