import pytest

from rlkd.evaluate import accuracy, evaluate

ROWS = [{"answer": "1"}, {"answer": "2"}, {"answer": None}]


def test_every_metric_is_applied_to_one_generation_a_row():
    calls = []

    def generate(rows):
        calls.append(len(rows))
        return ["#### 1", "#### 3", "#### 5"]

    lengths = {"accuracy": accuracy, "length": lambda row, text: float(len(text))}
    found = evaluate(ROWS, generate, lengths)
    assert calls == [3]
    assert (found["accuracy"].value, found["accuracy"].n) == (0.5, 2)
    assert (found["length"].value, found["length"].n) == (6.0, 3)


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
