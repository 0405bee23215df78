import pytest
from trl.rewards import get_soft_overlong_punishment

from rewards.lengths import SoftOverlong


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


@pytest.mark.parametrize(("longest", "cache"), [(10, 0), (10, 11), (10, -1), (0, 0)])
def test_a_cache_that_does_not_fit_is_refused_with_both_numbers(longest, cache):
    with pytest.raises(ValueError, match=rf"soft_punish_cache \({cache}\) must lie between 1 and .* \({longest}\)"):
        SoftOverlong(longest, cache)
