"""The rank-surprisal ratio: by hand, against the plainest computation, and as a selector."""

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.cache import Cache
from rlkd.engines import EngineError, run
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import apply, load_selector
from rlkd.rationales.select.engine import TEMPLATE
from rlkd.rationales.select.rank_surprisal import rank_surprisal_ratio

TEXTS = ["3 + 4 = 7\n#### 7", "zzzzzzzz", "Add them: seven.", "3 + 4 = 7, that is all.\n#### 7"]
QUESTION = Question("q", "3 and 4?", "7", tuple(candidate("q", text, "ready") for text in TEXTS))


@pytest.fixture(scope="module")
def student(tiny_model):
    return TransformersEngine(tiny_model, device="cpu")


def plain_ratio(folder, prompt, text, clip=100):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    start, end = tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        table = model(torch.tensor([start + end])).logits[0].log_softmax(-1)
    ranks, surprisals = [], []
    for place, token in enumerate(end):
        row = table[len(start) - 1 + place]
        ranks.append(1 + sum(float(value) > float(row[token]) for value in row))
        surprisals.append(-float(row[token]))
    return sum(min(rank, clip) for rank in ranks) / sum(surprisals)


def test_the_ratio_is_the_sum_of_clipped_ranks_over_the_sum_of_surprisals():
    assert rank_surprisal_ratio([1, 1, 1], [0.5, 0.5, 1.0]) == 1.5
    assert rank_surprisal_ratio([1, 5000], [1.0, 9.0]) == 10.1
    assert rank_surprisal_ratio([1, 5000], [1.0, 9.0], clip=9) == 1.0
    assert rank_surprisal_ratio([1], [0.0]) > 1e9
    with pytest.raises(ValueError, match="2 ranks and 1 surprisals"):
        rank_surprisal_ratio([1, 2], [1.0])


def test_of_two_equally_surprising_texts_the_one_of_likelier_tokens_is_better():
    assert rank_surprisal_ratio([2, 2], [3.0, 3.0]) < rank_surprisal_ratio([2, 40], [3.0, 3.0])


def test_ranks_and_surprisals_are_those_of_the_model(tiny_model, student):
    kept, dropped = asyncio.run(
        apply(load_selector("rank_surprisal", {"student": student, "keep": 4, "template": TEMPLATE}), [QUESTION])
    )
    assert dropped == []
    for each in kept[0].candidates:
        expected = plain_ratio(tiny_model, "Question: 3 and 4?\nAnswer:", f" {each.text}")
        assert each.scores["rank_surprisal"] == pytest.approx(expected, rel=1e-3)


def test_the_engine_gives_the_same_scores_with_ranks_and_without(student):
    requests = [("Question: 3 and 4?\nAnswer:", f" {text}") for text in TEXTS] + [("a", "")]
    plain, ranked = run(student.score(requests)), run(student.score_with_ranks(requests))
    for mine, theirs in zip(plain, ranked, strict=True):
        assert mine.logprobs == theirs.logprobs
        assert len(theirs.ranks) == theirs.n_tokens
        assert all(rank >= 1 for rank in theirs.ranks)


def test_the_lowest_ratio_is_kept_and_the_rest_named(student, tmp_path):
    cache = Cache(tmp_path / "kept.sqlite")
    selector = load_selector("rank_surprisal", {"student": student, "cache": cache})
    kept, dropped = asyncio.run(apply(selector, [QUESTION]))
    [best] = kept[0].candidates
    assert {each.reason for each in dropped} == {"fits the student worse than the kept ones"}
    assert all(best.scores["rank_surprisal"] <= each.candidate.scores["rank_surprisal"] for each in dropped)
    assert len(cache) == 4

    class Silent:
        name, tokenizer = student.name, student.tokenizer

        async def score_with_ranks(self, requests, *, deadline=None):
            assert not requests
            return []

    again = load_selector("rank_surprisal", {"student": Silent(), "cache": cache})
    assert asyncio.run(apply(again, [QUESTION]))[0] == kept


def test_a_text_that_could_not_be_scored_is_not_measured(student):
    class Failing:
        name, tokenizer = student.name, student.tokenizer

        async def score_with_ranks(self, requests, *, deadline=None):
            found = await student.score_with_ranks(requests, deadline=deadline)
            return [EngineError("failing", "no."), *found[1:]]

    _, dropped = asyncio.run(apply(load_selector("rank_surprisal", {"student": Failing(), "keep": 3}), [QUESTION]))
    assert [(each.candidate.text, each.reason) for each in dropped] == [(TEXTS[0], "could not be measured")]
