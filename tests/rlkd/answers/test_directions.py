import pytest

from rlkd.answers import equal


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("6 km north", "6 km south"),
        ("6 km north", "6 km northeast"),
        ("6 miles eastward", "6 miles to the west"),
        ("$20 profit", "$20 loss"),
        ("20 dollars gained", "20 dollars lost"),
        ("6 units to the left", "6 units to the right"),
        ("2 floors up", "2 floors down"),
        ("6 m above the ground", "6 m below the ground"),
        ("6 years older", "6 years younger"),
        ("2 hours early", "2 hours late"),
        ("6 kg heavier", "6 kg lighter"),
        ("6 points ahead", "6 points behind"),
        ("6 cm taller", "6 cm shorter"),
    ],
)
def test_amounts_in_different_directions_differ(first, second):
    assert equal(first, second) is False
    assert equal(second, first) is False


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("6 km north", "6 km"),
        ("6 km north", "6"),
        ("6 km north", "6 kilometers to the north"),
        ("6 years older", "6 years old"),
        ("20 dollars left", "20 dollars more"),
        ("6 m above the ground", "600 cm above it"),
        ("6 right triangles", "6 triangles"),
    ],
)
def test_a_direction_may_be_left_out(first, second):
    assert equal(first, second) is True
    assert equal(second, first) is True
