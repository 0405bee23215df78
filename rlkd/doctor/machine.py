"""Cores and memory, with the limits of a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from rlkd.doctor.findings import GIB, Finding, size
from rlkd.process import cores

CGROUP = Path("/sys/fs/cgroup")
# Memory of the default recipe, and of the one on SmolLM2-135M-Instruct.
SMALL, SMOLLM2 = 1.5 * GIB, 4 * GIB


def check_machine(cgroup: Path = CGROUP) -> Iterator[Finding]:
    """The cores and the memory that this process may use."""
    usable, there = cores(), os.cpu_count() or 1
    limited = f" of {there} CPUs (threads of one core, affinity or a container's quota)" if usable < there else ""
    yield Finding("machine", "ok", f"{usable} core{'s' * (usable != 1)}{limited}")
    memory = psutil.virtual_memory()
    limit, used = memory_limit(cgroup)
    total, free, where = memory.total, memory.available, ""
    if limit is not None and limit < total:
        where = f"; the machine has {size(total)}, the container's limit is lower"
        total, free = limit, min(free, limit - used)
    text = f"{size(total)} of memory, {size(free)} of it free{where}"
    if free < SMALL:
        yield Finding(
            "machine", "warning", text, f"The smallest recipe (recipes/rlkd.yaml) takes {size(SMALL)}. End other work."
        )
    elif free < SMOLLM2:
        yield Finding(
            "machine",
            "warning",
            text,
            f"recipes/rlkd.yaml fits; recipes/rlkd_smollm2.yaml takes {size(SMOLLM2)}.",
        )
    else:
        yield Finding("machine", "ok", text)


def memory_limit(folder: Path = CGROUP) -> tuple[int | None, int]:
    """The memory limit of this process's container and the memory that it uses, in bytes; None for no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((folder / limit).read_text()), int((folder / used).read_text())
        except (OSError, ValueError):  # another version of cgroups, or "max": no limit
            continue
    return None, 0
