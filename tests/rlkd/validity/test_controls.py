import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.validity import (
    CONTROLS,
    AdaptiveTau,
    StepEvidence,
    StepWeighting,
    WeightMap,
    joined,
)
from rlkd.validity.controls import PositionProfile, shuffled, teacher_only

EVIDENCE = StepEvidence(
    positions=[0.0, 0.5, 1.0, 0.0, 1.0],
    teacher=[-0.2, -0.4, -3.0, None, -0.1],
    student=[-0.9, -0.3, -1.0, -0.5, -2.0],
    teacher_entropy=[0.2, 0.4, 3.0, 0.3, 0.1],
    student_entropy=[0.8, 0.2, 1.0, 0.3, 0.9],
    kl=[0.1, 0.0, 0.5, 2.0, 1.5],
)
LOG = WeightMap(scale="log")

weight_lists = st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=30)


def weights_of(control, evidence=EVIDENCE, step=0, **settings):
    return StepWeighting(LOG, control=control, **settings)(evidence, step)


@given(weight_lists, st.integers(0, 5), st.integers(0, 5))
def test_shuffling_keeps_the_weights_of_valid_steps_and_touches_no_other(cases, seed, step):
    weights, valid = [w for w, _ in cases], [v for _, v in cases]
    dealt = shuffled(weights, valid, seed=seed, step=step)
    assert sorted(w for w, v in zip(dealt, valid, strict=True) if v) == sorted(w for w, v in cases if v)
    assert all(a == b for a, b, v in zip(dealt, weights, valid, strict=True) if not v)
    assert dealt == shuffled(weights, valid, seed=seed, step=step)


def test_shuffling_differs_from_step_to_step_and_from_seed_to_seed():
    weights, valid = [float(i) for i in range(50)], [True] * 50
    dealt = {tuple(shuffled(weights, valid, seed=seed, step=step)) for seed in range(3) for step in range(3)}
    assert len(dealt | {tuple(weights)}) == 10


def test_teacher_only_does_not_see_the_student_and_favours_valid_teacher_steps():
    weighting = StepWeighting(LOG, control="teacher_only")
    assert weighting.needs == {"teacher"}
    found = weighting(StepEvidence(positions=[0.0] * 3, teacher=[-0.1, -0.5, -0.9]), 0)
    assert found.weights == sorted(found.weights, reverse=True)
    assert found.weights[1] == 1.0


def test_teacher_only_passes_over_failed_steps():
    assert teacher_only([None, -1.0, -3.0]) == ([None, -1.0, -3.0], [None, -2.0, -2.0])
    assert teacher_only([None]) == ([None], [None])


def test_entropy_and_divergence_call_no_scorer():
    for control in ("entropy", "divergence"):
        assert not StepWeighting(WeightMap(), control=control).needs & {"teacher", "student"}
        bare = StepEvidence(
            EVIDENCE.positions,
            teacher_entropy=EVIDENCE.teacher_entropy,
            student_entropy=EVIDENCE.student_entropy,
            kl=EVIDENCE.kl,
        )
        assert weights_of(control, bare) == weights_of(control)


def test_the_margins_of_entropy_and_divergence_are_the_entropy_gap_and_the_divergence():
    assert weights_of("entropy").margins == pytest.approx([0.6, -0.2, -2.0, 0.0, 0.8])
    assert weights_of("divergence").margins == pytest.approx(EVIDENCE.kl)


def test_entropy_uses_nats_whatever_the_scale_of_the_map():
    probability = StepWeighting(WeightMap(scale="probability"), control="entropy")(EVIDENCE, 0)
    assert probability == weights_of("entropy")


