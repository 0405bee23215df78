"""SRD's ranking and curriculum, and the selector `judge`, on real tiny models."""

import asyncio
import math
import random

import pytest

from rlkd.cache import Cache
from rlkd.data.curriculum import in_stages, stages_of_row
from rlkd.engines import Completion, EngineError, Sampling, TokenScores, run
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.output import row_of
from rlkd.rationales.records import Candidate, Question, candidate
from rlkd.rationales.select import apply, load_selector
from rlkd.rationales.select.engine import TEMPLATE
from rlkd.rationales.select.judge import log_share
from rlkd.rationales.select.srd import fused_ranks, rouge_l, stages_of


@pytest.fixture(scope="module")
def student(tiny_model):
    return TransformersEngine(tiny_model, device="cpu")


def questions():
    return [
        Question(name, f"What is {name}?", "7", tuple(candidate(name, text, "ready") for text in texts))
        for name, texts in {
            "a": ["3 + 4 = 7\n#### 7", "Seven, I think.\n#### 7"],
            "b": ["7\n#### 7"],
            "c": ["Some more words, and then some more: 14/2 = 7\n#### 7", "10 - 3 = 7\n#### 7"],
        }.items()
    ]


def test_fusion_adds_the_reciprocals_of_both_ranks():
    # By ROUGE-L: b, a, c. By loss: c, b, a.
    assert fused_ranks([0.5, 0.9, 0.1], [3.0, 2.0, 1.0], ["a", "b", "c"]) == pytest.approx(
        [1 / 62 + 1 / 63, 1 / 61 + 1 / 62, 1 / 63 + 1 / 61]
    )


def test_ties_go_by_name_whatever_the_order():
    names = [f"n{number}" for number in range(9)]
    first = dict(zip(names, fused_ranks([0.0] * 9, [1.0] * 9, names), strict=True))
    random.Random(0).shuffle(names)
    assert dict(zip(names, fused_ranks([0.0] * 9, [1.0] * 9, names), strict=True)) == first
    assert len(set(first.values())) == 9


@pytest.mark.parametrize(("count", "stages"), [(7, 3), (3, 3), (2, 3), (10, 1)])
def test_stages_are_easy_first_and_of_one_size_but_for_one(count, stages):
    scores = [1 / (place + 1) for place in range(count)]
    found = stages_of(scores, [str(place) for place in range(count)], stages)
    assert found == sorted(found)
    assert found[0] == 1
    assert max(found) <= stages
    sizes = [found.count(stage) for stage in set(found)]
    assert max(sizes) - min(sizes) <= 1


def test_the_selector_ranks_by_what_the_student_writes_and_finds_likely(student):
    kept, dropped = asyncio.run(
        apply(
            load_selector("srd", {"student": student, "stages": 2, "max_new_tokens": 16, "template": TEMPLATE}),
            questions(),
        )
    )
    assert dropped == []
    prompts = [f"Question: What is {name}?\nAnswer:" for name in "abc"]
    written = run(student.generate(prompts, Sampling(max_new_tokens=16, stop=("\nQuestion:",))))
    pairs = [
        (place, item.id, each)
        for place, (item, _) in enumerate(zip(kept, prompts, strict=True))
        for each in item.candidates
    ]
    losses = run(student.score([(prompts[place], f" {each.text}") for place, _, each in pairs]))
    expected = fused_ranks(
        [rouge_l(written[place].text, each.text) for place, _, each in pairs],
        [-scored.total / scored.n_tokens for scored in losses],
        [f"{name}\x1f{each.id}" for _, name, each in pairs],
    )
    assert [each.scores["srd"] for *_, each in pairs] == pytest.approx(expected)
    easiest = sorted(pairs, key=lambda pair: -pair[2].scores["srd"])
    assert [each.scores["stage"] for *_, each in easiest] == [1, 1, 1, 2, 2]


def test_the_ranking_does_not_depend_on_the_order_of_the_questions(student):
    selector = load_selector("srd", {"student": student, "max_new_tokens": 8})

    def scores(given):
        kept, _ = asyncio.run(apply(selector, given))
        return {(item.id, each.id): dict(each.scores) for item in kept for each in item.candidates}

    assert scores(questions()) == scores(questions()[::-1])


