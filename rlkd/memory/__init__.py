"""The memory of a run before it starts, from configurations alone: bytes per role, per phase, and the peak.

`rlkd.memory.models` has a model without weights, `rlkd.memory.passes` the memory of its passes, `rlkd.memory.plan` the
result. The estimates of a trainer's run are `trainers.rlkd.memory.memory_plan` and
`trainers.validity_kd.memory.memory_plan`.
"""

from rlkd.memory.plan import MemoryPhase, MemoryPlan

__all__ = ["MemoryPhase", "MemoryPlan"]
