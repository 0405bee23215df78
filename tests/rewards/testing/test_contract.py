import asyncio
import itertools
import json
from pathlib import Path

import pytest

from rewards import BUILT_IN, Failed, RewardError, RewardOptions, build_reward
from rewards.testing.contract import Check, check_contract, violations
from rewards.testing.runner import Samples, samples_from, score_samples
from rlkd.data.rows import RowError
from rlkd.errors import UsageError

CODE = """
import random, time

from rewards import Failed, RewardOptions

ALONE = RewardOptions(per_sample=True, timeout=5.0)


def length(text):
    return float(len(text[0]["content"]))


def good(completions, **columns):
    return [length(c) for c in completions]


def chance(completions, **columns):
    return [random.random() for _ in completions]


def by_place(completions, **columns):
    return [float(i) for i in range(len(completions))]


def by_longest(completions, **columns):
    longest = max(map(length, completions), default=0.0) or 1.0
    return [length(c) / longest for c in completions]


def too_few(completions, **columns):
    return [1.0] * max(len(completions), 1)


def no_list(completions, **columns):
    return 1.0


def one_at_a_time(completions, **columns):
    if len(completions) > 1:
        raise ValueError("one at a time")
    return [1.0] * len(completions)


def never_one(completions, **columns):
    if len(completions) == 1:
        raise ValueError("nothing to compare with")
    return [1.0] * len(completions)


def never_none(completions, **columns):
    return [1.0 + 0 * len(completions[0])] * len(completions)


def infinite(completions, **columns):
    return [1.0 if length(c) else float("inf") for c in completions]


def texts(completions, **columns):
    return ["1.0"] * len(completions)


def changes(completions, **columns):
    for c in completions:
        c[0]["content"] += " "
    return [1.0] * len(completions)


def broken(completions, **columns):
    return [Failed("the server is down")] * len(completions)


def nothing(completions, **columns):
    return [None] * len(completions)


def hangs(completions, **columns):
    while not all(map(length, completions)):
        pass
    return [length(c) for c in completions]


def dies_of_empty(completions, **columns):
    return [1 / length(c) for c in completions]


class Grows:
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **columns):
        self.calls += 1
        return [float(self.calls)] * len(completions)


async def later(completions, **columns):
    return [length(c) for c in completions]


def accuracy(completions, **columns):
    return [1.0] * len(completions)


for reward in (chance, by_place, by_longest, one_at_a_time, dies_of_empty, accuracy):
    reward.reward_options = ALONE
Grows.reward_options = RewardOptions(per_sample=True, isolate=False)
hangs.reward_options = RewardOptions(per_sample=True, timeout=0.5)
"""


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_from(rows=1)


@pytest.fixture
def checked(tmp_path: Path, samples: Samples):
    (tmp_path / "some.py").write_text(CODE)

    def check(name: str, **options: object) -> dict[str, Check]:
        reward = build_reward(f"{tmp_path / 'some.py'}:{name}", options=options, cache=False)
        return {check.name: check for check in check_contract(reward, samples)}

    return check


def test_a_sound_reward_holds_every_requirement(checked):
    found = checked("good", per_sample=True)
    assert list(found) == [
        *("scores", "length", "values", "arguments", "repetition", "order", "batching", "pickles", "name"),
    ]
    assert {check.verdict for check in found.values()} == {"holds"}


@pytest.mark.parametrize(
    ("name", "violated", "evidence"),
    [
        ("chance", "repetition", "differs between calls: gsm8k-train-39 (as written) is 0."),
        ("Grows", "repetition", "differs between calls"),
        ("by_place", "order", "shuffled"),
        ("by_place", "batching", "(as written) is 0 alone, 1 after gsm8k-train-39 (duplicate)"),
        ("by_longest", "batching", "(first half) is 1 alone, 0.498516 after gsm8k-train-39 (as written)"),
        ("too_few", "length", "1 values for an empty batch"),
        ("no_list", "length", "1.0 for an empty batch"),
        ("never_none", "length", "an empty batch: IndexError"),
        ("never_one", "length", "a batch of one: ValueError: nothing to compare with"),
        ("one_at_a_time", "length", "a batch of 5 samples that score alone: ValueError: one at a time"),
        ("infinite", "values", "gsm8k-train-39 (empty): inf is not finite"),
        ("texts", "values", "gsm8k-train-39 (as written): '1.0' (str)"),
        ("changes", "arguments", "changes 'completions'"),
        ("broken", "scores", "fails on all 5 samples: the server is down"),
        ("accuracy", "name", "'accuracy' is taken by rewards.accuracy.Accuracy"),
    ],
)
def test_a_violation_is_found_with_its_evidence(checked, name, violated, evidence):
    found = checked(name)
    assert found[violated].verdict == "violated"
    assert evidence in found[violated].note
    others = {check.name for check in found.values() if check.verdict == "violated"} - {violated}
    assert others <= ({"order", "batching"} if name == "by_place" else set())