def test_a_share_keeps_the_easiest_and_gives_the_rest_no_stage(student):
    kept, dropped = asyncio.run(
        apply(load_selector("srd", {"student": student, "keep": 0.6, "max_new_tokens": 8}), questions())
    )
    left = [each for item in kept for each in item.candidates]
    assert (len(left), len(dropped)) == (3, 2)
    assert {each.reason for each in dropped} == {"too hard for the student"}
    assert min(each.scores["srd"] for each in left) >= max(each.candidate.scores["srd"] for each in dropped)
    assert not any("stage" in each.candidate.scores for each in dropped)


def test_a_cached_answer_of_the_student_is_not_requested_again(student, tmp_path):
    cache = Cache(tmp_path / "kept.sqlite")
    settings = {"max_new_tokens": 8, "cache": cache}
    kept, _ = asyncio.run(apply(load_selector("srd", {"student": student, **settings}), questions()))

    class Silent:
        name, tokenizer = student.name, student.tokenizer

        async def generate(self, *_, **__):
            raise AssertionError("asked again")

        score = generate

    assert asyncio.run(apply(load_selector("srd", {"student": Silent(), **settings}), questions()))[0] == kept


# The student answers "p q r s t" to every question, so the ROUGE-L of five words is the share of its words in them.
#
# rationale      ROUGE-L  rank  mean surprisal  rank  score                   order  stage
# a1  p q r s t    1.0     1         3.0         5    1/61 + 1/65 = 0.031778    2      1
# a2  p q x x x    0.4     4         1.0         2    1/64 + 1/62 = 0.031754    3      2
# b1  p q r s x    0.8     2         0.5         1    1/62 + 1/61 = 0.032522    1      1
# b2  x x x x x    0.0     6         2.0         4    1/66 + 1/64 = 0.030777    6      3
# c1  p q r x x    0.6     3         5.0         6    1/63 + 1/66 = 0.031025    5      3
# c2  p x x x x    0.2     5         1.5         3    1/65 + 1/63 = 0.031258    4      2
BY_HAND = {
    "a1": ("p q r s t", (-1.0, -5.0), 0.031778, 1),
    "a2": ("p q x x x", (-1.0,), 0.031754, 2),
    "b1": ("p q r s x", (-0.75, -0.5, -0.25), 0.032522, 1),
    "b2": ("x x x x x", (-1.0, -2.0, -3.0), 0.030777, 3),
    "c1": ("p q r x x", (-5.0,), 0.031025, 3),
    "c2": ("p x x x x", (-1.5,), 0.031258, 2),
}


class Scripted:
    """A student that writes and finds likely what stands in `BY_HAND`."""

    name, tokenizer = "scripted", None

    async def generate(self, prompts, sampling, *, deadline=None):
        return [Completion("p q r s t", "stop", 5) for _ in prompts]

    async def score(self, requests, *, deadline=None):
        logprobs = {text: given for text, given, *_ in BY_HAND.values()}
        return [TokenScores(logprobs[text.strip()]) for _, text in requests]


@pytest.mark.parametrize(
    ("batch_size", "batches"),
    [
        # Within a stage in the order of the data, backwards.
        (2, "b1 a1 | c2 b1 | a2 a1 | c2 c1 | b2 b1 | a2 a1"),
        # The first stage is half a batch, so it comes with the second; of the six there, a1 and b1 are left over.
        (4, "c2 b1 a2 a1 | c2 c1 b2 b1 | a2 a1 b1 a1"),
    ],
    ids=["2", "4"],
)
def test_examples_come_in_the_batches_worked_out_by_hand(batch_size, batches):
    given = [
        Question(name, f"What is {name}?", "7", tuple(Candidate(each, BY_HAND[each][0], "ready") for each in both))
        for name, both in {"a": ("a1", "a2"), "b": ("b1", "b2"), "c": ("c1", "c2")}.items()
    ]
    selector = load_selector("srd", {"student": Scripted(), "stages": 3, "template": TEMPLATE})
    kept, dropped = asyncio.run(apply(selector, given))
    assert dropped == []
    rows = [row_of(question, ("srd", "stage")) for question in kept]
    scores = [each["srd"] for row in rows for each in row["scores"]]
    assert scores == pytest.approx([score for *_, score, _ in BY_HAND.values()], abs=5e-7)
    assert [text for row in rows for text in row["rationales"]] == [text for text, *_ in BY_HAND.values()]
    stages = [stage for row in rows for stage in stages_of_row(row)]
    assert stages == [stage for *_, stage in BY_HAND.values()]
    order = in_stages(list(BY_HAND), stages, batch_size, lambda own, stage: own[::-1])
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    assert " | ".join(map(" ".join, found)) == batches


