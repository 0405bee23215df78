"""A resumed run reads the rows that the uninterrupted one would have read, in every epoch."""

from pathlib import Path
from typing import Any

import pytest

from rlkd.data.loading import load_rows, to_dataset
from trainers import RLKDConfig, RLKDTrainer


def letters(completions, **columns):
    """Deterministic, and not equal within a group: every step moves the parameters."""
    return [sum(map(ord, c[0]["content"])) % 97 / 97 for c in completions]


def trainer(model: str, output: Path, rows: int, **changes: Any) -> RLKDTrainer:
    values: dict[str, Any] = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_completion_length": 4,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    args = RLKDConfig(**values | changes)
    return RLKDTrainer(
        model, reward_funcs=letters, args=args, train_dataset=to_dataset(load_rows("gsm8k-sample")[:rows])
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "num_iterations": 2},
        {"gradient_accumulation_steps": 3},  # the last accumulation of an epoch is incomplete
        {"steps_per_generation": 2},
        {"shuffle_dataset": False},
    ],
)
def test_the_rows_after_any_step_are_those_of_one_long_run(tiny_model, tmp_path, monkeypatch, changes) -> None:
    run = trainer(tiny_model, tmp_path, 7, **changes)
    loader = run.get_train_dataloader()
    epochs = [[[row["id"] for row in batch] for batch in loader] for _ in range(4)]
    if changes.get("shuffle_dataset") is None:
        assert len({str(epoch) for epoch in epochs}) == 4
    accumulated = run.args.gradient_accumulation_steps
    per_epoch = -(-len(epochs[0]) // accumulated)
    for step in range(3 * per_epoch):
        monkeypatch.setattr("trainers.common.row_order.step_of", lambda checkpoint, step=step: step)
        run.restore(tmp_path)
        found = [[row["id"] for row in batch] for batch in run.get_train_dataloader()]
        assert found == epochs[step // per_epoch], step
    run.restore(None)
    assert [[row["id"] for row in batch] for batch in run.get_train_dataloader()] == epochs[0]
