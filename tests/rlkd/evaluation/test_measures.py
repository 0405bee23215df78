"""pass@k and maj@k against slow references, and answers that are equal as `rlkd.answers` compares them."""

from itertools import combinations

import pytest

from rlkd.evaluation.measures import majority_at_k, pass_at_k, powers, same_answers


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(n) -> None:
    for right in range(n + 1):
        verdicts = [1] * right + [0] * (n - right)
        for k in range(1, n + 1):
            subsets = list(combinations(verdicts, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_more_completions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="k=9"):
        pass_at_k(8, 1, 9)


def test_the_reported_k_end_with_all_completions() -> None:
    assert [powers(n) for n in (0, 1, 3, 8)] == [[], [1], [1, 2, 3], [1, 2, 4, 8]]


def test_the_majority_is_that_of_equal_answers_and_no_answer_is_no_vote() -> None:
    answers = ["7", None, "8", None, None, "8"]
    right = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert majority_at_k(answers, right, 6) == 0.0
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0.0


def test_a_tie_goes_to_the_first_answer_whether_it_is_right_or_not() -> None:
    assert majority_at_k(["7", "8"], [0.0, 1.0], 2) == 0.0
    assert majority_at_k(["8", "7"], [1.0, 0.0], 2) == 1.0


def test_a_majority_of_fewer_than_all_is_the_mean_of_disjoint_blocks() -> None:
    answers = ["7", "7", "8", "8", "9"]
    assert majority_at_k(answers, [1.0, 1.0, 0.0, 0.0, 1.0], 2) == 0.5
    assert majority_at_k(answers, [1.0, 1.0, 0.0, 0.0, 1.0], 1) == pytest.approx(0.6)


def test_equal_answers_in_other_notation_are_one_answer() -> None:
    [found] = same_answers([["1,000", "1000", "$1000", None, "1001", ""]])
    assert found == ["1,000", "1,000", "1,000", None, "1001", None]


@pytest.mark.slow
def test_answers_that_only_mathematics_can_compare_are_one_answer() -> None:
    assert same_answers([[r"\frac{1}{2}", "x+1", "1+x"]]) == [[r"\frac{1}{2}", "x+1", "x+1"]]
