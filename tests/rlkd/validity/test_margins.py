import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlkd.divergence import Head, token_statistics
from rlkd.validity import REDUCTIONS, expected_margins, step_means
from rlkd.validity.margins import reduce_tokens

TOKENS, VOCABULARY, WIDTH = 5, 11, 6


@pytest.fixture(params=[1.0, 0.7])
def models(request):
    """Statistics of every token that could stand at each place: [VOCABULARY][TOKENS], with the distributions."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student_hidden, teacher_hidden = normal(TOKENS, WIDTH), normal(TOKENS, WIDTH)
    student, teacher = Head(normal(VOCABULARY, WIDTH)), Head(normal(VOCABULARY, WIDTH))
    temperature = request.param
    statistics = [
        token_statistics(
            student_hidden, student, teacher_hidden, teacher, torch.full((TOKENS,), token), temperature=temperature
        )
        for token in range(VOCABULARY)
    ]
    p_student = (student_hidden @ student.weight.T / temperature).softmax(-1)
    p_teacher = (teacher_hidden @ teacher.weight.T / temperature).softmax(-1)
    return statistics, p_student, p_teacher


def expectation(statistics, distribution, on_policy):
    """The mean margin of each token where tokens are drawn from `distribution`, by enumeration."""
    spans = [(place, place + 1) for place in range(TOKENS)]
    margins = torch.tensor(
        [expected_margins(found, spans, on_policy=on_policy).margins for found in statistics], dtype=torch.float64
    )
    return (margins * distribution.T).sum(0)


def entropy(distribution):
    return -(distribution * distribution.log()).sum(-1)


def test_on_policy_the_margin_is_the_divergence_plus_the_entropy_gap_in_expectation(models):
    statistics, p_student, p_teacher = models
    kl = (p_student * (p_student / p_teacher).log()).sum(-1)
    wanted = kl + entropy(p_student) - entropy(p_teacher)
    torch.testing.assert_close(expectation(statistics, p_student, True), wanted, atol=1e-5, rtol=1e-5)


def test_off_policy_the_margin_has_the_same_expectation_over_the_teachers_samples(models):
    statistics, p_student, p_teacher = models
    kl = (p_student * (p_student / p_teacher).log()).sum(-1)
    wanted = kl + entropy(p_student) - entropy(p_teacher)
    torch.testing.assert_close(expectation(statistics, p_teacher, False), wanted, atol=1e-5, rtol=1e-5)


def statistics_of(taken, entropy=None, cross_entropy=None):
    count = len(taken)
    return SimpleNamespace(
        teacher_logprob=torch.tensor(taken),
        teacher_entropy=torch.tensor(entropy or [0.0] * count),
        cross_entropy=None if cross_entropy is None else torch.tensor(cross_entropy),
    )


def test_on_policy_a_surprising_step_has_a_positive_margin_and_a_likely_one_a_negative():
    found = expected_margins(
        statistics_of([-5.0, -4.0, -0.1, -0.1], entropy=[1.0] * 4), [(0, 2), (2, 4)], on_policy=True
    )
    assert found.margins == pytest.approx([3.5, -0.9])
    assert found.teacher == pytest.approx([-1.0, -1.0])
    assert found.student == pytest.approx([-4.5, -0.1])


def test_off_policy_the_margin_is_how_much_better_the_teachers_token_is_than_what_the_student_would_write():
    found = expected_margins(statistics_of([-0.1, -0.3], cross_entropy=[4.0, 2.0]), [(0, 2)], on_policy=False)
    assert found.teacher == pytest.approx([-0.2])
    assert found.margins == pytest.approx([2.8])


def test_a_wrong_digit_in_a_long_step_moves_the_maximum_more_than_the_quantile_and_that_more_than_the_mean():
    taken = [-0.1] * 19 + [-8.0]
    found = {
        reduction: expected_margins(
            statistics_of(taken, entropy=[0.1] * 20), [(0, 20)], on_policy=True, reduction=reduction, quantile=0.96
        )
        for reduction in REDUCTIONS
    }
    mean, largest, quantile = (found[name].margins[0] for name in ("mean", "max", "quantile"))
    assert mean < 0.5 < quantile < largest == pytest.approx(7.9)
    assert found["max"].teacher == found["mean"].teacher == pytest.approx([-0.1])


def test_a_step_without_tokens_or_with_a_value_that_is_not_finite_has_no_validity():
    found = expected_margins(statistics_of([-1.0, -math.inf, -1.0]), [(0, 1), (1, 1), (1, 2), (2, 3)], on_policy=True)
    assert [margin is None for margin in found.margins] == [False, True, True, False]


def test_a_span_outside_of_the_tokens_is_named():
    with pytest.raises(ValueError, match="a step has the tokens 1 to 4, but there are 2 tokens"):
        expected_margins(statistics_of([-1.0, -1.0]), [(0, 1), (1, 4)], on_policy=True)


def test_off_policy_without_the_students_distribution_is_refused():
    with pytest.raises(ValueError, match="cross_entropy"):
        expected_margins(statistics_of([-1.0]), [(0, 1)], on_policy=False)


def test_an_unknown_reduction_is_refused_before_anything_is_worked_out():
    with pytest.raises(ValueError, match="reduction='median': expected 'mean', 'max', 'quantile'"):
        expected_margins(SimpleNamespace(), [], on_policy=True, reduction="median")
    with pytest.raises(ValueError, match="quantile=90"):
        reduce_tokens([1.0], "quantile", 90)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.floats(0, 1))
def test_the_quantile_is_numpys(values, quantile):
    numpy = pytest.importorskip("numpy")
    assert reduce_tokens(values, "quantile", quantile) == pytest.approx(numpy.quantile(values, quantile), abs=1e-9)
    assert reduce_tokens(values, "quantile", 1.0) == reduce_tokens(values, "max") == max(values)


def test_step_means_are_those_of_the_tokens():
    assert step_means(torch.tensor([1.0, 3.0, 5.0]), [(0, 2), (2, 2), (2, 3)]) == [2.0, None, 5.0]
