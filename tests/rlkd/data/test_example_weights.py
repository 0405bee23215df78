"""Weights of examples from a column: what counts as a weight, and what is refused by the row's name."""

import numpy as np
import pytest

from rlkd.data.example_weights import scaled_weights, weights_of_row
from rlkd.errors import UsageError


def row(**fields):
    return {"id": "q7", "rationales": ["one", "two"]} | fields


def test_a_number_holds_for_all_rationales_of_a_row_and_a_list_for_one_each() -> None:
    assert weights_of_row(row(trust=2), "trust") == [2.0, 2.0]
    assert weights_of_row(row(trust=[0, 0.5]), "trust") == [0.0, 0.5]
    assert weights_of_row(row(trust=3, rationales=[]), "trust") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"row 'q7' has no value in column 'trust'; its columns are id, rationales"),
        ({"trust": None}, "row 'q7' has no value in column 'trust'"),
        ({"trust": [1.0]}, "row 'q7' has 1 weights for 2 rationales"),
        ({"trust": [1.0, None]}, "row 'q7' has the weight None"),
        ({"trust": -0.1}, "row 'q7' has the weight -0.1 in column 'trust': expected a number of at least 0"),
        ({"trust": float("nan")}, "row 'q7' has the weight nan"),
        ({"trust": float("inf")}, "row 'q7' has the weight inf"),
        ({"trust": True}, "row 'q7' has the weight True"),
        ({"trust": "0.5"}, "row 'q7' has the weight '0.5'"),
    ],
)
def test_what_is_no_weight_is_refused_by_the_name_of_its_row(fields, message) -> None:
    with pytest.raises(UsageError, match=message):
        weights_of_row(row(**fields), "trust")


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1, 7, 1e-300])
def test_equal_weights_are_1_in_the_precision_of_the_loss(weight) -> None:
    assert set(np.float32(scaled_weights([weight] * 7))) == {np.float32(1)}


def test_weights_have_a_mean_of_1_and_keep_their_ratios() -> None:
    assert scaled_weights([0, 1, 2, 5]) == [0, 0.5, 1, 2.5]


def test_weights_that_are_all_0_are_refused() -> None:
    with pytest.raises(UsageError, match="all weights are 0"):
        scaled_weights([0, 0])
