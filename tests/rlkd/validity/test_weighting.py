import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.validity import AdaptiveTau, StepWeighting, WeightMap

probabilities = st.floats(0, 1)
logprobs = st.floats(-50, 0)
PROPERTIES = {"probability": probabilities, "log": logprobs}


@st.composite
def maps(draw, scale=None):
    low, high = sorted([draw(st.floats(0, 5)), draw(st.floats(0, 5))])
    return WeightMap(
        w_min=low,
        w_max=high,
        tau=draw(st.floats(1e-3, 10)),
        v_0=draw(st.floats(0, 1)),
        scale=scale or draw(st.sampled_from(["probability", "log"])),
    )


@st.composite
def cases(draw, count=2):
    """A map and validities on its scale."""
    made = draw(maps())
    return made, [draw(PROPERTIES[made.scale]) for _ in range(count)]


def slow(made, teacher, student):
    """The formula as it stands in the documentation."""
    sigmoid = 1 / (1 + math.exp(-(teacher - student) / made.tau))
    as_probability = teacher if made.scale == "probability" else math.exp(teacher)
    trust = 1.0 if made.v_0 == 0 else min(1.0, as_probability / made.v_0)
    return (made.w_min + (made.w_max - made.w_min) * sigmoid) * trust


def test_the_weight_is_the_documented_formula_on_both_scales():
    for made in (WeightMap(), WeightMap(scale="log", tau=0.7), WeightMap(0, 3, 0.05, 0.5), WeightMap(v_0=0)):
        values = [0.0, 0.03, 0.2, 0.5, 0.99, 1.0]
        if made.scale == "log":
            values = [math.log(value + 1e-9) for value in values]
        for teacher in values:
            for student in values:
                assert made([teacher], [student]) == pytest.approx([slow(made, teacher, student)], abs=1e-12)


@given(cases())
def test_the_weight_lies_between_0_and_w_max_and_above_w_min_where_the_teacher_is_valid(case):
    made, (teacher, student) = case
    [weight] = made([teacher], [student])
    assert 0 <= weight <= made.w_max
    if not made.is_floored(teacher):
        assert weight >= made.w_min


@given(cases(count=3))
def test_the_weight_never_falls_as_the_teachers_validity_grows(case):
    made, (one, other, student) = case
    low, high = sorted([one, other])
    [below], [above] = made([low], [student]), made([high], [student])
    assert below <= above + 1e-12


@given(cases(count=3))
def test_the_weight_never_grows_as_the_students_validity_grows(case):
    made, (teacher, one, other) = case
    low, high = sorted([one, other])
    [above], [below] = made([teacher], [low]), made([teacher], [high])
    assert below <= above + 1e-12


def test_the_weight_rises_and_falls_strictly_where_the_map_is_not_saturated():
    made = WeightMap()
    rising = made([0.2, 0.4, 0.6, 0.8], [0.5] * 4)
    falling = made([0.5] * 4, [0.2, 0.4, 0.6, 0.8])
    assert rising == sorted(set(rising))
    assert falling == sorted(set(falling), reverse=True)


@given(cases(count=1), st.floats(0, 1))
def test_a_tie_is_plain_distillation_exactly_where_the_teacher_is_valid_and_the_ends_sum_to_2(case, w_min):
    made, [value] = case
    plain = WeightMap(w_min, 2 - w_min, made.tau, made.v_0, made.scale)
    weights = plain([value] * 3, [value] * 3)
    if plain.is_floored(value):
        assert all(weight < 1 for weight in weights)
    else:
        assert weights == pytest.approx([1.0] * 3, abs=1e-15)


def test_a_tie_is_not_plain_distillation_where_the_ends_do_not_sum_to_2():
    assert WeightMap(w_min=0.5, w_max=2.5)([0.6], [0.6]) == [1.5]


