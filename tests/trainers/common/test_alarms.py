"""A run that trains nothing says so, once."""

import json
from types import SimpleNamespace

import pytest

from trainers.common.alarms import (
    ALL_MASKED,
    ALL_TRUNCATED,
    EQUAL_WEIGHTS,
    FEW_ALIGNED,
    Alarms,
    all_masked,
    all_truncated,
    few_are_aligned,
    weights_are_equal,
)

MASKS = SimpleNamespace(mask_truncated_completions=True)
SCORES = SimpleNamespace(needs_scorer=True)
CUT = {"loss": 0.0, "completions/clipped_ratio": 1.0}
ONE_WEIGHT = {"loss": 0.5, "kd_weight/q10": 1.0, "kd_weight/q90": 1.0 + 1e-9, "kd/steps_per_trace": 3.0}


def warnings_of(caplog, alarm, message, args, steps) -> int:
    watch = Alarms({message: alarm})
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    for state.global_step, logs in enumerate(steps, 1):
        watch.on_log(args, state, None, logs=logs)
    return sum(message in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("at", range(4))
def test_a_resumed_run_does_not_say_it_again_and_continues_to_count(caplog, at) -> None:
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    watches = [Alarms({ALL_MASKED: all_masked}) for _ in range(2)]
    for state.global_step in range(1, 5):
        if state.global_step == at + 1:
            watches[1].load_state_dict(json.loads(json.dumps(watches[0].state_dict())))
        watches[state.global_step > at].on_log(MASKS, state, None, logs=CUT)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["step 2"]


@pytest.mark.parametrize(
    ("alarm", "message", "args", "step"),
    [
        (all_masked, ALL_MASKED, MASKS, CUT),
        (all_truncated, ALL_TRUNCATED, None, CUT),
        (weights_are_equal, EQUAL_WEIGHTS, SCORES, ONE_WEIGHT),
        (few_are_aligned, FEW_ALIGNED, None, {"loss": 0.1, "teacher/aligned": 0.49}),
    ],
)
def test_it_is_said_once_at_the_second_step_in_a_row(caplog, alarm, message, args, step) -> None:
    evaluation = {"eval_loss": 0.1}
    assert warnings_of(caplog, alarm, message, args, [step]) == 0
    assert warnings_of(caplog, alarm, message, args, [step, {"loss": 1.0}, step]) == 0
    assert (
        warnings_of(caplog, alarm, message, args, [step, evaluation, step, step, step, {"loss": 1.0}, step, step]) == 1
    )


@pytest.mark.parametrize(
    ("alarm", "args", "step"),
    [
        (all_masked, SimpleNamespace(mask_truncated_completions=False), CUT),
        (all_masked, SimpleNamespace(), CUT),
        (all_masked, MASKS, CUT | {"completions/clipped_ratio": 0.99}),
        (all_masked, MASKS, {"loss": 0.0}),
        (all_truncated, MASKS, CUT),
        (all_truncated, None, CUT | {"completions/clipped_ratio": 0.99}),
        (all_truncated, None, {"loss": 0.0, "traces/clipped_ratio": 1.0}),
        (weights_are_equal, SimpleNamespace(needs_scorer=False), ONE_WEIGHT),
        (weights_are_equal, SCORES, ONE_WEIGHT | {"kd_weight/q90": 1.1}),
        (weights_are_equal, SCORES, ONE_WEIGHT | {"kd/steps_per_trace": 1.0}),
        (weights_are_equal, SCORES, {"loss": 0.5, "kd_weight/mean": 1.0}),
        (few_are_aligned, None, {"loss": 0.5, "teacher/aligned": 0.5}),
        (few_are_aligned, None, {"loss": 0.5}),
    ],
)
def test_what_trains_is_no_alarm(alarm, args, step) -> None:
    assert not alarm(step, args)
