import pytest

from trainers.validity_kd.draws import choose_trace, writes_itself


def test_the_coin_is_the_same_wherever_it_is_thrown_and_has_the_share_that_lmbda_says() -> None:
    thrown = [writes_itself(0.3, 7, step) for step in range(4000)]
    assert thrown == [writes_itself(0.3, 7, step) for step in range(4000)]
    assert sum(thrown) / 4000 == pytest.approx(0.3, abs=0.03)
    assert thrown != [writes_itself(0.3, 8, step) for step in range(4000)]
    assert all(writes_itself(1.0, 7, step) for step in range(100))
    assert not any(writes_itself(0.0, 7, step) for step in range(100))


def test_of_several_traces_each_is_used_whatever_the_place_of_its_row() -> None:
    row = {"id": "a", "prompt": "1 + 1?", "rationales": ["one", " ", "two", "three"]}
    chosen = {choose_trace(row, 3, step) for step in range(50)}
    assert chosen == {"one", "two", "three"}
    assert choose_trace(row, 3, 5) == choose_trace(dict(row), 3, 5)
