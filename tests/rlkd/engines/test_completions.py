"""Finished rows leave the batch, and every completion is what it was with the model's own `generate`."""

from dataclasses import replace

import pytest

from rlkd.engines import Sampling, run
from rlkd.engines.transformers import TransformersEngine

PROMPTS = ["She sold", "How many clips did she sell in May?", "yes or no?", "She sold", "16 - 3 - 4 =", "eggs"]


@pytest.fixture(scope="module")
def engine(model_folder):
    return TransformersEngine(str(model_folder), device="cpu")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=40),
        Sampling(max_new_tokens=40, stop=("a", "e ")),
        Sampling(max_new_tokens=40, temperature=1.0, seed=5),
        Sampling(max_new_tokens=40, temperature=1.0, top_p=0.8, seed=5, stop=("on",)),
    ],
    ids=["greedy", "stop", "sampled", "top_p"],
)
def test_completions_are_those_of_the_model_s_own_generate(engine, sampling) -> None:
    loaded = engine._loaded or engine._load()
    loaded = replace(loaded, end_ids=frozenset(range(5, loaded.vocabulary, 9)))  # more ends than it would meet
    found = []
    for drops in (True, False):
        engine._loaded = replace(loaded, shares_prefixes=drops)
        found.append(run(engine.generate(PROMPTS, sampling)))
    assert found[0] == found[1]
    assert len({completion.n_tokens for completion in found[0]}) > 1  # rows leave at different times
