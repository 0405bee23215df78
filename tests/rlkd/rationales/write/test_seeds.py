"""The seed set."""

from rlkd.rationales.records import Question
from rlkd.rationales.write.seeds import seed_set


def test_the_seed_set_is_proportional_by_largest_remainder() -> None:
    sizes = {"a": 60, "b": 30, "c": 10}
    many = [Question(f"{t}{n}", "?", columns={"t": t}) for t, count in sizes.items() for n in range(count)]
    chosen = seed_set(many, 0.05, "t")
    assert sorted(each[0] for each in chosen) == ["a", "a", "a", "b", "b"]
    assert seed_set(list(reversed(many)), 0.05, "t") == chosen
    assert seed_set(many, 0.05, "t", seed=7) != chosen
    assert len(seed_set(many[:3], 0.05)) == 1
    assert seed_set([], 0.5) == frozenset()
