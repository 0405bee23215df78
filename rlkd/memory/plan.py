"""The memory of a run as plain values: bytes per role and phase, the phase that needs most, and a table of them.

    plan = memory_plan(args, "embedded-warm", peft_config, prompt_tokens=120)   # trainers.rlkd.memory
    plan.peak.name, plan.peak.total     # ("backward", 2413000000)
    print(plan.table())

A role is what the bytes are for (student weights, optimizer, KV cache), a phase a part of a training step. The phases
follow one another, so a run needs the largest of their totals and not their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30
# Tables whose largest number is below this are in MiB.
_IN_MIB = 16 * GIB


@dataclass(frozen=True)
class MemoryPhase:
    """A part of a step, and the bytes of each role while it lasts."""

    name: str
    roles: Mapping[str, int]

    @property
    def total(self) -> int:
        """The bytes of all roles."""
        return sum(self.roles.values())


@dataclass(frozen=True)
class MemoryPlan:
    """An estimate of the memory of one process of a run.

    `device`: `cpu` (the resident size of the process) or `cuda` (the memory of its GPU). `setting`: the run in a few
    words. `notes`: what the numbers leave out or suppose.
    """

    device: str
    setting: str
    phases: tuple[MemoryPhase, ...]
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> MemoryPhase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def roles(self) -> dict[str, int]:
        """The largest number of bytes of each role, in the order of the phases; their sum may be above the peak."""
        found: dict[str, int] = {}
        for phase in self.phases:
            for role, size in phase.roles.items():
                found[role] = max(size, found.get(role, 0))
        return found

    def table(self) -> str:
        """The estimate as text: a row per role, a column per phase, the totals, and the notes."""
        unit, name = (MIB, "MiB") if self.peak.total < _IN_MIB else (GIB, "GiB")
        digits = 0 if unit == MIB else 1
        roles = [role for role, size in self.roles.items() if size]
        lines = [["", *(phase.name for phase in self.phases)]]
        lines += [[role, *(_shown(phase.roles.get(role, 0), unit, digits) for phase in self.phases)] for role in roles]
        lines += [["total", *(_shown(phase.total, unit, digits) for phase in self.phases)]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        ]
        head = (
            f"Memory, estimated, {self.device}, {self.setting}: {_shown(self.peak.total, unit, digits)} {name} "
            f"({self.peak.name})"
        )
        return "\n".join([head, *rows, *(f"note: {note}" for note in self.notes)])


def _shown(size: int, unit: int, digits: int) -> str:
    return f"{size / unit:,.{digits}f}" if size else "-"
