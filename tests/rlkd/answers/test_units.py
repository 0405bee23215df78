from fractions import Fraction

import pytest

from rlkd.answers.units import NO_UNIT, Unit, read_unit


@pytest.mark.parametrize(
    ("tail", "kinds"),
    [
        (" km", {"length^1": 1000}),
        ("km", {"length^1": 1000}),
        (" km/h", {"length^1/time^1": Fraction(5, 18)}),
        (" km per hour", {"length^1/time^1": Fraction(5, 18)}),
        (" cm^2", {"length^2": Fraction(1, 10**4)}),
        (" square centimeters", {"length^2": Fraction(1, 10**4)}),
        (" sq. cm", {"length^2": Fraction(1, 10**4)}),
        ("°", {"angle^1": 1, "celsius^1": 1, "fahrenheit^1": 1}),
        (" degrees Celsius", {"celsius^1": 1}),
        ("$/clip", {"USD^1/clip": 1}),
        (" hours in May", {"time^1": 3600}),
    ],
)
def test_a_known_unit_has_kinds_with_factors(tail, kinds):
    assert read_unit(tail, attached=tail[0] != " ").kinds == kinds


def test_things_that_are_counted_have_words():
    assert read_unit(" clips in May", attached=False) == Unit(words=frozenset({"clip", "may"}))
    assert read_unit(" each", attached=False) == NO_UNIT


@pytest.mark.parametrize(
    "tail", [" squared", " pi", " or six", " is wrong", " May", " x", " -", " /", " of 6", " log", " repeating"]
)
def test_words_that_change_a_number_are_no_unit(tail):
    assert read_unit(tail, attached=False) is None


@pytest.mark.parametrize("tail", ["m", "ab", "clips", "!"])
def test_letters_without_a_space_are_variables_but_for_known_units(tail):
    assert read_unit(tail, attached=True) is None


@pytest.mark.parametrize(
    "tail",
    [
        " maximum",
        " clips minimum",
        " km max",
        " upwards",
        ", and more",
        " and up",
        " clips and counting",
        " years and older",
        " fold",
        " tenfold",
        " imaginary units",
        " degrees below",
        " degrees Celsius below freezing",
        " tops",
    ],
)
def test_limits_and_multiples_behind_a_number_are_no_unit(tail):
    assert read_unit(tail, attached=False) is None


@pytest.mark.parametrize("tail", [" maximum points", " imaginary friends", " meters below", " more clips", " min"])
def test_such_words_may_belong_to_things(tail):
    assert read_unit(tail, attached=False) is not None


@pytest.mark.parametrize("tail", ["°", "°C", "°F", " degrees Celsius", " °F"])
def test_degrees_are_of_any_scale(tail):
    degrees = read_unit(" degrees", attached=False)
    assert set(degrees.kinds) & set(read_unit(tail, attached=False).kinds)
