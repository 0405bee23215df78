import pytest
from trl.rewards import get_soft_overlong_punishment

from rewards import Failed, RewardError
from rewards.lengths import RelativeLength, SoftOverlong


def dapo(length, longest, cache):
    """Equation 13 of DAPO (arXiv 2503.14476), case by case."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


@pytest.mark.parametrize(("longest", "cache"), [(20, 5), (7, 7), (64, 1), (16384, 4096)])
def test_soft_overlong_is_dapos_and_trls_at_every_length(longest, cache):
    lengths = [*range(0, min(longest, 60) + 5), longest - cache, longest - cache // 2, longest, longest + 1]
    ids = [[0] * n for n in lengths]
    scores = SoftOverlong(longest, cache)(completion_ids=ids)
    assert scores == [dapo(n, longest, cache) for n in lengths]
    assert scores == get_soft_overlong_punishment(longest, cache)(completion_ids=ids)


@pytest.mark.parametrize(("longest", "cache"), [(10, 11), (10, -1), (0, 0)])
def test_a_punishment_longer_than_the_maximum_is_refused_with_both_numbers(longest, cache):
    with pytest.raises(ValueError, match=rf"soft_punish_cache \({cache}\) must lie between 0 and .* \({longest}\)"):
        SoftOverlong(longest, cache)


def test_without_a_cache_the_punishment_is_a_step():
    assert SoftOverlong(10, 0)(completion_ids=[[0] * 10, [0] * 11]) == [0.0, -1.0]
    assert get_soft_overlong_punishment(10, 0)([[0] * 10, [0] * 11]) == [0.0, -1.0]


def test_soft_overlong_depends_on_the_length_alone():
    assert SoftOverlong(10, 5).keys(completion_ids=[[1, 2, 3], [4, 5, 6], [7]]) == [3, 3, 1]


RIGHT, WRONG = r"\boxed{3}", r"\boxed{4}"  # 9 characters each


def test_length_is_open_r1s_formula():
    texts = [RIGHT, WRONG, RIGHT + "." * 5, WRONG + "." * 5, RIGHT + "." * 20, WRONG + "." * 20]
    # Lengths 9, 9, 14, 14, 29, 29: shortest 9, longest 29, so 0.5 - 0/20 = .5, 0.5 - 5/20 = .25, 0.5 - 20/20 = -.5;
    # a wrong answer earns at most 0.
    scores = RelativeLength()(completions=texts, solution=["$3$"] * 6)
    assert scores == pytest.approx([0.5, 0.0, 0.25, 0.0, -0.5, -0.5])


def test_completions_of_equal_length_earn_nothing():
    assert RelativeLength()(completions=[RIGHT, WRONG], solution=["$3$"] * 2) == [0.0, 0.0]
    assert RelativeLength()(completions=[RIGHT], solution=["$3$"]) == [0.0]
    assert RelativeLength()(completions=[], solution=[]) == []


def test_by_group_compares_with_the_completions_of_the_same_prompt():
    given = {
        "completions": [RIGHT, RIGHT + "." * 10, RIGHT + "." * 90, RIGHT + "." * 190],
        "prompts": [[{"role": "user", "content": name}] for name in ("a", "a", "b", "b")],
        "answer": ["3"] * 4,
    }
    # In the batch: lengths 9, 19, 99, 199, so 0.5 - (0, 10, 90, 190) / 190. In its group each is shortest or longest.
    assert RelativeLength(rules="trl")(**given) == pytest.approx([0.5, 0.5 - 1 / 19, 0.5 - 9 / 19, -0.5])
    assert RelativeLength(rules="trl", by_group=True)(**given) == pytest.approx([0.5, -0.5, 0.5, -0.5])
    with pytest.raises(RewardError, match="'length' with by_group needs the prompts"):
        RelativeLength(by_group=True)(completions=[RIGHT], solution=["$3$"])


@pytest.mark.slow
def test_a_completion_with_an_unreadable_solution_is_not_scored_but_its_length_counts():
    texts = [RIGHT, RIGHT + "." * 10, RIGHT + "." * 20]
    solutions = ["$3$", "", "$9^{9^{9^{9}}}$"]
    short, unreadable, hanging = RelativeLength(timeout=0.5)(completions=texts, solution=solutions)
    # Lengths 9, 19, 29.
    assert short == 0.5
    assert unreadable is None
    assert isinstance(hanging, Failed)
