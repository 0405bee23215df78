import random
import sys

import pytest
from trl.rewards import get_repetition_penalty_reward

from rewards.repetition import TokenRepetition, WordRepetition


@pytest.mark.parametrize(("size", "most"), [(1, -1.0), (2, -0.5), (3, -1.0), (5, 0.0)])
def test_the_penalty_over_tokens_agrees_with_trls(size, most):
    rng = random.Random(size)
    ids = [rng.choices(range(rng.choice([1, 3, 1000])), k=rng.randint(0, 40)) for _ in range(1000)]
    ours = TokenRepetition(size, most)(completion_ids=ids)
    assert ours == get_repetition_penalty_reward(size, most)(ids)
    assert TokenRepetition()(completion_ids=ids) == get_repetition_penalty_reward()(ids)


@pytest.mark.parametrize(
    ("text", "size", "value"),
    [
        ("", 2, 0.0),
        ("one", 2, 0.0),
        # 3 pairs, all distinct: (1 - 3/3) x -1 = 0.
        ("a b c d", 2, 0.0),
        # a b, b a, a b: 2 distinct of 3, so (1 - 2/3) x -1 = -1/3.
        ("a b a b", 2, -1 / 3),
        # Case and spacing do not count: 1 distinct of 4 triples, so (1 - 1/4) x -1 = -.75.
        ("No no\n NO  no no no", 3, -0.75),
        # 1 distinct of 6 words.
        ("no no no no no no", 1, -5 / 6),
    ],
)
def test_the_penalty_over_words_is_open_r1s_formula(text, size, value):
    assert WordRepetition(size)(completions=[text]) == [pytest.approx(value)]
    assert WordRepetition(size, max_penalty=-0.5)(completions=[text]) == [pytest.approx(value / 2)]


def test_invalid_parameters_are_refused():
    for make in (TokenRepetition, WordRepetition):
        with pytest.raises(ValueError, match=r"max_penalty 0\.5: expected 0 or below"):
            make(3, 0.5)
        with pytest.raises(ValueError, match="ngram_size 0: expected at least 1"):
            make(0)
    with pytest.raises(ValueError, match="language 'fr': expected 'en' or 'zh'"):
        WordRepetition(language="fr")


def test_chinese_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match="pip install jieba"):
        WordRepetition(language="zh")
