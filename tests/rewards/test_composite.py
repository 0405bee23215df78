"""One reward out of several, for trainers without weights and gates."""

import asyncio
import json
import math
import multiprocessing
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from rewards import CompositeReward, Failed, Outcome, RewardError, build_rewards
from rewards.arithmetic import settle
from rewards.batch import ScoredBatch
from rewards.build import wrap
from rewards.composite import gate_warning


def one(completions, **columns):
    return [1.0] * len(completions)


def two(completions, **columns):
    return [2.0] * len(completions)


async def later(completions, **columns):
    return [float(len(c)) for c in completions]


def fails_on_b(completions, **columns):
    return [Failed("it is b") if "b" in c else 3.0 for c in completions]


def composite(*functions, **settings) -> CompositeReward:
    return CompositeReward([wrap(function, cache=False) for function in functions], **settings)


def scores(reward: CompositeReward, *texts: str, **columns):
    return asyncio.run(reward(completions=list(texts), **columns))


# None: not applicable, "failed": failed
entry = st.one_of(st.none(), st.just("failed"), st.floats(-3, 3).map(lambda value: round(value, 2)))
columns_of = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(entry, min_size=size, max_size=size), min_size=3, max_size=3)
)


def outcome(value) -> Outcome:
    if value == "failed":
        return Outcome("failed", cause="down")
    return Outcome("not_applicable") if value is None else Outcome("score", value)


@given(columns_of, st.sampled_from(["sum_then_normalize", "normalize_then_sum"]), st.sampled_from(["impute", "drop"]))
def test_the_arithmetic_is_that_of_the_trainer_and_of_trl(columns, aggregation, on_failure) -> None:
    weights = [1.0, 0.5, -2.0]
    reward = composite(
        one, two, later, weights=weights, gates={"two": "one"}, aggregation=aggregation, on_failure=on_failure
    )
    names = ["one", "two", "later"]
    group = ScoredBatch(
        [{}] * len(columns[0]),
        outcomes={name: [outcome(v) for v in column] for name, column in zip(names, columns, strict=True)},
    )
    found = reward.combine(group)
    # As RLKDTrainer settles it, and then TRL: shapes (completions, rewards). In float32, as there, unless a deviation
    # near 0 would make its rounding visible.
    dtype = torch.float32 if aggregation == "sum_then_normalize" else torch.float64
    raw = torch.tensor(
        [[value if isinstance(value, float) else math.nan for value in column] for column in columns],
        dtype=dtype,
    ).T.contiguous()
    failed = torch.tensor([[value == "failed" for value in column] for column in columns]).T
    ready = settle(raw, failed, len(raw), on_failure=on_failure, gates={1: 0})
    unscorable = ready.isnan().all(dim=1)
    if aggregation == "normalize_then_sum":
        ready = settle(raw, failed, len(raw), on_failure=on_failure, gates={1: 0}, fill=False)
        ready = (ready - ready.nanmean(dim=0, keepdim=True)) / (nanstd(ready, dim=0, keepdim=True) + 1e-4)
    expected = (ready * torch.tensor(weights, dtype=dtype)).nansum(dim=1)
    for i, value in enumerate(found):
        assert (value is None) == bool(unscorable[i])
        if value is not None:
            assert value == pytest.approx(expected[i].item(), abs=1e-5, rel=1e-5)


def test_groups_are_settled_one_by_one() -> None:
    reward = composite(later, fails_on_b, group_size=2)
    # In "a b" the failed one gets its neighbour's 3; in "b b" nobody has the reward, and only the length counts.
    assert scores(reward, "a", "b", "bb", "b") == [4.0, 4.0, 2.0, 1.0]


def test_completions_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(RewardError, match="3 completions are not groups of 2"):
        scores(composite(one, group_size=2), "a", "b", "c")


def test_failures_are_logged_for_each_reward() -> None:
    logged: dict[str, float] = {}
    scores(composite(one, fails_on_b), "a", "b", log_metric=logged.__setitem__)
    assert logged["rewards/fails_on_b/failed"] == 0.5
    assert logged["rewards/one/failed"] == 0.0