def test_divergence_differs_from_the_expected_margin_by_the_entropies_alone():
    entropy_gap = weights_of("entropy").margins
    expected = [kl + gap for kl, gap in zip(EVIDENCE.kl, entropy_gap, strict=True)]
    teacher = [-h for h in EVIDENCE.teacher_entropy]
    method = weights_of(
        None, StepEvidence(EVIDENCE.positions, teacher, [t - m for t, m in zip(teacher, expected, strict=True)])
    )
    gaps = [m - d for m, d in zip(method.margins, weights_of("divergence").margins, strict=True)]
    assert gaps == pytest.approx(entropy_gap)


def test_uniform_is_plain_distillation_and_needs_nothing():
    weighting = StepWeighting(LOG, control="uniform", adaptive=AdaptiveTau())
    assert weighting.needs == frozenset()
    assert weighting(StepEvidence(positions=[0.0, 1.0]), 3).weights == [1.0, 1.0]


def test_position_gives_the_mean_weight_of_the_place():
    profile = PositionProfile(bins=2)
    assert profile([1.0, 2.0, 0.0], [0.0, 1.0, 0.4], [True, True, True]) == [0.5, 2.0, 0.5]
    assert profile([0.5, 9.0], [0.1, 0.9], [True, False]) == [0.5, 9.0]


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=40))
def test_position_keeps_the_mean_weight_of_a_batch(cases):
    weights, places = [w for w, _ in cases], [p for _, p in cases]
    found = PositionProfile()(weights, places, [True] * len(cases))
    assert sum(found) == pytest.approx(sum(weights), abs=1e-9)


def test_a_step_that_failed_has_weight_1_under_every_arm_that_calls_a_scorer_and_is_counted():
    for control in (None, "shuffled", "teacher_only", "position"):
        found = weights_of(control)
        assert found.weights[3] == 1.0
        assert found.margins[3] is None
        assert found.failed == 1


def test_steps_whose_teacher_is_below_the_floor_are_counted():
    found = weights_of(None)
    assert found.floored == 1
    assert found.weights[2] < 0.2


def test_the_weighting_gives_what_the_map_gives():
    assert weights_of(None).weights == LOG(EVIDENCE.teacher, EVIDENCE.student)


def test_shuffled_and_position_have_the_methods_weights_in_other_places():
    method = weights_of(None)
    assert sorted(weights_of("shuffled").weights) == sorted(method.weights)
    assert sum(weights_of("position").weights) == pytest.approx(sum(method.weights))
    assert weights_of("shuffled", step=1).weights != method.weights


@pytest.mark.parametrize("control", [None, *CONTROLS])
def test_a_resumed_weighting_continues_as_the_uninterrupted_one(control):
    through, resumed = (StepWeighting(LOG, control=control, adaptive=AdaptiveTau(), seed=4) for _ in range(2))
    through(EVIDENCE, 0)
    resumed.load_state_dict(json.loads(json.dumps(through.state_dict())))
    assert through(EVIDENCE, 1) == resumed(EVIDENCE, 1)


def test_rollouts_and_traces_have_a_tau_each():
    mixed, rollouts, traces = (StepWeighting(LOG, adaptive=AdaptiveTau()) for _ in range(3))
    large = replace(EVIDENCE, teacher=[value and 100 * value for value in EVIDENCE.teacher], on_policy=False)
    for step in range(3):
        assert mixed(EVIDENCE, step) == rollouts(EVIDENCE, step)
        assert mixed(large, step) == traces(large, step)
    assert mixed.adaptive_off_policy.value > 10 * mixed.adaptive.value
    resumed = StepWeighting(LOG, adaptive=AdaptiveTau())
    resumed.load_state_dict(json.loads(json.dumps(mixed.state_dict())))
    assert resumed(large, 3) == mixed(large, 3)
    assert resumed(EVIDENCE, 3) == mixed(EVIDENCE, 3)