@pytest.mark.parametrize("failed", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", ["probability", "log"])
def test_a_failed_validity_on_either_side_gives_exactly_1(failed, scale):
    made = WeightMap(w_min=0, w_max=5, scale=scale)
    assert made([failed, -0.0, failed], [0.0, failed, failed]) == [1.0, 1.0, 1.0]


def test_log_and_probability_agree_on_the_floor():
    log = WeightMap(scale="log")([math.log(0.05)], [math.log(0.05)])
    assert log == pytest.approx(WeightMap()([0.05], [0.05]), abs=1e-12) == [0.25]


def test_a_validity_outside_the_probabilities_is_refused_and_says_how_log_probabilities_go():
    with pytest.raises(ValueError, match=r"-0\.4 and 0\.5 on the scale 'probability'.*scale = 'log'"):
        WeightMap()([-0.4], [0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"w_min": -0.1}, "w_min=-0.1"),
        ({"w_min": 2.0}, "w_min=2.0, w_max=1.8"),
        ({"w_max": math.inf}, "w_max=inf"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": math.nan}, "tau=nan"),
        ({"v_0": 1.5}, "v_0=1.5"),
        ({"scale": "logit"}, "scale='logit'"),
    ],
)
def test_values_outside_their_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        WeightMap(**settings)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="1 validities of the teacher and 2 of the student"):
        WeightMap()([0.5], [0.5, 0.5])


def test_a_given_tau_stands_in_the_place_of_the_maps_own():
    assert WeightMap()([0.9], [0.1], tau=0.7) == WeightMap(tau=0.7)([0.9], [0.1])


margin_lists = st.lists(st.one_of(st.none(), st.floats(-10, 10)), max_size=30)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=50), st.floats(0.01, 100))
def test_adapted_weights_do_not_depend_on_the_unit_of_the_validity(margins, unit):
    plain, scaled = AdaptiveTau(floor=1e-9), AdaptiveTau(floor=1e-9)
    taus = plain.update(margins), scaled.update([margin * unit for margin in margins])
    made = WeightMap(scale="log", v_0=0)
    weights = made(margins, [0.0] * len(margins), tau=taus[0])
    again = made([m * unit for m in margins], [0.0] * len(margins), tau=taus[1])
    assert weights == pytest.approx(again, rel=1e-9)


def test_half_of_the_margins_lie_beyond_the_adapted_tau_so_the_map_is_neither_constant_nor_saturated():
    margins = [(-1) ** i * 1000 * (i + 1) for i in range(100)]
    fixed = WeightMap(scale="log", v_0=0)(margins, [0.0] * 100)
    assert all(abs(weight - 1) > 0.79 for weight in fixed)
    adapted = WeightMap(scale="log", v_0=0)(margins, [0.0] * 100, tau=AdaptiveTau().update(margins))
    assert sum(0.27 < (weight - 0.2) / 1.6 < 0.73 for weight in adapted) == 50


@given(margin_lists, st.integers(0, 30))
def test_tau_does_not_depend_on_how_the_margins_were_batched(margins, cut):
    whole, parts = AdaptiveTau(window=16), AdaptiveTau(window=16)
    whole.update(margins)
    parts.update(margins[:cut])
    parts.update(margins[cut:])
    assert whole.value == parts.value


def test_ties_and_failures_do_not_move_tau():
    tau = AdaptiveTau(start=0.3)
    assert tau.update([None, 0.0, math.nan, math.inf]) == 0.3
    assert tau.update([0.0, 0.5, -0.5, 0.0, 0.0, None]) == 0.5


def test_tau_follows_the_latest_margins_and_stays_above_its_floor():
    tau = AdaptiveTau(window=4, floor=0.1)
    tau.update([5.0] * 4)
    assert tau.update([1.0, 1.0, 1.0]) == 1.0
    assert tau.update([1e-6] * 4) == 0.1


@given(margin_lists, margin_lists)
def test_a_resumed_tau_continues_as_the_uninterrupted_one(before, after):
    through, resumed = AdaptiveTau(window=16), AdaptiveTau(window=16)
    through.update(before)
    resumed.load_state_dict(json.loads(json.dumps(through.state_dict())))
    assert through.update(after) == resumed.update(after)
    assert through.state_dict() == resumed.state_dict()


@pytest.mark.parametrize("settings", [{"start": 0}, {"factor": -1}, {"floor": math.nan}, {"window": 0}])
def test_settings_of_the_adaptive_tau_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdaptiveTau(**settings)


def test_a_checkpoint_with_one_tau_leaves_that_of_the_traces_at_its_start():
    saved = StepWeighting(WeightMap(), adaptive=AdaptiveTau(start=0.3))
    saved.adaptive.update([2.0] * 4)
    state = saved.state_dict()
    del state["tau_off_policy"]
    resumed = StepWeighting(WeightMap(), adaptive=AdaptiveTau(start=0.3))
    resumed.load_state_dict(state)
    assert (resumed.adaptive.value, resumed.adaptive_off_policy.value) == (saved.adaptive.value, 0.3)
