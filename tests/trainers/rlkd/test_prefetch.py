"""Prefetched rewards: the same rewards, computed earlier."""

import asyncio
import threading

import pytest
import torch
from datasets import Dataset

from rewards import RewardError, RewardOptions
from rewards.build import wrap
from rlkd.data.loading import load_rows, to_dataset
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps
from trainers.common.trl_compat import completions_of
from trainers.rlkd.prefetch import PrefetchedReward, prefetched_rewards


@pytest.fixture
def rows() -> Dataset:
    return to_dataset(load_rows("gsm8k-sample")[:8])


def residue(completion) -> float:
    return sum(map(ord, completion[0]["content"])) % 97 / 97


class Judge:
    """Asynchronous; records in which threads it was called."""

    __name__ = "judge"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.before: list[bool] = []
        self.trainer: Watched | None = None

    async def __call__(self, completions, answer, log_metric, log_extra, **columns):
        self.calls.append(threading.current_thread().name)
        assert self.trainer is not None
        # TRL is past the forward passes only when it calls `_calculate_rewards`.
        self.before.append(not self.trainer.scoring)
        self.trainer.judging.set()
        log_metric("judge/calls", 1.0)
        log_extra("seen", list(answer))
        await asyncio.sleep(0.01)
        return [residue(c) for c in completions]


def here(completions, **columns):
    """Runs in this process and reads the whole batch: never prefetched."""
    here.calls.append(threading.current_thread().name)
    return [residue(c) for c in completions]


here.calls = []  # type: ignore[attr-defined]


class Watched(RLKDTrainer):
    """With prefetch, its forward passes take until the judge has been called."""

    def __init__(self, *arguments, **settings):
        self.scoring = False
        self.judging = threading.Event()
        super().__init__(*arguments, **settings)

    def _calculate_rewards(self, *arguments):
        if self.args.reward_prefetch:
            self.judging.wait(30)
        self.judging.clear()
        self.scoring = True
        try:
            return super()._calculate_rewards(*arguments)
        finally:
            self.scoring = False


def trainer(model, rows, folder, rewards, kind=RLKDTrainer, **changes):
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "beta": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(model, reward_funcs=rewards, args=RLKDConfig(**values | changes), train_dataset=rows)


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit_and_each_batch_is_judged_once(tiny_model, rows, tmp_path) -> None:
    found = []
    for prefetch in (False, True):
        judge = Judge()
        made = trainer(
            tiny_model, rows, tmp_path / str(prefetch), [judge, "accuracy", here], Watched, reward_prefetch=prefetch
        )
        judge.trainer = made
        here.calls.clear()
        made.train()
        assert len(judge.calls) == 3
        assert judge.before == [prefetch] * 3
        assert set(here.calls) == {"MainThread"}
        parameters = [parameter.detach().clone() for parameter in made.model.parameters()]
        records = [
            (r["completion"], {n: o.get("value") for n, o in r["rewards"].items()}, r["advantage"])
            for r in read_steps(made.rollouts_path)
        ]
        metrics = [
            {k: v for k, v in entry.items() if not any(word in k for word in ("seconds", "time", "reused"))}
            for entry in read_steps(made.metrics_path)
        ]
        assert all(entry["judge/calls"] == 1.0 for entry in metrics)
        found.append((parameters, records, metrics))
    assert all(torch.equal(one, other) for one, other in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1:] == found[1][1:]


def test_a_failure_of_a_prefetched_reward_is_a_failure_with_its_cause(tiny_model, rows, tmp_path) -> None:
    async def down(completions, **columns):
        raise ConnectionError("no judge")

    made = trainer(tiny_model, rows, tmp_path, [here, down], reward_prefetch=True, max_failure_rate=None)
    made.train()
    assert {r["rewards"]["down"]["cause"] for r in read_steps(made.rollouts_path)} == {"ConnectionError: no judge"}


def test_a_broken_contract_ends_the_run_as_it_does_without(tiny_model, rows, tmp_path) -> None:
    async def short(completions, **columns):
        return [1.0]

    made = trainer(tiny_model, rows, tmp_path, [short], reward_prefetch=True)
    with pytest.raises(RewardError, match="'short' returned 1 values for 4 completions"):
        made.train()


def test_a_started_batch_is_used_once_and_for_the_same_arguments_only() -> None:
    calls = []

    async def judge(completions, log_metric, **columns):
        calls.append(list(completions))
        log_metric("judge/calls", 1.0)
        return [float(len(c)) for c in completions]

    logged: list[tuple[str, float]] = []
    reward = PrefetchedReward(wrap(judge, cache=False))

    def values(text: str) -> list[float | None]:
        outcomes = reward.score(
            completions=[text],
            prompts=["p"],
            completion_ids=[[1]],
            answer=["1"],
            trainer_state=None,
            log_metric=lambda name, value: logged.append((name, value)),
        )
        return [outcome.value for outcome in outcomes]

    reward.start([{"prompt": "p", "answer": "1"}], ["abc"], [[1]], None)
    assert values("abcd") == [4.0]
    # Once in advance, once for other completions; then once in advance, and once again as that was used.
    reward.start([{"prompt": "p", "answer": "1"}], ["abc"], [[1]], None)
    assert values("abc") == [3.0]
    assert values("abc") == [3.0]
    assert sorted(map(str, calls)) == ["['abc']", "['abc']", "['abc']", "['abcd']"]
    assert logged == [("judge/calls", 1.0)] * 3


def test_only_rewards_that_run_elsewhere_are_prefetched() -> None:
    async def judge(completions, **columns):
        return [0.0] * len(completions)

    def pure(completions, **columns):
        return [0.0] * len(completions)

    pure.reward_options = RewardOptions(per_sample=True)  # type: ignore[attr-defined]
    rewards = [wrap(function, cache=False) for function in (judge, pure, here)]
    assert list(prefetched_rewards([*rewards, torch.nn.Linear(1, 1)])) == ["judge", "pure"]


@pytest.mark.parametrize("generated", [None, (1, 2), ([], [[1]], None, ["a", "b"]), ([], [[1]], None, "a")])
def test_results_of_another_shape_are_refused(generated) -> None:
    with pytest.raises(UsageError, match="value of unknown shape"):
        completions_of(generated, 1)