@pytest.mark.parametrize("cut", range(6))
def test_evidence_of_several_processes_joins_to_that_of_one(cut):
    names = ("positions", "teacher", "student", "teacher_entropy", "student_entropy", "kl")
    halves = [
        StepEvidence(**{name: getattr(EVIDENCE, name)[part] for name in names}, teacher_is_expected=True)
        for part in (slice(cut), slice(cut, None))
    ]
    whole = joined(halves)
    assert whole.teacher_is_expected
    assert all(list(getattr(whole, name)) == list(getattr(EVIDENCE, name)) for name in names)
    bare = joined([StepEvidence([0.0], kl=[1.0]), StepEvidence([], kl=[])])
    assert bare == StepEvidence([0.0], kl=[1.0])
    with pytest.raises(ValueError, match="no parts"):
        joined([])


def test_an_uncertain_teacher_is_no_invalid_one_where_its_validity_is_an_expectation():
    # The teacher as uncertain as e**-3, the student as good as it expects: a tie.
    tie = StepEvidence([0.0], [-3.0], [-3.0], [3.0], [3.0], [0.0])
    assert weights_of(None, tie).weights == [pytest.approx(math.exp(-3) / 0.2)]
    expected = replace(tie, teacher_is_expected=True)
    for control in (None, "shuffled", "teacher_only", "position"):
        found = weights_of(control, expected)
        assert (found.weights, found.floored) == ([1.0], 0), control
    for control in ("entropy", "divergence"):
        found = weights_of(control, tie)
        assert (found.weights, found.floored) == ([1.0], 0), control


VALID = StepEvidence(positions=[0.0, 0.25, 0.5, 0.75, 1.0], teacher=[1, 1, 0.5, 0.1, None], student=[0, 0.1, 1, 1, 0])


@pytest.mark.parametrize("control", [None, "shuffled"])
def test_a_signal_that_raises_a_step_has_less_weight_where_the_students_own_step_is_invalid(control):
    found = StepWeighting(WeightMap(v_0=0.2), control=control)(VALID, 0)
    factors = [0, 0.5, 1, 1, 1]
    if control == "shuffled":  # the factors change places together with the weights
        factors = shuffled(factors, [True] * 4 + [False], seed=0, step=0)
    assert found.raising == pytest.approx([w * f for w, f in zip(found.weights, factors, strict=True)])


@pytest.mark.parametrize("control", ["uniform", "teacher_only", "entropy", "divergence"])
def test_controls_that_see_no_validity_of_the_student_have_one_weight_for_both_signs(control):
    found = weights_of(control)
    assert found.raising == found.weights
    if control == "teacher_only":
        found = StepWeighting(WeightMap(v_0=0.2), control=control)(replace(VALID, student=None), 0)
        assert found.raising == found.weights


def test_position_has_the_methods_mean_weights_for_both_signs_and_resumes_with_them():
    method = StepWeighting(WeightMap(v_0=0.2))(VALID, 0)
    weighting = StepWeighting(WeightMap(v_0=0.2), control="position")
    found = weighting(VALID, 0)
    assert (sum(found.weights), sum(found.raising)) == pytest.approx((sum(method.weights), sum(method.raising)))
    assert found.raising != found.weights
    resumed = StepWeighting(WeightMap(v_0=0.2), control="position")
    resumed.load_state_dict(json.loads(json.dumps(weighting.state_dict())))
    assert resumed(VALID, 1) == weighting(VALID, 1)


def test_an_expected_validity_takes_nothing_from_a_signal_that_raises():
    found = StepWeighting(LOG)(replace(EVIDENCE, teacher_is_expected=True), 0)
    assert found.raising == found.weights


def test_missing_evidence_is_named():
    with pytest.raises(ValueError, match="'divergence' needs kl of all 1 steps; found none"):
        weights_of("divergence", StepEvidence([0.0], teacher_entropy=[1.0]))
    with pytest.raises(ValueError, match="'none' needs student of all 2 steps; found 1"):
        weights_of(None, StepEvidence([0.0, 1.0], [-1.0, -1.0], [-1.0]))


def test_an_unknown_control_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"control='random': expected 'uniform', 'shuffled'"):
        StepWeighting(LOG, control="random")