def test_raise_names_the_reward_and_the_cause() -> None:
    with pytest.raises(RewardError, match=r"reward 'fails_on_b' failed .* it is b"):
        scores(composite(one, fails_on_b, on_failure="raise"), "a", "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1.0]}, "reward_weights has 1 entries"),
        ({"gates": {"two": "on"}}, "'on' is no reward of this run. Did you mean 'one'"),
        ({"aggregation": "mean"}, "aggregation 'mean'"),
        ({"on_failure": "ignore"}, "on_failure 'ignore'"),
    ],
)
def test_bad_settings_are_named(settings, message) -> None:
    with pytest.raises(RewardError) as error:
        composite(one, two, **settings)
    assert message in str(error.value)


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(RewardError, match="unique"):
        composite(one, one)


def score_in_child(pickled: bytes, results) -> None:
    reward = pickle.loads(pickled)
    texts = ["<think>a</think> #### 12", "#### 12", "#### x^2 + 1"]
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    results.put(asyncio.run(reward(completions=chat, answer=["12", "12", "$1+x^2$"])))


@pytest.mark.slow
def test_it_works_in_a_spawned_daemon_as_trls_rollout_worker_is_one(tmp_path) -> None:
    # Daemons may have no children of multiprocessing; the comparison of the last answer needs a worker all the same.
    path = tmp_path / "mine.py"
    path.write_text("def length(completions, **columns):\n    return [len(c[0]['content']) for c in completions]\n")
    specs = ["accuracy", "tag_count", f"{path}:length"]
    reward = CompositeReward(build_rewards(specs, cache=tmp_path / "cache.sqlite"), weights=[1.0, 1.0, 0.01])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=score_in_child, args=(pickle.dumps(reward), results), daemon=True)
    child.start()
    found = results.get(timeout=120)
    child.join(60)
    assert found == pytest.approx([1 + 0.5 + 0.24, 1 + 0 + 0.07, 1 + 0 + 0.12])


def test_the_log_has_every_completion_with_each_outcome(tmp_path) -> None:
    path = tmp_path / "rollouts" / "async.jsonl"
    reward = composite(one, fails_on_b, log=path, group_size=2)
    scores(reward, "a", "b", "a", "a", id=["x", "x", "y", "y"], answer=["1", "1", "2", "2"], prompts=["q"] * 4)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["group"], r["id"], r["completion"], r["score"]) for r in records] == [
        (0, "x", "a", 4.0),
        (0, "x", "b", 4.0),
        (1, "y", "a", 4.0),
        (1, "y", "a", 4.0),
    ]
    assert records[0]["prompt"] == "q"
    assert records[0]["answer"] == "1"
    failed = records[1]["rewards"]["fails_on_b"]
    assert (failed["status"], failed["cause"]) == ("failed", "it is b")
    assert records[1]["rewards"]["one"]["value"] == 1.0


def test_the_log_continues_where_a_killed_process_left_it(tmp_path) -> None:
    path = tmp_path / "async.jsonl"
    scores(composite(one, log=path), "a", "b")
    with path.open("a") as stream:
        stream.write('{"group": 1, "id')
    # As TRL hands the reward to its rollout process.
    scores(pickle.loads(pickle.dumps(composite(one, log=path))), "c")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["group"], record["completion"]) for record in records] == [(0, "a"), (0, "b"), (1, "c")]


def test_what_ended_the_run_is_in_the_log(tmp_path) -> None:
    path = tmp_path / "async.jsonl"
    with pytest.raises(RewardError):
        scores(composite(one, fails_on_b, on_failure="raise", log=path), "a", "b")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["score"] for record in records] == [None, None]
    assert records[1]["rewards"]["fails_on_b"]["cause"] == "it is b"


def down(completions, **columns):
    return [-float(c == "a") for c in completions]


def test_a_gate_on_a_declared_penalty_is_refused() -> None:
    rewards = build_rewards(
        ["accuracy", "soft_overlong"], {"soft_overlong": {"max_completion_len": 8, "soft_punish_cache": 4}}
    )
    with pytest.raises(RewardError, match=r"'soft_overlong' is negative .* escapes the penalty"):
        CompositeReward(rewards, gates={"soft_overlong": "accuracy"})
    CompositeReward(rewards, gates={"accuracy": "soft_overlong"})


def test_a_gate_on_a_penalty_of_ones_own_is_said_once(caplog) -> None:
    reward = composite(one, down, gates={"down": "one"})
    for _ in range(2):
        scores(reward, "a", "b")
    assert [record.message for record in caplog.records if "escapes the penalty" in record.message] == [
        gate_warning("down", "one")
    ]