@pytest.mark.parametrize(
    ("name", "fact"),
    [("by_longest", "batching"), ("by_place", "order"), ("chance", "repetition"), ("nothing", "scores")],
)
def test_differences_of_a_reward_of_whole_batches_are_notes(checked, name, fact):
    found = checked(name, per_sample=False)
    assert found[fact].verdict == "note"
    assert violations(list(found.values())) == []


def test_a_reward_that_could_be_per_sample_gets_a_note(checked):
    assert "per_sample=True" in checked("good")["batching"].note


@pytest.mark.parametrize(("made", "said"), [(True, "of the right answers too"), (False, "these completions")])
def test_a_reward_that_gives_0_to_all_samples_gets_a_note(made, said):
    def zero(completions, **columns):
        return [0.0 for _ in completions]

    samples = samples_from(rows=1)
    given = samples if made else Samples(samples.batch)
    scores = {check.name: check for check in check_contract(zero, given)}["scores"]
    assert scores.verdict == "note"
    assert "every score is 0" in scores.note
    assert said in scores.note


def test_an_asynchronous_reward_is_checked_too(checked):
    found = checked("later", per_sample=True)
    assert {check.verdict for check in found.values()} == {"holds"}


@pytest.mark.parametrize("name", ["hangs", "dies_of_empty"])
def test_a_sample_that_breaks_its_call_fails_alone_and_violates_nothing(checked, name):
    found = checked(name)
    assert violations(list(found.values())) == []
    assert found["scores"].note == "4 scored, 0 not applicable, 1 failed"
    assert found["batching"].verdict == "holds"


@pytest.mark.slow
def test_a_reward_that_hangs_on_every_batch_is_a_violation_and_not_a_hang(checked):
    found = checked("hangs", per_sample=False)
    assert "fails on all 5 samples: took more than 0.5 s" in found["scores"].note


def test_a_coroutine_that_never_ends_is_cancelled(samples):
    async def stuck(completions, **columns):
        await asyncio.sleep(3600)

    stuck.reward_options = RewardOptions(timeout=0.05)
    found = {check.name: check for check in check_contract(stuck, samples)}
    assert "took more than 0.05 s" in found["scores"].note


def test_an_inner_function_does_not_pickle(samples):
    def inner(completions, **columns):
        return [1.0] * len(completions)

    [violation] = violations(check_contract(inner, samples))
    assert "pickles" in violation
    assert "top level of a module" in violation


class Drifting:
    """Scores by how often it has been copied."""

    __name__ = "drifting"
    reward_options = RewardOptions(per_sample=True)

    def __init__(self, copies: int = 0):
        self.copies = copies

    def __call__(self, completions, **columns):
        return [float(self.copies)] * len(completions)

    def __reduce__(self):
        return Drifting, (self.copies + 1,)


def test_a_copy_with_other_scores_is_found(samples):
    [violation] = violations(check_contract(Drifting(), samples))
    assert "a copy gives other scores" in violation
    assert "is 0 first, 1 from the copy" in violation


def test_names_unfit_for_metrics_are_refused(samples, tmp_path):
    (tmp_path / "some.py").write_text(CODE)
    found = check_contract(build_reward(f"so good={tmp_path / 'some.py'}:good", cache=False), samples)
    assert violations(found) == [
        "violated  name           'so good' cannot name metrics: letters, digits, _, - and . only"
    ]


def test_intermittent_failures_are_not_differences(samples):
    calls = itertools.count()

    def sometimes(completions, **columns):
        return [Failed("busy") if next(calls) % 3 == 0 else 1.0 for _ in completions]

    found = {check.name: check.verdict for check in check_contract(sometimes, samples)}
    assert found["repetition"] == "holds"


def test_a_missing_column_is_an_error_before_any_call(samples):
    def needs(completions, level, **columns):
        raise AssertionError

    with pytest.raises(RewardError, match="needs the column 'level'"):
        check_contract(needs, samples)


def test_trls_extra_arguments_are_passed(samples):
    seen = []

    def logs(completions, trainer_state, log_metric, log_extra, **columns):
        log_metric("x", 1.0)
        log_extra("y", ["a"] * len(completions))
        seen.append(trainer_state.global_step)
        return [1.0] * len(completions)

    assert "pickles" in " ".join(violations(check_contract(logs, samples)))
    assert set(seen) == {0}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("accuracy", {}),
        ("structure", {}),
        ("tag_count", {}),
        ("think_format", {}),
        ("soft_overlong", {"max_completion_len": 60, "soft_punish_cache": 40}),
    ],
)
def test_built_in_rewards_keep_the_contract(name, arguments):
    assert name in BUILT_IN
    assert violations(check_contract(build_reward(name, arguments, cache=False))) == []


