"""A reward without spread is said once, with ways out."""

import json
import logging
import math

import pytest

from rlkd.data.loading import load_rows, to_dataset
from trainers import RLKDConfig, RLKDTrainer
from trainers.rlkd.spread import WINDOW, SpreadWatch


def said(shares: list[float]) -> list[int]:
    """The batches, counted from 0, after which the watch speaks."""
    watch = SpreadWatch()
    return [batch for batch, share in enumerate(shares) if watch.add({"a": share})]


@pytest.mark.parametrize(
    ("shares", "batches"),
    [
        ([1.0] * (WINDOW - 1), []),
        ([1.0] * WINDOW, [WINDOW - 1]),
        ([1.0] * 3 * WINDOW, [WINDOW - 1]),
        ([0.9] * 2 * WINDOW, []),
        ([0.5] + [0.95] * WINDOW, [WINDOW]),
        (([1.0] * (WINDOW - 1) + [0.0]) * 3, []),
        ([1.0, math.nan] * WINDOW, [2 * WINDOW - 2]),
        ([math.nan] * 2 * WINDOW, []),
    ],
)
def test_it_speaks_once_after_a_full_window_without_spread(shares, batches) -> None:
    assert said(shares) == batches


def test_each_reward_is_watched_by_itself() -> None:
    watch = SpreadWatch(frozenset({"b"}))
    found = [watch.add({"a": 0.0, "b": 1.0}) for _ in range(WINDOW)]
    assert found[-1] == ["b"]
    assert "alignment: ordered" in watch.message("b")
    assert "rlkd gsrm explain" in watch.message("b")
    assert "num_generations" in watch.message("a")


@pytest.mark.parametrize("at", [0, WINDOW - 1, WINDOW, WINDOW + 3])
def test_a_resumed_run_continues_to_count_and_says_it_once(at) -> None:
    before, after = SpreadWatch(), SpreadWatch()
    found = [before.add({"a": 1.0}) for _ in range(at)]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    found += [after.add({"a": 1.0}) for _ in range(2 * WINDOW - at)]
    assert [batch for batch, said in enumerate(found) if said] == [WINDOW - 1]


def constant(completions, **columns):
    return [0.5] * len(completions)


def letters(completions, **columns):
    return [sum(map(ord, c[0]["content"])) % 97 / 97 for c in completions]


def test_a_run_says_it_once(tiny_model, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("trainers.rlkd.spread.WINDOW", 3)
    args = RLKDConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=2,
        max_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = to_dataset(load_rows("gsm8k-sample")[:4])
    trainer = RLKDTrainer(tiny_model, reward_funcs=[constant, letters], args=args, train_dataset=rows)
    with caplog.at_level(logging.WARNING, logger="trainers.rlkd.trainer"):
        trainer.train()
    warnings = [record.message for record in caplog.records if "next to nothing is learnt" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("reward 'constant': in each of the last 3 generation batches")