# judge


class Judging:
    """An engine whose log-probabilities of Yes and No a function gives."""

    name, guided = "judging", False

    def __init__(self, say):
        self.say, self.prompts = say, []

    async def choose(self, prompts, choices, *, deadline=None):
        assert tuple(choices) == ("Yes", "No")
        self.prompts += prompts
        return [self.say(prompt[0]["content"]) for prompt in prompts]


def test_the_judge_keeps_what_it_says_yes_to_and_never_sees_the_right_answer():
    engine = Judging(lambda text: (-0.1, -2.4) if "14/2" in text else (-3.0, -0.05))
    kept, dropped = asyncio.run(apply(load_selector("judge", {"engine": engine}), questions()))
    assert [each.text.partition("\n")[0][-8:] for item in kept for each in item.candidates] == ["14/2 = 7"]
    assert {each.reason for each in dropped} == {"the judge says no"}
    share = math.exp(-0.1) / (math.exp(-0.1) + math.exp(-2.4))
    assert kept[0].candidates[0].scores["judge"] == pytest.approx(math.log(share))
    other = Question("q", "Is {rationale} a word?", "GOLD", (candidate("q", "It {question} is.", "ready"),))
    [message] = load_selector("judge", {"engine": engine}).prompt(other, other.candidates[0])
    assert "Is {rationale} a word?" in message["content"]
    assert "It {question} is." in message["content"]
    assert "GOLD" not in message["content"]


def test_the_threshold_is_a_probability_and_a_judge_without_an_opinion_measures_nothing():
    engine = Judging(lambda text: (-math.inf, -math.inf) if "10 - 3" in text else (-2.0, -0.5))
    kept, dropped = asyncio.run(apply(load_selector("judge", {"engine": engine, "threshold": 0.1}), questions()))
    assert sum(len(item.candidates) for item in kept) == 4
    assert [each.reason for each in dropped] == ["could not be measured"]


def test_verdicts_of_the_judge_are_cached_and_failures_are_not(tmp_path):
    cache = Cache(tmp_path / "kept.sqlite")
    broken = EngineError("judging", "no.")
    first = Judging(lambda text: broken if "10 - 3" in text else (-0.1, -3.0))
    asyncio.run(apply(load_selector("judge", {"engine": first, "cache": cache}), questions()))
    second = Judging(lambda text: (-0.1, -3.0))
    kept, dropped = asyncio.run(apply(load_selector("judge", {"engine": second, "cache": cache}), questions()))
    assert (len(first.prompts), len(second.prompts), dropped) == (5, 1, [])
    assert sum(len(item.candidates) for item in kept) == 5


def test_a_real_model_judges_too(student):
    kept, dropped = asyncio.run(apply(load_selector("judge", {"engine": student, "threshold": 0.0}), questions()))
    scores = [each.scores["judge"] for item in kept for each in item.candidates]
    assert (len(scores), dropped) == (5, [])
    assert all(-100 <= score <= 0 for score in scores)


def test_the_share_of_yes_stays_finite():
    assert log_share(0.0, -math.inf) == 0.0
    assert log_share(-math.inf, 0.0) == -100.0
    assert log_share(-1.0, -1.0) == pytest.approx(math.log(0.5))
