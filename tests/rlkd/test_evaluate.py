import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.evaluate import accuracy, estimate, evaluate, wilson_interval

ROWS = [{"answer": "1"}, {"answer": "2"}, {"answer": None}]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_share_and_mirrors(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert -1e-12 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1 + 1e-12
    assert high - low > 0
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_shares_are_estimated_by_wilson():
    found = estimate([1.0, 0.0, 1.0, 1.0])
    assert (found.mean, found.n) == (0.75, 4)
    assert (found.low, found.high) == wilson_interval(3, 4)


def test_other_values_are_estimated_by_the_bootstrap_repeatably():
    values = [i / 50 for i in range(51)]
    found = estimate(values)
    assert found == estimate(values)
    assert found.mean == pytest.approx(0.5)
    # For many values the bootstrap agrees with mean +- 1.96 standard errors.
    error = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 51 / 51)
    assert found.low == pytest.approx(0.5 - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(0.5 + 1.96 * error, abs=0.01)


def test_an_estimate_reads_as_a_sentence():
    assert str(estimate([1.0] * 5 + [0.0] * 5)) == "50.0% (95 % interval 23.7% to 76.3%, n = 10)"


def test_every_metric_is_applied_to_one_generation_a_row():
    calls = []

    def generate(rows):
        calls.append(len(rows))
        return ["#### 1", "#### 3", "#### 5"]

    lengths = {"accuracy": accuracy, "length": lambda row, text: float(len(text))}
    found = evaluate(ROWS, generate, lengths)
    assert calls == [3]
    assert (found["accuracy"].mean, found["accuracy"].n) == (0.5, 2)
    assert (found["length"].mean, found["length"].n) == (6.0, 3)


def test_a_row_to_which_a_metric_does_not_apply_is_left_out_of_its_mean():
    assert accuracy({"answer": None}, "#### 1") is None
    assert accuracy({}, "#### 1") is None
    assert accuracy({"answer": "???"}, "#### 1") is None


def test_accuracy_is_one_for_the_right_answer_and_zero_for_any_other():
    assert accuracy({"answer": "1000"}, "#### 1,000") == 1.0
    assert accuracy({"answer": "1000"}, "#### 999") == 0.0
    assert accuracy({"answer": "1000"}, "no idea") == 0.0


def test_a_metric_that_applies_to_no_row_is_an_error():
    with pytest.raises(ValueError, match="metric 'accuracy' applies to none of the 1 rows"):
        evaluate(ROWS[2:], lambda rows: ["#### 1"], {"accuracy": accuracy})


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_generator_must_give_one_text_a_row(count):
    with pytest.raises(ValueError, match=rf"generate gave {count} texts for 3 rows"):
        evaluate(ROWS, lambda rows: ["#### 1"] * count, {"accuracy": accuracy})


def test_an_answer_that_cannot_be_compared_is_not_right_and_does_not_end_the_measurement():
    assert accuracy({"answer": "5"}, "#### 9^{9^{9^{9}}}") == 0.0
