import pytest

from rlkd.data.curriculum import exchanged_stages, in_stages, stages_of_row
from rlkd.errors import UsageError

EXAMPLES, STAGES = list("abcdefg"), [2, 1, 3, 1, 2, 1, 3]


def test_each_stage_has_all_examples_of_the_stages_before_it() -> None:
    found = in_stages(EXAMPLES, STAGES, 1, lambda examples, stage: sorted(examples))
    assert "".join(found) == "bdf" + "abdef" + "abcdefg"


def test_stages_are_whole_batches_and_what_is_over_comes_in_the_next_one() -> None:
    asked = []
    found = in_stages(EXAMPLES, STAGES, 2, lambda examples, stage: asked.append(stage) or sorted(examples))
    # Of three, one is over; of the next six, none; the last stage keeps its incomplete batch.
    assert "".join(found) == "bd" + "abdeff" + "abcdefg"
    assert asked == [1, 2, 3]


def test_one_stage_is_the_data_themselves() -> None:
    assert in_stages(EXAMPLES, [1] * 7, 2, lambda examples, stage: examples) == EXAMPLES


def test_exchanged_stages_are_the_same_ones_on_other_examples_and_the_seed_says_on_which() -> None:
    found = exchanged_stages(STAGES, 7)
    assert sorted(found) == sorted(STAGES)
    assert found != STAGES
    assert found == exchanged_stages(STAGES, 7) != exchanged_stages(STAGES, 8)
    with pytest.raises(UsageError, match="all examples have one stage"):
        exchanged_stages([2, 2], 7)


def test_a_row_has_a_stage_for_each_rationale() -> None:
    assert stages_of_row({"id": "a", "rationales": ["x", "y"], "stages": [2, 1]}) == [2, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "has no column stages"),
        ({"stages": [1]}, "1 stages for 2 rationales"),
        ({"stages": [0, 1]}, "expected numbers from 1"),
        ({"stages": ["easy", "hard"]}, "expected numbers from 1"),
    ],
)
def test_other_stages_are_refused(row, message) -> None:
    with pytest.raises(UsageError, match=message):
        stages_of_row({"id": "a", "rationales": ["x", "y"]} | row)
