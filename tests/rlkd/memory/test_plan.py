from rlkd.memory import MemoryPhase, MemoryPlan

GIB = 2**30
PLAN = MemoryPlan(
    "cpu",
    "float32, all weights",
    (
        MemoryPhase("generating", {"weights": 4 * GIB, "KV cache": 3 * GIB, "logits": 0}),
        MemoryPhase("backward", {"weights": 4 * GIB, "activations": 5 * GIB, "logits": 0}),
    ),
    ("an estimate",),
)


def test_a_run_needs_its_largest_phase_and_not_the_sum():
    assert PLAN.peak.name == "backward"
    assert PLAN.peak.total == 9 * GIB
    assert sum(PLAN.roles.values()) == 12 * GIB


def test_a_role_is_shown_with_the_most_that_it_takes():
    assert PLAN.roles == {"weights": 4 * GIB, "KV cache": 3 * GIB, "logits": 0, "activations": 5 * GIB}


def test_the_table_has_a_row_per_role_that_takes_memory_and_a_column_per_phase():
    head, phases, *rows, note = PLAN.table().splitlines()
    assert head == "Memory, estimated, cpu, float32, all weights: 9,216 MiB (backward)"
    assert phases.split() == ["generating", "backward"]
    assert [row.split() for row in rows] == [
        ["weights", "4,096", "4,096"],
        ["KV", "cache", "3,072", "-"],
        ["activations", "-", "5,120"],
        ["total", "7,168", "9,216"],
    ]
    assert note == "note: an estimate"


def test_a_large_run_is_shown_in_gib():
    plan = MemoryPlan("cuda", "bfloat16, LoRA r=16", (MemoryPhase("loss", {"weights": 61 * GIB // 2}),))
    assert plan.table().splitlines()[0].endswith("30.5 GiB (loss)")