# What is scored


def test_completions_are_made_from_a_rows_own_rationale_and_answer():
    made = samples_from(rows=1)
    texts = [completion[0]["content"] for completion in made.batch["completions"]]
    assert [name.partition(" ")[2] for name in made.names] == [
        *("(as written)", "(duplicate)", "(first half)", "(other answer)", "(empty)"),
    ]
    assert texts[0] == texts[1]
    assert texts[0].endswith("\n#### 15")
    assert "<<" not in texts[0]
    assert texts[2] == texts[0][: len(texts[0]) // 2]
    assert texts[3].endswith("\n#### 16")
    assert texts[4] == ""
    assert set(made.batch["answer"]) == {"15"}
    assert "completions made from" in made.origin
    scored = score_samples("accuracy", made)
    assert [outcome.value for outcome in scored.outcomes] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_default_is_enough_rows_for_twenty_samples():
    assert len(samples_from()) == 20
    assert len(samples_from(rows=7)) == 35


@pytest.mark.parametrize(
    ("field", "value", "texts"),
    [
        ("completion", "one", ["one"]),
        ("completion", [{"role": "assistant", "content": "turn"}], ["turn"]),
        ("completions", ["one", "two"], ["one", "two"]),
        ("completions", [[{"role": "assistant", "content": "turn"}]], ["turn"]),
        ("mine", ["one"], ["one"]),
    ],
)
def test_a_rows_own_completions_are_used_unchanged(tmp_path, field, value, texts):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": 2, field: value}) + "\n")
    found = samples_from(str(tmp_path / "rows.jsonl"), field=field if field == "mine" else None)
    assert [completion[0]["content"] for completion in found.batch["completions"]] == texts
    assert found.batch["answer"] == ["2"] * len(texts)
    assert field not in found.columns
    assert "completions as given" in found.origin


def test_text_prompts_have_text_completions(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n')
    found = samples_from(str(tmp_path / "rows.jsonl"))
    assert found.batch["prompts"] == ["1 + 1 ="]
    assert found.batch["completions"] == [" 2"]


def test_rollouts_may_repeat_their_ids(tmp_path):
    rollout = '{"step": 1, "id": "a", "prompt": "1 + 1 =", "completion": " 2", "rewards": {}, "advantage": 0.0}\n'
    (tmp_path / "rank0.jsonl").write_text(2 * rollout)
    assert samples_from(str(tmp_path / "rank0.jsonl")).names == ["a", "a"]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"question": "1 + 1?", "completion": 2}', RowError, "line 1, field 'completion': found int 2"),
        ('{"question": "1 + 1?"}', UsageError, "nothing to score"),
        ('{"completion": "2"}', RowError, "line 1: neither 'prompt' nor 'question'"),
        ("2", RowError, "expected a JSON object"),
    ],
)
def test_rows_without_anything_to_score_are_named(tmp_path, line, error, message):
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(error, match=message):
        samples_from(str(tmp_path / "rows.jsonl"))


def test_own_samples_need_one_value_per_completion():
    assert Samples({"completions": ["a", "b"], "answer": ["1", "2"]}).names == ["sample 0", "sample 1"]
    with pytest.raises(UsageError, match="column 'answer' has 1 values for 2 completions"):
        Samples({"completions": ["a", "b"], "answer": ["1"]})
    with pytest.raises(UsageError, match="need the column 'completions'"):
        Samples({"answer": ["1"]})


def test_scoring_counts_distinct_inputs_and_cache_hits(tmp_path, samples, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.py").write_text(CODE)
    by_sample = score_samples(f"{tmp_path / 'some.py'}:good", samples, options={"per_sample": True})
    assert (by_sample.distinct, by_sample.cache_hits) == (4, 5)
    assert [outcome.reused for outcome in by_sample.outcomes] == [None, "batch", None, None, None]
    whole = score_samples(f"{tmp_path / 'some.py'}:good", samples)
    assert (whole.distinct, whole.cache_hits) == (None, 0)
    assert not (tmp_path / "cache").exists()  # the user's own


def test_scoring_a_reward_that_breaks_the_contract_gives_the_reason(tmp_path, samples):
    (tmp_path / "some.py").write_text(CODE)
    scored = score_samples(f"{tmp_path / 'some.py'}:texts", samples)
    assert scored.outcomes == []
    assert "returned '1.0' (str) for sample 0" in (scored.broken or "")
